"""Real images in by DCMTK's storescu, SEG and SR at Orthanc: the same masks as `dicom-node run` gives."""

import io
import json
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from tests.flow.conftest import SENT, Hospital, RealStudy
from tests.flow.nodes import command

pytestmark = [pytest.mark.shared, pytest.mark.timeout(400)]
NAMES = [sent[0] for sent in SENT]


def masks_of(file: bytes, uids: list[str]) -> dict[str, NDArray[np.bool_]]:
    """The mask of each source instance, read from a SEG by highdicom."""
    seg = hd.seg.segread(io.BytesIO(file))
    return {
        uid: seg.get_pixels_by_source_instance([uid], assert_missing_frames_are_empty=True)[0].any(axis=-1)
        for uid in uids
    }


def dice(found: NDArray[np.bool_], known: NDArray[np.bool_]) -> float:
    total = int(found.sum()) + int(known.sum())
    return 2 * int((found & known).sum()) / total if total else 1.0


def scores(file: bytes, study: RealStudy) -> dict[str, float]:
    found = masks_of(file, list(study.known_masks))
    return {uid: dice(found[uid], known) for uid, known in study.known_masks.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_seg_at_the_pacs_is_that_of_the_command_line(
    hospital: Hospital, name: str, tmp_path: Path
) -> None:
    (study,) = [study for study in hospital.studies if study.name == name]
    (at_pacs,) = hospital.orthanc.instances(study.study_instance_uid, "SEG")
    repository = str(hospital.node.settings.inference.model_repository)
    config = tmp_path / "run.toml"
    config.write_text(f"[inference]\nmodel_repository = {json.dumps(repository)}\n", encoding="utf-8")
    paths = [str(path) for path in study.paths]
    (summary,) = json.loads(
        command("run", *paths, "--out", str(tmp_path / "out"), "--config", str(config), "--json")
    )
    by_command = Path(summary["files"]["seg"]).read_bytes()

    assert scores(at_pacs, study) == scores(by_command, study)
    uid = pydicom.dcmread(io.BytesIO(at_pacs), stop_before_pixels=True).SOPInstanceUID
    assert uid == summary["sop_instance_uids"]["seg"]
    print(
        name,
        {key[-6:]: round(score, 3) for key, score in scores(at_pacs, study).items()},
        summary["diagnosis"],
    )


def test_the_masks_are_about_the_images(hospital: Hospital) -> None:
    """Not an accuracy measurement (that is the model card's), but no nonsense either."""
    values = [
        score
        for study in hospital.studies
        for file in hospital.orthanc.instances(study.study_instance_uid, "SEG")
        for score in scores(file, study).values()
    ]
    assert len(values) == 6
    assert np.mean(values) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_sr_at_the_pacs_refers_to_the_seg(hospital: Hospital, name: str) -> None:
    (study,) = [study for study in hospital.studies if study.name == name]
    (seg_file,) = hospital.orthanc.instances(study.study_instance_uid, "SEG")
    (sr_file,) = hospital.orthanc.instances(study.study_instance_uid, "SR")
    seg = pydicom.dcmread(io.BytesIO(seg_file), stop_before_pixels=True)
    report = hd.sr.srread(io.BytesIO(sr_file))
    referenced = {
        str(item.ReferencedSOPInstanceUID)
        for evidence in report.CurrentRequestedProcedureEvidenceSequence
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert str(seg.SOPInstanceUID) in referenced
    assert set(study.known_masks) <= referenced


def test_the_node_shows_what_the_pacs_has(hospital: Hospital) -> None:
    for study in hospital.studies:
        found = hospital.node.get_json(f"/dicom-web/studies/{study.study_instance_uid}/series")
        assert {"SEG", "SR"} <= {series["00080060"]["Value"][0] for series in found}
