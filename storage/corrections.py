"""What people made of our results: who sent what about which of them, and what becomes of deliveries then.

Whoever compares the objects is elsewhere; here stands what is known without opening them. A person's name is
kept in its column and given to nobody.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import delete, func, or_, select, update

from storage.database import Transaction, database_now
from storage.deliveries import DeliveryState, queue_delivery, withdraw_deliveries
from storage.notes import KEY_OBJECT_SELECTION
from storage.records import InstanceRecord
from storage.tables import Correction, Delivery, Instance, Job
from storage.text import clean_text
from storage.upsert import insert_into

OWN_RESULT: Final = "OWN RESULT"
SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
REPORTS: Final = tuple(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34))


class Verdict(StrEnum):
    """What somebody's object says of ours."""

    PENDING = "PENDING"  # not compared yet
    ACCEPTED = "ACCEPTED"  # the same again
    MODIFIED = "MODIFIED"
    REJECTED = "REJECTED"  # nothing is left of it, or a rejection note names it


class Match(StrEnum):
    """How an object was found to be about a result of ours."""

    REFERENCE = "REFERENCE"  # it names ours
    CONTENT = "CONTENT"  # same study and series, and the same segment by code, label or tracking UID


@dataclass(frozen=True)
class OwnObject:
    """A SEG or SR of ours that an object may be about."""

    sop_instance_uid: str
    sop_class_uid: str
    path: str
    job_id: str
    series_instance_uid: str  # of the images that the job was about
    model: str
    model_version: str


@dataclass(frozen=True)
class Judgement:
    """What was found about one object that came."""

    verdict: Verdict
    ours: OwnObject
    variants: tuple[str, ...]  # UIDs of our objects that say the same as `ours`, itself among them
    matched_by: Match
    made_by: str  # a person's name, "" when the object has none
    dice: Mapping[str, float]


@dataclass(frozen=True)
class Count:
    """How often results of one model version were judged so."""

    model: str
    model_version: str
    verdict: str
    count: int


def note_arrival(tx: Transaction, record: InstanceRecord) -> None:
    """Remember a SEG or SR of somebody else in a study that we have results on; it is compared later."""
    if record.is_own_result or record.sop_class_uid not in (*SEGMENTATIONS, *REPORTS):
        return
    ours = select(Instance.sop_instance_uid).where(
        Instance.study_instance_uid == record.study_instance_uid, Instance.origin_kind == OWN_RESULT
    )
    if tx.scalars(ours.limit(1)).first() is not None:
        _insert(tx, record, {"verdict": Verdict.PENDING})


def note_rejection(tx: Transaction, record: InstanceRecord, rejected: Sequence[Instance]) -> None:
    """Count results of ours that a rejection note names, once for each job."""
    seen: set[str] = set()
    for row in sorted(rejected, key=lambda each: each.sop_class_uid not in SEGMENTATIONS):
        job = tx.get(Job, row.origin_detail)
        if row.origin_kind != OWN_RESULT or job is None or job.job_id in seen:
            continue
        seen.add(job.job_id)
        values = {
            "verdict": Verdict.REJECTED,
            "result_uid": row.sop_instance_uid,
            "job_id": job.job_id,
            "model": job.model,
            "model_version": job.model_version or "",
            "matched_by": Match.REFERENCE,
            "judged_at": database_now(),
        }
        _insert(tx, record, values)


def pending_corrections(tx: Transaction, limit: int = 20) -> Sequence[tuple[int, Instance]]:
    """Return what nobody has compared yet, the oldest first, with the instance that came."""
    statement = (
        select(Correction.id, Instance)
        .join(Instance, Instance.sop_instance_uid == Correction.sop_instance_uid)
        .where(Correction.verdict == Verdict.PENDING)
        .order_by(Correction.received_at, Correction.id)
        .limit(limit)
    )
    return [(number, row) for number, row in tx.execute(statement)]


def own_objects(tx: Transaction, like: Instance) -> list[OwnObject]:
    """Return our objects of the same kind in the study of `like`, current or replaced, the newest first."""
    kinds = SEGMENTATIONS if like.sop_class_uid in SEGMENTATIONS else REPORTS
    statement = (
        select(Instance, Job)
        .join(Job, Job.job_id == Instance.origin_detail)
        .where(Instance.study_instance_uid == like.study_instance_uid, Instance.origin_kind == OWN_RESULT)
        .where(Instance.sop_class_uid.in_(kinds))
        .where(or_(Instance.retired_as.is_(None), Instance.retired_as == "SUPERSEDED"))
        .order_by(Instance.retired_as.is_not(None), Instance.received_at.desc(), Instance.sop_instance_uid)
    )
    return [
        OwnObject(
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            path=row.path,
            job_id=job.job_id,
            series_instance_uid=job.series_instance_uid,
            model=job.model,
            model_version=job.model_version or "",
        )
        for row, job in tx.execute(statement)
    ]


def forget_correction(tx: Transaction, number: int) -> None:
    """Drop what turned out to be about none of our results."""
    tx.execute(delete(Correction).where(Correction.id == number, Correction.verdict == Verdict.PENDING))


