"""The rows of one instance that arrives, written in as few and as cheap statements as there can be."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Executable,
    String,
    bindparam,
    case,
    func,
    inspect,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute

from storage.database import Transaction, database_now
from storage.prepared import Prepared
from storage.records import InstanceRecord
from storage.tables import Instance, Rejection, Series, Study, Table
from storage.text import fold_name

Insert = sqlite.Insert | postgresql.Insert

_STUDY_ATTRIBUTES: Final = (
    "patient_id", "patient_name", "patient_birth_date", "patient_sex", "study_date", "study_time",
    "accession_number", "study_description", "study_id", "referring_physician_name",
    "patient_name_folded", "referring_physician_name_folded",
)  # fmt: skip
_SERIES_ATTRIBUTES: Final = (
    "study_instance_uid", "modality", "series_number", "series_description", "body_part_examined",
    "series_date", "series_time", "laterality", "is_own_result",
)  # fmt: skip
_INSTANCE_ATTRIBUTES: Final = (
    "series_instance_uid", "study_instance_uid", "sop_class_uid", "transfer_syntax_uid",
    "instance_number", "rows", "columns", "number_of_frames", "sha256", "size_bytes", "path",
    "origin_kind", "origin_detail", "patient_id",
)  # fmt: skip


_REOPENED: Final = ("completed_at", "complete_requested_by", "evidence", "outcome")  # empty again by an image


class Known(NamedTuple):
    """What the index held of an instance before it came; None = nothing."""

    sha256: str | None  # of the instance of this UID
    series_study_uid: str | None  # the study that the series belongs to
    patient_id: str | None  # of the study
    note_uid: str | None  # of a rejection note that names the instance


def known_of(tx: Transaction, record: InstanceRecord) -> Known:
    """Look up instance, series and study of `record` by their UIDs."""
    row = _KNOWN.run(
        tx,
        {
            "sop_instance_uid": record.sop_instance_uid,
            "series_instance_uid": record.series_instance_uid,
            "study_instance_uid": record.study_instance_uid,
        },
    ).fetchone()
    return Known(*row)


def upsert_study(tx: Transaction, record: InstanceRecord) -> None:
    """Enter the study, or fill its gaps; the quiet period begins again unless the instance is no image.

    The first non-empty value of an attribute stays. An earlier request to complete meant the instances of
    that moment, so it ends with a new one. The statement also locks the row.
    """
    study = record.study
    values = dict(vars(study))
    values["study_instance_uid"] = record.study_instance_uid
    values["patient_name_folded"] = fold_name(study.patient_name)
    values["referring_physician_name_folded"] = fold_name(study.referring_physician_name)
    if record.is_own_result or record.is_derived:
        _ADD_RESULT.run(tx, values)
    elif _TOUCH_STUDY.run(tx, values).rowcount == 0:
        _ADD_TO_STUDY.run(tx, values)


def insert_series(tx: Transaction, record: InstanceRecord) -> bool:
    """Enter the series; False if it is there already."""
    values = dict(vars(record.series))
    values["series_instance_uid"] = record.series_instance_uid
    values["study_instance_uid"] = record.study_instance_uid
    values["is_own_result"] = record.is_own_result
    return _INSERT_SERIES.run(tx, values).rowcount == 1


def insert_instance(tx: Transaction, record: InstanceRecord) -> bool:
    """Enter the instance; False if it is there already."""
    values = {**vars(record.image), **vars(record.stored)}
    values["sop_instance_uid"] = record.sop_instance_uid
    values["series_instance_uid"] = record.series_instance_uid
    values["study_instance_uid"] = record.study_instance_uid
    values["sop_class_uid"] = record.sop_class_uid
    values["transfer_syntax_uid"] = record.transfer_syntax_uid
    values["origin_kind"] = record.origin.kind
    values["origin_detail"] = record.origin.detail
    values["patient_id"] = record.study.patient_id
    return _INSERT_INSTANCE.run(tx, values).rowcount == 1


def _insert(table: type[Table], names: tuple[str, ...], **constants: Any) -> dict[str, Insert]:
    """INSERT of the key and `names` as parameters of the same names, in both dialects."""
    (key,) = _key_of(table)
    values = {name: bindparam(name) for name in (key, *names)} | constants
    return {
        "sqlite": sqlite.insert(table).values(values),
        "postgresql": postgresql.insert(table).values(values),
    }


def _key_of(table: type[Table]) -> list[str]:
    return [column.name for column in inspect(table).primary_key]


def _inserted_once(table: type[Table], names: tuple[str, ...], **constants: Any) -> Prepared:
    key = _key_of(table)
    inserts = _insert(table, names, **constants)
    return Prepared(
        **{name: each.on_conflict_do_nothing(index_elements=key) for name, each in inserts.items()}
    )


def _study_upserts(changed: Mapping[str, Any]) -> dict[str, Executable]:
    now = database_now()
    inserts = _insert(Study, _STUDY_ATTRIBUTES, version=1, created_at=now, last_received_at=now)
    return {
        name: insert.on_conflict_do_update(
            index_elements=[Study.study_instance_uid],
            set_={
                **{each: _first_known(insert, getattr(Study, each), each) for each in _STUDY_ATTRIBUTES},
                **changed,
            },
        )
        for name, insert in inserts.items()
    }


def _first_known(insert: Insert, column: InstrumentedAttribute[str], name: str) -> Any:
    return func.coalesce(func.nullif(column, ""), insert.excluded[name])


def _touch_statement() -> Executable:
    """UPDATE of a study that this image has nothing to add to but its time: no column of an index changes."""
    empty = literal_column("''", String)
    is_same = (
        or_(getattr(Study, name) != empty, bindparam(name, type_=String) == empty)
        for name in _STUDY_ATTRIBUTES
    )
    is_open = (getattr(Study, name).is_(None) for name in _REOPENED)
    return (
        update(Study)
        .where(Study.study_instance_uid == bindparam("study_instance_uid"), *is_same, *is_open)
        .values(last_received_at=database_now())
    )


def _known_statement() -> Executable:
    sha256 = select(Instance.sha256).where(Instance.sop_instance_uid == bindparam("sop_instance_uid"))
    study = select(Series.study_instance_uid).where(
        Series.series_instance_uid == bindparam("series_instance_uid")
    )
    patient = select(Study.patient_id).where(Study.study_instance_uid == bindparam("study_instance_uid"))
    note = (
        select(func.max(Rejection.note_uid))
        .where(Rejection.sop_instance_uid == bindparam("sop_instance_uid"))
        .where(Rejection.study_instance_uid == bindparam("study_instance_uid"))
    )
    return select(*(each.scalar_subquery() for each in (sha256, study, patient, note)))


_KNOWN: Final = Prepared(sqlite=_known_statement(), postgresql=_known_statement())
_ADD_RESULT: Final = Prepared(**_study_upserts({}))
_ADD_TO_STUDY: Final = Prepared(
    **_study_upserts(
        {
            "last_received_at": database_now(),
            "version": case((Study.completed_at.is_(None), Study.version), else_=Study.version + 1),
            **dict.fromkeys(_REOPENED, null()),
        }
    )
)
_TOUCH_STUDY: Final = Prepared(sqlite=_touch_statement(), postgresql=_touch_statement())
_INSERT_SERIES: Final = _inserted_once(Series, _SERIES_ATTRIBUTES)
_INSERT_INSTANCE: Final = _inserted_once(Instance, _INSTANCE_ATTRIBUTES, received_at=database_now())
