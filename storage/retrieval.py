"""What an answer needs to know of stored instances, in as few columns as will do.

A series of 1,000 is common. Instances that were rejected or withdrawn are not given;
one that was replaced only by its series or UID.
"""

from functools import cache
from typing import Final, NamedTuple

from sqlalchemy import bindparam, or_, select

from storage.database import Transaction
from storage.prepared import Prepared
from storage.tables import Instance


class KeptInstance(NamedTuple):
    """One instance that is here: its UIDs, its shape and its file."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    rows: int | None
    columns: int | None
    number_of_frames: int | None
    sha256: str
    size_bytes: int
    path: str


_COLUMNS: Final = tuple(getattr(Instance, name) for name in KeptInstance._fields)
_ORDER: Final = (
    Instance.series_instance_uid,
    Instance.instance_number.nulls_last(),
    Instance.sop_instance_uid,
)
_IS_CURRENT: Final = Instance.retired_as.is_(None)
_IS_SHOWN: Final = or_(_IS_CURRENT, Instance.retired_as == "SUPERSEDED")


def kept_instances(
    tx: Transaction,
    study_instance_uid: str,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
) -> list[KeptInstance]:
    """Return the instances of a study, of one of its series, or one of them, series by series in order."""
    named = {"study": study_instance_uid, "series": series_instance_uid, "instance": sop_instance_uid}
    values = {name: uid for name, uid in named.items() if uid is not None}
    return [KeptInstance._make(row) for row in _prepared(tuple(values)).run(tx, values).fetchall()]


@cache
def _prepared(names: tuple[str, ...]) -> Prepared:
    shown = _IS_CURRENT if names == ("study",) else _IS_SHOWN
    columns = {
        "study": Instance.study_instance_uid,
        "series": Instance.series_instance_uid,
        "instance": Instance.sop_instance_uid,
    }
    equal = [columns[name] == bindparam(name) for name in names]
    statement = select(*_COLUMNS).where(shown, *equal).order_by(*_ORDER)
    return Prepared(sqlite=statement, postgresql=statement)
