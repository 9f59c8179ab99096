"""Whose images these are, and which of them still count: corrections, rejection notes, withdrawn results.

Nothing is deleted here. What was rejected or withdrawn is hidden, what was replaced by a correction lies in
quarantine, and the study is opened again, so that a new version of the result follows.

Source: IHE RAD TF-2 4.66 (Rejection Note Stored).
"""

import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, case, null, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute

from storage.corrections import note_rejection
from storage.database import Transaction, database_now
from storage.deliveries import withdraw_deliveries
from storage.notes import DerivedNote
from storage.records import InstanceRecord
from storage.tables import Conflict, Instance, Job, Rejection, Series, Study
from storage.text import clean_text, fold_name
from storage.upsert import insert_into

OWN_RESULT: Final = "OWN RESULT"
CORRECTION: Final = "CORRECTION"
OTHER_SERIES: Final = "OTHER SERIES"  # outcome of a job whose series is part of another one's result
CORRECTED: Final = "the patient was corrected by the sender; results are made anew"
SET_ASIDE: Final = "instances that name another patient were set aside: see the conflicts"
OTHER_PATIENT: Final = "its study belongs to another patient"
HIDDEN: Final = frozenset({"REJECTED", "WITHDRAWN"})
_PATIENT: Final = ("patient_id", "patient_name", "patient_birth_date", "patient_sex")
_PARAMETERS: Final = 500  # UIDs in one statement


class Retired(StrEnum):
    """Why an instance is not current."""

    REJECTED = "REJECTED"  # by a rejection note; hidden
    WITHDRAWN = "WITHDRAWN"  # a result of ours whose inputs were rejected or corrected; hidden
    SUPERSEDED = "SUPERSEDED"  # a result of ours that a newer one replaces; given when asked for by UID


def follow_note(tx: Transaction, record: InstanceRecord, note: DerivedNote) -> None:
    """Do what a derived object that has just been entered says."""
    if note.rejection_code is None:
        _refer(tx, record.sop_instance_uid, note)
        return
    _remember(tx, record, note)
    named = {named.sop_instance_uid: named.study_instance_uid for named in note.names}
    rejected = _hide(tx, named, record.sop_instance_uid)
    for study in sorted({row.study_instance_uid for row in rejected}):
        series = {
            row.series_instance_uid
            for row in rejected
            if row.study_instance_uid == study and row.origin_kind != OWN_RESULT
        }
        if series:
            withdraw_results(tx, study, series, by=record.sop_instance_uid)
            reopen(tx, study)
    own = [row.sop_instance_uid for row in rejected if row.origin_kind == OWN_RESULT]
    withdraw_deliveries(tx, own)
    note_rejection(tx, record, rejected)


def hide_rejected(tx: Transaction, sop_instance_uid: str, note_uid: str) -> None:
    """Hide an instance that comes after the note that rejected it."""
    _retire(tx, [sop_instance_uid], Retired.REJECTED, note_uid)


def follow_result(
    tx: Transaction, result: Instance, predecessors: Sequence[str], inputs: Sequence[str]
) -> None:
    """Let a result count as its object says, where nobody wrote it down: after the index was lost.

    Results of ours that it replaced are superseded. It is withdrawn itself if one of its inputs is rejected.
    """
    ours = select(Series.series_instance_uid).where(
        Series.study_instance_uid == result.study_instance_uid, Series.is_own_result
    )
    for part in _parts(predecessors):
        statement = select(Instance.sop_instance_uid).where(
            Instance.sop_instance_uid.in_(part), Instance.sop_instance_uid != result.sop_instance_uid
        )
        current = statement.where(Instance.series_instance_uid.in_(ours), Instance.retired_as.is_(None))
        _retire(tx, list(tx.scalars(current)), Retired.SUPERSEDED, result.sop_instance_uid)
    for part in _parts(inputs):
        rejected = select(Instance.retired_by).where(
            Instance.sop_instance_uid.in_(part),
            Instance.retired_as == Retired.REJECTED,
            Instance.series_instance_uid.not_in(ours),
        )
        note_uid = tx.scalars(rejected.order_by(Instance.retired_by)).first()
        if note_uid is not None:
            _withdraw(tx, result.sop_instance_uid, note_uid)
            return


def _withdraw(tx: Transaction, sop_instance_uid: str, by: str) -> None:
    statement = update(Instance).where(
        Instance.sop_instance_uid == sop_instance_uid,
        or_(Instance.retired_as.is_(None), Instance.retired_as == Retired.SUPERSEDED),
    )
    values = {"retired_as": Retired.WITHDRAWN, "retired_at": database_now(), "retired_by": by}
    tx.execute(statement.values(values).execution_options(synchronize_session=False))


