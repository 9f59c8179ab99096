"""Patient-level splits, fixed by hash; refuses leakage.

The manifest's own split stands where it has one; data sets without validation rows
(`HELD_OUT_SHARE`) lose a fixed share of their patients, chosen by the hash of the patient's name.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

# 6 of 30 patients; 24 of 204 images.
HELD_OUT_SHARE: dict[str, float] = {"sunnybrook_cmr": 0.2, "usgra_nerve": 0.12}


class SplitError(Exception):
    """A patient stands on both sides of a split."""


class Owned(Protocol):
    """What a split needs to know of a record."""

    @property
    def dataset(self) -> str:
        """Which set it belongs to."""

    @property
    def split(self) -> str:
        """`train` or `val`."""

    @property
    def patient(self) -> str:
        """Whose image it is; empty where that is not known."""


def hash_order(names: Iterable[str]) -> list[str]:
    """Distinct `names`, ordered by their SHA-256: random to look at, the same on every machine."""
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def held_out(dataset: str, owners: Iterable[str]) -> frozenset[str]:
    """The owners (patients, or image ids where none is known) that `dataset` keeps for validation."""
    ordered = hash_order(owners)
    return frozenset(ordered[: round(HELD_OUT_SHARE.get(dataset, 0.0) * len(ordered))])


def check_no_leakage(records: Iterable[Owned]) -> None:
    """Raise SplitError if one patient of one data set has records in train and in val.

    Records without a patient cannot be checked; FracAtlas and ISIC have none (data/README.md).
    """
    sides: dict[tuple[str, str], str] = {}
    for record in records:
        if not record.patient:
            continue
        side = sides.setdefault((record.dataset, record.patient), record.split)
        if side != record.split:
            raise SplitError(
                f"patient {record.patient} of {record.dataset} stands in {side} and in {record.split}"
            )
