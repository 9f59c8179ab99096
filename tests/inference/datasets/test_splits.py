"""A patient never stands on both sides, and the held-out ones are the same everywhere."""

from dataclasses import dataclass

import pytest

from inference.datasets.splits import SplitError, check_no_leakage, hash_order, held_out


@dataclass(frozen=True)
class Row:
    dataset: str
    split: str
    patient: str


def test_leakage_is_refused() -> None:
    rows = [Row("busbra", "train", "p1"), Row("busbra", "train", "p1"), Row("busbra", "val", "p1")]
    with pytest.raises(SplitError, match="patient p1 of busbra"):
        check_no_leakage(rows)


def test_same_name_in_another_data_set_or_no_name_is_no_leakage() -> None:
    check_no_leakage(
        [Row("a", "train", "p"), Row("b", "val", "p"), Row("a", "val", ""), Row("a", "train", "")]
    )


def test_held_out_share_is_fixed_by_hash() -> None:
    names = [f"patient-{i}" for i in range(30)]
    chosen = held_out("sunnybrook_cmr", names)
    assert len(chosen) == 6
    assert chosen == held_out("sunnybrook_cmr", reversed(names * 3))
    assert held_out("busbra", names) == frozenset()
    assert hash_order(["a", "b", "c"]) == hash_order(["c", "a", "b", "b"])