def withdraw_results(
    tx: Transaction, study_instance_uid: str, series_uids: Iterable[str] | None, *, by: str
) -> list[str]:
    """Hide our current results on these series of a study (None = all), and stop their deliveries."""
    statement = (
        select(Instance.sop_instance_uid, Instance.retired_as)
        .join(Job, Job.job_id == Instance.origin_detail)
        .where(Instance.study_instance_uid == study_instance_uid, Instance.origin_kind == OWN_RESULT)
        .where(or_(Instance.retired_as.is_(None), Instance.retired_as == Retired.SUPERSEDED))
    )
    if series_uids is not None:
        statement = statement.where(Job.series_instance_uid.in_(_with_leaders(tx, set(series_uids))))
    rows = tx.execute(statement).all()
    _retire(tx, [uid for uid, retired_as in rows if retired_as is None], Retired.WITHDRAWN, by)
    _retire(tx, [uid for uid, retired_as in rows if retired_as is not None], Retired.WITHDRAWN, None)
    uids = [uid for uid, _ in rows]
    withdraw_deliveries(tx, uids)
    return uids


def withdraw_unclaimed(tx: Transaction, study_instance_uid: str) -> None:
    """Withdraw all results of a corrected study that are in an index without jobs: one that is made anew."""
    statement = select(Instance.sop_instance_uid).join(
        Series, Series.series_instance_uid == Instance.series_instance_uid
    )
    ours = statement.where(Instance.study_instance_uid == study_instance_uid, Series.is_own_result)
    for uid in tx.scalars(ours).all():
        _withdraw(tx, uid, CORRECTION)


def reopen(tx: Transaction, study_instance_uid: str, note: str | None = None) -> None:
    """Let the study be completed again, as its next version if it was complete."""
    values: dict[InstrumentedAttribute[Any], Any] = {
        Study.last_received_at: database_now(),
        Study.version: case((Study.completed_at.is_(None), Study.version), else_=Study.version + 1),
        Study.completed_at: null(),
        Study.complete_requested_by: null(),
        Study.evidence: null(),
        Study.outcome: null(),
    }
    if note is not None:
        values[Study.identity_note] = note
    statement = update(Study).where(Study.study_instance_uid == study_instance_uid).values(values)
    tx.execute(statement.execution_options(synchronize_session=False))


def note_identity(tx: Transaction, study_instance_uid: str, note: str) -> None:
    """Tell the operator what is doubtful about the study's identity."""
    statement = update(Study).where(Study.study_instance_uid == study_instance_uid)
    tx.execute(statement.values({Study.identity_note: clean_text(note, 1000)}))


def is_shown() -> ColumnElement[bool]:
    """Condition on Instance: neither rejected nor withdrawn."""
    return or_(Instance.retired_as.is_(None), Instance.retired_as == Retired.SUPERSEDED)


def is_same_image(record: InstanceRecord, first: Instance) -> bool:
    """Whether a correction is of the same image: all that the index knows, but for the patient, is equal."""
    image = record.image
    return (
        first.origin_kind != OWN_RESULT
        and first.series_instance_uid == record.series_instance_uid
        and first.sop_class_uid == record.sop_class_uid
        and (first.instance_number, first.rows, first.columns, first.number_of_frames)
        == (image.instance_number, image.rows, image.columns, image.number_of_frames)
    )


def names_other_patient(record: InstanceRecord, patient_id: str | None) -> bool:
    """Whether the instance names another patient than its study; one that names none fits any."""
    given = record.study.patient_id
    return bool(patient_id) and bool(given) and given != patient_id


def take_correction(tx: Transaction, record: InstanceRecord, first_sha256: str | None) -> None:
    """Let the sender's patient be the study's; with `first_sha256`, the new content replaces the first.

    Results made so far name the patient of before: they are withdrawn, and made anew.
    """
    if first_sha256 is not None:
        _replace(tx, record)
    given = record.study
    patient: dict[str, str] = {name: value for name in _PATIENT if (value := getattr(given, name))}
    if given.patient_name:
        patient["patient_name_folded"] = fold_name(given.patient_name)
    if patient:
        statement = update(Study).where(Study.study_instance_uid == record.study_instance_uid)
        tx.execute(statement.values(**patient).execution_options(synchronize_session=False))
    withdraw_results(tx, record.study_instance_uid, None, by=CORRECTION)
    reopen(tx, record.study_instance_uid, CORRECTED)