def record_judgement(tx: Transaction, number: int, judged: Judgement) -> bool:
    """Write down what was found, and let deliveries follow; False when somebody else has done so."""
    values = {
        "verdict": judged.verdict,
        "result_uid": judged.ours.sop_instance_uid,
        "job_id": judged.ours.job_id,
        "model": judged.ours.model,
        "model_version": judged.ours.model_version,
        "matched_by": judged.matched_by,
        "made_by": clean_text(judged.made_by, 256) or None,
        "dice": json.dumps(dict(judged.dice), sort_keys=True),
        "judged_at": database_now(),
    }
    statement = (
        update(Correction)
        .where(Correction.id == number, Correction.verdict == Verdict.PENDING)
        .values(**values)
        .returning(Correction.sop_instance_uid)
        .execution_options(synchronize_session=False)
    )
    corrected = tx.scalar(statement)
    if corrected is None:
        return False
    if judged.verdict is not Verdict.ACCEPTED:
        _supersede(tx, corrected, judged)
    return True


def overlay_series(tx: Transaction, ours: Instance) -> str | None:
    """The series that shows what a SEG of ours became: its own, its correction's; None = it was rejected."""
    statement = (
        select(Correction.verdict, Instance.series_instance_uid)
        .join(Instance, Instance.sop_instance_uid == Correction.sop_instance_uid)
        .where(Correction.result_uid.in_(_forms_of(tx, ours)))
        .where(Correction.verdict.in_((Verdict.MODIFIED, Verdict.REJECTED)))
        .order_by(Correction.id.desc())
    )
    last = tx.execute(statement).first()
    if last is None:
        return ours.series_instance_uid
    return None if last.verdict == Verdict.REJECTED else last.series_instance_uid


def _forms_of(tx: Transaction, ours: Instance) -> list[str]:
    """All forms in which a SEG of ours was made; the job numbers each form by series, the first without."""
    job = tx.get(Job, ours.origin_detail)
    named = (json.loads(job.summary) if job and job.summary else {}).get("sop_instance_uids") or {}
    numbers = {uid: name.partition(" ")[2] for name, uid in named.items() if name.startswith("seg")}
    mine = numbers.get(ours.sop_instance_uid)
    return [uid for uid, number in numbers.items() if number == mine] or [ours.sop_instance_uid]


def correction_counts(tx: Transaction) -> list[Count]:
    """Return how results were judged, by model and version."""
    keys = (Correction.model, Correction.model_version, Correction.verdict)
    statement = (
        select(*keys, func.count())
        .where(Correction.verdict != Verdict.PENDING, Correction.model.is_not(None))
        .group_by(*keys)
        .order_by(*keys)
    )
    rows = tx.execute(statement).all()
    return [Count(model or "", version or "", verdict, count) for model, version, verdict, count in rows]


def list_corrections(tx: Transaction, *, limit: int, offset: int) -> Sequence[Correction]:
    """Return what came, the newest first."""
    statement = select(Correction).order_by(Correction.id.desc()).limit(limit).offset(offset)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def _insert(tx: Transaction, record: InstanceRecord, values: Mapping[str, object]) -> None:
    insert = insert_into(tx, Correction).values(
        sop_instance_uid=record.sop_instance_uid,
        study_instance_uid=record.study_instance_uid,
        sender=record.origin.detail or record.origin.kind,
        received_at=database_now(),
        **values,
    )
    keys = [Correction.sop_instance_uid, Correction.result_uid]
    tx.execute(insert.on_conflict_do_nothing(index_elements=keys))


def _supersede(tx: Transaction, corrected: str, judged: Judgement) -> None:
    """Stop sending ours and what was drawn from it; who got it, or would have, gets the corrected object."""
    earlier = select(Correction.sop_instance_uid).where(
        Correction.result_uid.in_(judged.variants), Correction.sop_instance_uid != corrected
    )
    replaced = [*judged.variants, *tx.scalars(earlier)]
    statement = (
        select(Delivery.destination)
        .where(Delivery.sop_instance_uid.in_(replaced), Delivery.state != DeliveryState.WITHDRAWN)
        .distinct()
    )
    destinations = sorted(tx.scalars(statement))
    withdraw_deliveries(tx, [*replaced, *_drawn_from(tx, judged.ours)])
    if judged.verdict is Verdict.MODIFIED:
        for destination in destinations:
            queue_delivery(tx, corrected, destination, judged.ours.job_id)


def _drawn_from(tx: Transaction, ours: OwnObject) -> list[str]:
    """Other forms that the job's outline was sent in: pictures, presentation states; none for a report."""
    if ours.sop_class_uid not in SEGMENTATIONS:
        return []
    statement = select(Instance.sop_instance_uid).where(
        Instance.origin_kind == OWN_RESULT,
        Instance.origin_detail == ours.job_id,
        Instance.sop_class_uid.not_in((*SEGMENTATIONS, *REPORTS, KEY_OBJECT_SELECTION)),
    )
    return list(tx.scalars(statement))
