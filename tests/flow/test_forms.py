"""Orthanc and DCMTK's storescp with different profiles: each gets its forms, and takes them."""

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pypdf
import pytest
from pydicom.dataset import Dataset

from storage.deliveries import DeliveryState
from storage.worklist import newest_deliveries
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.flow.nodes import (
    Node,
    destination,
    find_free_port,
    is_listening,
    node_config,
    running_node,
    until,
)
from tests.flow.orthanc import AE_TITLE as ORTHANC_AE_TITLE
from tests.flow.orthanc import running_orthanc

MODALITIES = ("SEG", "SR", "OT", "PR", "KO", "DOC")
AT_ORTHANC = ["SEG", "SR", "SC", "GSPS", "KOS", "PDF"]
AT_STORESCP = ["SEG_LABELMAP", "SR", "SC"]


@dataclass(frozen=True)
class Sent:
    """What went in, and what each destination has."""

    node: Node
    source: Dataset
    at_orthanc: dict[str, Dataset]  # by modality
    at_storescp: dict[str, Dataset]
    unmatched: Dataset  # of a study that no rule matches
    told: list[Dataset]  # what the storescp has of it; it asks to be told
    told_orthanc: list[bytes]  # what Orthanc has of it; it does not


@contextmanager
def running_storescp(folder: Path) -> Iterator[int]:
    """DCMTK's storescp, which writes into `folder`; gives its port. It takes classes it does not know."""
    folder.mkdir()
    port = find_free_port()
    command = ["storescp", "-pm", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"})
    try:
        until(lambda: is_listening(port), "storescp to listen")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_delivered(node: Node) -> bool:
    with node.database.reading() as tx:
        rows = newest_deliveries(tx)
    return bool(rows) and {row.state for row in rows} == {DeliveryState.DELIVERED}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Sent]:
    folder = tmp_path_factory.mktemp("forms")
    source = make_ultrasound()
    (path,) = write_datasets(folder / "in", [source])
    with running_orthanc(folder / "orthanc") as orthanc, running_storescp(folder / "scp") as port:
        first = destination(orthanc.dicom_port, ORTHANC_AE_TITLE) | {"forms": AT_ORTHANC}
        second = destination(port, "STORESCP") | {
            "name": "archive",
            "forms": AT_STORESCP,
            "reports_unmatched": True,
        }
        config = node_config(find_free_port, tiny_models, destinations=[first, second])
        with running_node(folder / "node", config) as node:
            node.send([path])
            node.wait_for_jobs()
            until(lambda: is_delivered(node), "every form to be at its destination")
            unmatched = make_ultrasound(make_ellipse((60, 81), (20, 30), (9, 7)))
            unmatched.BodyPartExamined = "THYROID"
            (other,) = write_datasets(folder / "other", [unmatched])
            node.send([other])
            node.wait_for_jobs(2)
            until(lambda: is_delivered(node), "the outcome to be at its destination")
            study = str(source.StudyInstanceUID)
            files = {name: orthanc.instances(study, name) for name in MODALITIES}
            at_orthanc = {name: pydicom.dcmread(io.BytesIO(file)) for name in files for file in files[name]}
            files_kept = [pydicom.dcmread(file) for file in (folder / "scp").iterdir()]
            kept = {str(each.Modality): each for each in files_kept if each.StudyInstanceUID == study}
            told = [each for each in files_kept if each.StudyInstanceUID != study]
            told_orthanc = orthanc.instances(str(unmatched.StudyInstanceUID), "SR")
            yield Sent(node, source, at_orthanc, kept, unmatched, told, told_orthanc)


def test_each_destination_has_what_its_profile_says(sent: Sent) -> None:
    assert set(sent.at_orthanc) == set(MODALITIES)
    assert set(sent.at_storescp) == {"SEG", "SR", "OT"}
    assert sent.at_orthanc["SEG"].SegmentationType == "BINARY"
    assert sent.at_storescp["SEG"].SegmentationType == "LABELMAP"
    with sent.node.database.reading() as tx:
        rows = newest_deliveries(tx)
    assert {row.last_status for row in rows} == {"0x0000"}
    assert sorted(row.destination for row in rows) == ["archive"] * 4 + ["pacs"] * 6


def test_what_is_there_refers_only_to_what_is_there(sent: Sent) -> None:
    for held in (sent.at_orthanc, sent.at_storescp):
        known = {str(sent.source.SOPInstanceUID), *(str(each.SOPInstanceUID) for each in held.values())}
        for dataset in held.values():
            named = {str(e.value) for e in dataset.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
            assert named, dataset.Modality
            assert named <= known, dataset.Modality
        references = {str(e.value) for e in held["SR"].iterall() if e.keyword == "ReferencedSOPInstanceUID"}
        assert str(held["SEG"].SOPInstanceUID) in references


def test_both_say_the_same(sent: Sent) -> None:
    masks = [held["SEG"].pixel_array > 0 for held in (sent.at_orthanc, sent.at_storescp)]
    assert masks[0].any()
    assert np.array_equal(masks[0], masks[1])
    groups = []
    for held in (sent.at_orthanc, sent.at_storescp):
        report = highdicom.sr.Comprehensive3DSR.from_dataset(held["SR"])
        (group,) = report.content.get_planar_roi_measurement_groups()
        groups.append((group.tracking_uid, [(m.name.meaning, m.value) for m in group.get_measurements()]))
    assert groups[0] == groups[1]
    assert sent.at_orthanc["OT"].SOPInstanceUID == sent.at_storescp["OT"].SOPInstanceUID
    assert sent.at_orthanc["OT"].PixelData == sent.at_storescp["OT"].PixelData


def test_the_page_can_be_read_where_it_arrived(sent: Sent) -> None:
    (page,) = pypdf.PdfReader(io.BytesIO(sent.at_orthanc["DOC"].EncapsulatedDocument)).pages
    assert "AI result, research use only" in page.extract_text()


def test_the_node_keeps_all_forms_and_shows_them(sent: Sent) -> None:
    found = sent.node.get_json(f"/dicom-web/studies/{sent.source.StudyInstanceUID}/series")
    shown = sorted(series["00080060"]["Value"][0] for series in found)
    assert shown == sorted(["US", "SEG", "SEG", "SR", "SR", "OT", "PR", "KO", "DOC"])
    (job,) = [job for job in sent.node.jobs() if job["state"] == "COMPLETED"]
    uids = job["summary"]["sop_instance_uids"]
    assert uids["seg"] == sent.at_orthanc["SEG"].SOPInstanceUID
    assert uids["sr"] == sent.at_orthanc["SR"].SOPInstanceUID


def test_a_study_that_no_rule_matches_is_told_to_whom_asks_for_it(sent: Sent) -> None:
    (report,) = sent.told
    assert sent.told_orthanc == []
    assert report.StudyInstanceUID == sent.unmatched.StudyInstanceUID
    texts = [
        str(item.TextValue) for item in report.ContentSequence[-1].ContentSequence if "TextValue" in item
    ]
    assert texts[0].startswith(
        "Not analysed, no rule asks for it: breast-ultrasound: body part is not BREAST"
    )
    workitems = sent.node.get_json("/dicom-web/workitems?ProcedureStepState=CANCELED")
    assert len(workitems) == 1
    assert "body part is not BREAST" in sent.node.get("/operator")[1].decode()