def patients_of(tx: Transaction, study_instance_uid: str) -> set[str]:
    """Return the different patient IDs that the study's current images name."""
    statement = (
        select(Instance.patient_id)
        .where(Instance.study_instance_uid == study_instance_uid, Instance.retired_as.is_(None))
        .where(Instance.origin_kind != OWN_RESULT)
        .distinct()
    )
    return {patient_id for patient_id in tx.scalars(statement) if patient_id}


def _refer(tx: Transaction, sop_instance_uid: str, note: DerivedNote) -> None:
    named = [named.sop_instance_uid for named in note.names]
    for part in _parts(named):
        ours = tx.scalars(
            select(Instance.sop_instance_uid)
            .where(Instance.sop_instance_uid.in_(part), Instance.origin_kind == OWN_RESULT)
            .order_by(Instance.sop_instance_uid)
        ).first()
        if ours is not None:
            statement = update(Instance).where(Instance.sop_instance_uid == sop_instance_uid)
            tx.execute(statement.values(refers_to=ours).execution_options(synchronize_session=False))
            return


def _remember(tx: Transaction, record: InstanceRecord, note: DerivedNote) -> None:
    for named in note.names:
        insert = insert_into(tx, Rejection).values(
            sop_instance_uid=named.sop_instance_uid,
            study_instance_uid=named.study_instance_uid,
            note_uid=record.sop_instance_uid,
            code=note.rejection_code,
            received_at=database_now(),
        )
        keys = [Rejection.sop_instance_uid, Rejection.note_uid]
        tx.execute(insert.on_conflict_do_nothing(index_elements=keys))


def _hide(tx: Transaction, named: dict[str, str], note_uid: str) -> list[Instance]:
    """Hide what is named, where the note names it in the study that it is in; gives what was hidden now."""
    hidden: list[Instance] = []
    for part in _parts(sorted(named)):
        rows = tx.scalars(
            select(Instance)
            .where(Instance.sop_instance_uid.in_(part))
            .where(or_(Instance.retired_as.is_(None), Instance.retired_as == Retired.SUPERSEDED))
            .execution_options(populate_existing=True)
        ).all()
        hidden += [row for row in rows if named[row.sop_instance_uid] == row.study_instance_uid]
    _retire(tx, [row.sop_instance_uid for row in hidden], Retired.REJECTED, note_uid)
    return hidden


def _retire(tx: Transaction, sop_instance_uids: Sequence[str], retired_as: Retired, by: str | None) -> None:
    """Mark them; without `by`, what they were replaced by stays written down."""
    values: dict[str, object] = {"retired_as": retired_as, "retired_at": database_now()}
    if by is not None:
        values["retired_by"] = by
    for part in _parts(sop_instance_uids):
        statement = update(Instance).where(Instance.sop_instance_uid.in_(part)).values(**values)
        tx.execute(statement.execution_options(synchronize_session=False))


def _with_leaders(tx: Transaction, series_uids: set[str]) -> set[str]:
    """Add the series under which results over several series, these among them, are kept."""
    statement = select(Job.summary).where(
        Job.series_instance_uid.in_(series_uids), Job.outcome == OTHER_SERIES
    )
    leaders = (json.loads(summary or "{}").get("analysed_with") for summary in tx.scalars(statement))
    return series_uids | {leader for leader in leaders if isinstance(leader, str)}


def _replace(tx: Transaction, record: InstanceRecord) -> None:
    """Put new content in the place of an instance's first, which goes into quarantine."""
    first = tx.get(Instance, record.sop_instance_uid, populate_existing=True)
    if first is None:
        return
    aside = insert_into(tx, Conflict).values(
        sop_instance_uid=first.sop_instance_uid,
        first_sha256=record.stored.sha256,
        second_sha256=first.sha256,
        reason="replaced by a correction of its sender",
        path=first.path,
        origin_kind=first.origin_kind,
        origin_detail=first.origin_detail,
        received_at=first.received_at,
        times_received=1,
    )
    keys = [Conflict.sop_instance_uid, Conflict.second_sha256]
    tx.execute(aside.on_conflict_do_nothing(index_elements=keys))
    first.sha256, first.path = record.stored.sha256, record.stored.path
    first.size_bytes = record.stored.size_bytes
    first.transfer_syntax_uid = record.transfer_syntax_uid
    first.patient_id = record.study.patient_id
    first.origin_kind, first.origin_detail = record.origin.kind, record.origin.detail
    tx.flush()


def _parts(uids: Sequence[str]) -> list[Sequence[str]]:
    return [uids[start : start + _PARAMETERS] for start in range(0, len(uids), _PARAMETERS)]
