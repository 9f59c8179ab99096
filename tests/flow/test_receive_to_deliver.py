"""The story, once, with real processes: C-STORE in, SEG and SR out."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import highdicom as hd
import pydicom
import pytest

from dicom_node.demo_pacs import DemoPacs
from tests.builders import make_ellipse, make_stack, make_ultrasound, write_datasets
from tests.flow.nodes import Node, destination, node_config, running_node, until

CANARY = "CANARYNAME"


@pytest.fixture
def node(
    tmp_path: Path, free_port: Callable[[], int], tiny_models: Path, pacs: DemoPacs, pacs_port: int
) -> Iterator[Node]:
    config = node_config(free_port, tiny_models, destinations=[destination(pacs_port)])
    with running_node(tmp_path / "node", config) as running:
        yield running


def test_a_study_in_a_mask_and_a_diagnosis_out(node: Node, pacs: DemoPacs, tmp_path: Path) -> None:
    ultrasound = make_ultrasound()
    ultrasound.PatientName, ultrasound.PatientID, ultrasound.AccessionNumber = f"{CANARY}^A", CANARY, CANARY
    (path,) = write_datasets(tmp_path / "in", [ultrasound])
    assert [status.status for status in node.send([path])] == [0x0000]
    started = time.monotonic()
    until(lambda: {arrival.kind for arrival in pacs.arrivals()} == {"SEG", "SR"}, "SEG and SR at the PACS")
    seconds = time.monotonic() - started

    (job,) = node.jobs()
    assert (job["state"], job["outcome"], job["attempts"]) == ("COMPLETED", "RESULT", 1)
    by_kind = {arrival.kind: pydicom.dcmread(arrival.path) for arrival in pacs.arrivals()}
    assert by_kind["SEG"].StudyInstanceUID == by_kind["SR"].StudyInstanceUID == ultrasound.StudyInstanceUID
    assert job["summary"]["sop_instance_uids"] == {
        "seg": by_kind["SEG"].SOPInstanceUID, "sr": by_kind["SR"].SOPInstanceUID,
    }  # fmt: skip
    assert hd.seg.segread(
        pacs.arrivals()[0].path if pacs.arrivals()[0].kind == "SEG" else pacs.arrivals()[1].path
    )
    assert seconds < 60

    found = node.get_json(f"/dicom-web/studies/{ultrasound.StudyInstanceUID}/series")
    assert {series["00080060"]["Value"][0] for series in found} == {"US", "SEG", "SR"}

    # The same instance again is a success, and no new work.
    assert [status.status for status in node.send([path])] == [0x0000]
    time.sleep(1.5)
    assert len(node.jobs()) == 1
    assert len(pacs.arrivals()) == 2
    assert json.loads(node.command("fsck", "--json"))["is_sound"] is True
    (listed,) = json.loads(node.command("jobs", "--json"))
    assert listed["summary"]["diagnosis"] == "benign"
    assert CANARY not in node.logs()
    assert CANARY not in node.command("jobs", "--json")


def test_a_stack_of_slices_and_a_late_one(node: Node, pacs: DemoPacs, tmp_path: Path) -> None:
    slices = make_stack([make_ellipse((64, 64), (30, 32), (10, 9))] * 3)
    paths = write_datasets(tmp_path / "in", slices[:2])
    node.send(paths)
    node.wait_for_jobs(1)
    late = write_datasets(tmp_path / "late", slices[2:])
    node.send(late)
    jobs = node.wait_for_jobs(2)
    assert sorted(job["study_version"] for job in jobs) == [1, 2]
    newest = max(jobs, key=lambda job: job["study_version"])
    assert newest["summary"]["inputs"]["count"] == 3
    until(lambda: len(pacs.arrivals()) == 4, "both results at the PACS")
