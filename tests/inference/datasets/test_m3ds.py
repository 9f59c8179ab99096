"""The manifest becomes records; leakage in it is refused."""

from pathlib import Path

import pytest

from inference.datasets.m3ds import KINDS, load_records
from inference.datasets.splits import SplitError
from inference.prompts import DIAGNOSES, TARGETS
from tests.inference.datasets import tiny_data


def test_records_say_what_is_to_be_learnt(tmp_path: Path) -> None:
    records = {record.name: record for record in load_records(tiny_data.write(tmp_path))}
    assert records["b1"].diagnosis == "benign"
    assert records["b1"].mask == tmp_path / "train" / "b1-mask.png"
    assert records["f1"].mask is None  # no fracture: nothing to outline
    assert records["i1"].mask is None  # no masks in dermoscopy
    assert records["s1"].diagnosis is None  # the patient's label says nothing about a slice
    assert (
        sum(record.split == "val" for record in records.values() if record.dataset == "sunnybrook_cmr") == 2
    )


def test_a_leaking_manifest_is_refused(tmp_path: Path) -> None:
    rows = (("train", "busbra", "b1", "benign", "p1"), ("val", "busbra", "b2", "benign", "p1"))
    with pytest.raises(SplitError):
        load_records(tiny_data.write(tmp_path, rows))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_speaks_the_closed_wording(name: str) -> None:
    kind = KINDS[name]
    assert kind.modality in TARGETS
    assert len(set(kind.queries)) >= 8
    assert len(DIAGNOSES) == len(set(DIAGNOSES))
