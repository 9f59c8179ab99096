"""The story, once, with real processes: C-STORE in, SEG and SR out."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.demo_pacs import DemoPacs, open_pacs
from tests.builders import make_ellipse, make_stack, make_ultrasound, write_datasets
from tests.flow.nodes import Node, destination, find_free_port, node_config, running_node, until

CANARY = "CANARYNAME"


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[tuple[Node, DemoPacs]]:
    """A node whose results go to a PACS."""
    folder = tmp_path_factory.mktemp("flow")
    port = find_free_port()
    config = node_config(find_free_port, tiny_models, destinations=[destination(port)])
    with open_pacs(folder / "pacs", port) as pacs, running_node(folder / "node", config) as node:
        yield node, pacs


def test_a_study_in_a_mask_and_a_diagnosis_out(flow: tuple[Node, DemoPacs], tmp_path: Path) -> None:
    node, pacs = flow
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


def jobs_of(node: Node, dataset: Dataset) -> list[dict[str, Any]]:
    return [job for job in node.jobs() if job["study_instance_uid"] == dataset.StudyInstanceUID]


def test_a_stack_of_slices_and_a_late_one(flow: tuple[Node, DemoPacs], tmp_path: Path) -> None:
    node, pacs = flow
    slices = make_stack([make_ellipse((64, 64), (30, 32), (10, 9))] * 3)
    paths = write_datasets(tmp_path / "in", slices[:2])
    before = len(pacs.arrivals())
    node.send(paths)
    until(lambda: jobs_of(node, slices[0]), "the study to be complete")
    node.wait_for_jobs()
    late = write_datasets(tmp_path / "late", slices[2:])
    node.send(late)
    until(lambda: len(jobs_of(node, slices[0])) == 2, "the study to be complete again")
    node.wait_for_jobs()
    jobs = jobs_of(node, slices[0])
    assert sorted(job["study_version"] for job in jobs) == [1, 2]
    newest = max(jobs, key=lambda job: job["study_version"])
    assert newest["summary"]["inputs"]["count"] == 3
    until(lambda: len(pacs.arrivals()) - before == 4, "both results at the PACS")


def is_open_to_others(path: Path) -> bool:
    try:
        return bool(path.lstat().st_mode & 0o077)
    except FileNotFoundError:  # a message of the broker that was read meanwhile
        return False


def test_what_a_node_writes_is_for_its_own_user_only(flow: tuple[Node, DemoPacs]) -> None:
    made = list(flow[0].settings.home.rglob("*"))
    assert {"node.sqlite", "logs", "run", "broker", "files"} <= {path.name for path in made}
    assert [path for path in made if is_open_to_others(path)] == []
