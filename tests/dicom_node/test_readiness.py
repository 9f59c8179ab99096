"""What processes report under HOME/run, as others read it."""

from pathlib import Path

import pytest

from dicom_node import readiness


def test_a_problem_stands_until_it_is_taken_back(tmp_path: Path) -> None:
    readiness.report(tmp_path, "fsync", "the disk did not flush")
    assert readiness.problems(tmp_path) == [readiness.Problem("fsync", "the disk did not flush")]
    readiness.report(tmp_path, "fsync", None)
    assert readiness.problems(tmp_path) == []


@pytest.mark.parametrize("left", ["", "null", "{}", '{"process": '])
def test_a_report_that_a_power_cut_cut_short_is_a_problem_all_the_same(tmp_path: Path, left: str) -> None:
    readiness.report(tmp_path, "fsync", "the disk did not flush")
    (file,) = (tmp_path / "run").iterdir()
    file.write_text(left)
    (problem,) = readiness.problems(tmp_path)
    assert problem.reason == "fsync"
    assert "cannot be read" in problem.sentence
