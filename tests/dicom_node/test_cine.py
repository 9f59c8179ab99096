from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_node import codes
from dicom_node.analysis import Result, analyse
from dicom_node.cine import NoStack, cine_grid
from dicom_node.frames import FrameLimits, join_series, load_series
from dicom_node.pipeline import OTHER_SERIES, Services, run_job
from dicom_node.reading import VENTRICLE, AnalysisRequest
from dicom_node.run_folder import RunOptions, run_paths
from dicom_node.ventricle import conclude
from inference.contract import Image, Prediction, Prompt
from storage.database import Database
from storage.files import DiskFiles
from storage.index import Origin, instances_of_study
from storage.jobs import JobRequest, claim_job, create_job
from storage.worklist import newest_jobs
from tests import builders
from tests.doors import make_receiver

SIZE = (60, 81)
QUERY = "Please outline the left ventricular cavity in this short-axis slice."
PIXEL_MM2 = 2.0  # builders.make_cine: 1 by 2 mm
HEART = {"diagnosis": None, "modality": "cardiac magnetic resonance image"}
Cine = list[list[Dataset]]


def cavity(radius: float) -> NDArray[np.bool_]:
    return builders.make_ellipse(SIZE, (30, 40), (radius, radius)) if radius else np.zeros(SIZE, bool)


def beating(radii: Sequence[Sequence[float]]) -> list[list[NDArray[np.bool_]]]:
    return [[cavity(radius) for radius in phases] for phases in radii]


BEAT = ((14, 9, 11), (12, 8, 10), (10, 5, 7), (7, 0, 5))  # [slice][phase]; the second phase is systole


def volume(phase: int, thickness: Sequence[float] = (8, 8, 8, 8)) -> float:
    areas = [cavity(phases[phase]).sum() * PIXEL_MM2 for phases in BEAT]
    return float(np.dot(areas, thickness)) / 1000


def one_series() -> Cine:
    return builders.make_cine(beating(BEAT))


def result_of(folder: Path, cine: Cine) -> Result:
    series = builders.as_loaded(folder, [dataset for phases in cine for dataset in phases])
    return analyse(series, builders.MaskPredictor(**HEART), AnalysisRequest(QUERY, VENTRICLE))


# ---- layouts of scanners: the same heart has to give the same numbers


def by_number(cine: Cine) -> None:
    """No trigger times: phases follow each other slice by slice."""
    for phases in cine:
        for dataset in phases:
            del dataset.TriggerTime


def phases_first(cine: Cine) -> None:
    """Numbered phase by phase; every trigger time is 0."""
    for place, phases in enumerate(cine):
        for phase, dataset in enumerate(phases):
            dataset.InstanceNumber = phase * len(cine) + place + 1
            dataset.TriggerTime = 0


def by_temporal_position(cine: Cine) -> None:
    """Temporal positions count; numbers run backwards."""
    for phases in cine:
        for phase, dataset in enumerate(phases):
            del dataset.TriggerTime
            dataset.TemporalPositionIdentifier = phase + 1
            dataset.InstanceNumber = 1000 - int(dataset.InstanceNumber)


def as_made(cine: Cine) -> None:
    """Trigger times, numbered slice by slice."""


LAYOUTS = [as_made, by_number, phases_first, by_temporal_position]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_series_with_all_phases(tmp_path: Path, layout: Callable[[Cine], None]) -> None:
    cine = one_series()
    layout(cine)
    summary = result_of(tmp_path, cine).summary
    assert summary["phase_volumes_ml"] == [pytest.approx(volume(phase), abs=0.06) for phase in range(3)]
    assert summary["end_diastolic_ml"] == pytest.approx(volume(0), abs=0.06)
    assert summary["end_systolic_ml"] == pytest.approx(volume(1), abs=0.06)
    fraction = 100 * (1 - volume(1) / volume(0))
    assert summary["ejection_fraction_percent"] == pytest.approx(fraction, abs=0.06)
    assert "volume_ml" not in summary  # a beating heart has one in each phase


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    result = result_of(
        tmp_path / "in", [[builders.make_enhanced([each for phases in one_series() for each in phases])]]
    )
    assert result.summary["end_diastolic_ml"] == pytest.approx(volume(0), abs=0.06)
    assert result.summary["end_systolic_ml"] == pytest.approx(volume(1), abs=0.06)
    for dataset in result.datasets:
        assert builders.standard_errors(tmp_path, dataset) == []


def apart(cine: Cine) -> Cine:
    """Each slice in a series of its own."""
    for place, phases in enumerate(cine):
        uid = generate_uid(entropy_srcs=[str(phases[0].SeriesInstanceUID), str(place)])
        for dataset in phases:
            dataset.SeriesInstanceUID, dataset.SeriesNumber = uid, 10 - place
    return cine


def test_one_series_a_slice(tmp_path: Path) -> None:
    cine = apart(one_series())
    parts = [
        load_series(builders.write_datasets(tmp_path / str(place), phases), FrameLimits())
        for place, phases in enumerate(cine)
    ]
    predictor = builders.MaskPredictor(**HEART)
    result = analyse(join_series(parts), predictor, AnalysisRequest(QUERY, VENTRICLE))
    assert result.summary["end_diastolic_ml"] == pytest.approx(volume(0), abs=0.06)
    referenced = [each.ReferencedSeriesSequence[0].SeriesInstanceUID for each in result.segmentations]
    assert referenced == [phases[0].SeriesInstanceUID for phases in cine]
    assert len({each.SOPInstanceUID for each in result.segmentations}) == 4
    assert len({each.SegmentSequence[0].TrackingUID for each in result.segmentations}) == 1
    for dataset in result.datasets:
        assert builders.standard_errors(tmp_path, dataset) == []


def test_a_study_with_one_series_a_slice_gives_one_report(database: Database, files_root: Path) -> None:
    cine = apart(one_series())
    long_axis = builders.make_cine(beating(((9, 6),)))[0]
    for dataset in long_axis:
        dataset.StudyInstanceUID = cine[0][0].StudyInstanceUID
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    receiver = make_receiver(database, files_root)
    stub = builders.MaskPredictor(**HEART)
    services = Services(database, receiver, DiskFiles(files_root), lambda _name: stub, FrameLimits(), ())
    everything = [*(dataset for phases in cine for dataset in phases), *long_axis]
    for dataset in everything:
        receiver.receive_part10([builders.part10(dataset)], Origin("IMPORT", "test"))
    job_ids = []
    with database.transaction() as tx:
        for uid in dict.fromkeys(str(dataset.SeriesInstanceUID) for dataset in everything):
            request = JobRequest(str(cine[0][0].StudyInstanceUID), 1, uid, "r", "stub", QUERY, VENTRICLE)
            job_ids.append(create_job(tx, request))
    for job_id in job_ids:
        with database.transaction() as tx:
            job = claim_job(tx, job_id or "", "worker", 30.0, 3)
        assert job is not None
        run_job(job, services)
    with database.reading() as tx:
        outcomes = sorted(str(job.outcome) for job in newest_jobs(tx))
        own = [row.sop_class_uid for row in instances_of_study(tx, str(cine[0][0].StudyInstanceUID))]
    assert outcomes == [OTHER_SERIES] * 3 + ["RESULT"] * 2  # the stack's and the long axis'
    assert own.count("1.2.840.10008.5.1.4.1.1.66.4") == 5
    assert own.count("1.2.840.10008.5.1.4.1.1.88.34") == 2


def test_folder_with_one_series_a_slice(tmp_path: Path) -> None:
    cine = apart(one_series())
    paths = builders.write_datasets(tmp_path / "in", [dataset for phases in cine for dataset in phases])
    options = RunOptions(lambda _name: builders.MaskPredictor(**HEART), model="stub", query=QUERY)
    with_target = run_paths(paths, tmp_path / "none", options)
    assert {summary["outcome"] for summary in with_target} == {"RESULT"}  # nobody said that it is a heart
    route = builders.route(model="stub", query=QUERY, target=VENTRICLE)
    summaries = run_paths(paths, tmp_path / "out", replace(options, model=None, query=None, routes=(route,)))
    (lead,) = [summary for summary in summaries if summary["outcome"] == "RESULT"]
    assert lead["end_systolic_ml"] == pytest.approx(volume(1), abs=0.06)
    assert {summary["outcome"] for summary in summaries} == {"RESULT", OTHER_SERIES}
    assert len({path.name for path in (tmp_path / "out").glob("*seg*.dcm")}) == 4


# ---- what the phases allow


def test_gaps_between_slices_are_counted(tmp_path: Path) -> None:
    cine = one_series()
    for dataset in cine[3]:
        dataset.ImagePositionPatient = [0, 0, 32]  # the slice at 24 mm is missing
    summary = result_of(tmp_path, cine).summary
    assert summary["end_diastolic_ml"] == pytest.approx(volume(0, (8, 8, 12, 16)), abs=0.06)
    assert any("unevenly spaced" in str(remark) for remark in summary["remarks"])  # type: ignore[union-attr]


def one_phase(cine: Cine) -> Cine:
    return [phases[:1] for phases in cine]


def a_phase_missing(cine: Cine) -> Cine:
    return [*cine[:-1], cine[-1][:2]]


def two_beats(cine: Cine) -> Cine:
    for phases in cine:
        phases[-1].TriggerTime = 4000
    return cine


def two_echoes(cine: Cine) -> Cine:
    for phases in cine:
        phases[-1].EchoTime = 20
    return cine


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (one_phase, "there is one phase of the heart beat only"),
        (a_phase_missing, "the slices have different numbers of phases (2 to 3)"),
        (two_beats, "span more than one heart beat"),
        (two_echoes, "differ in Echo Time"),
    ],
)
def test_without_phases_only_the_volume_and_why(
    tmp_path: Path, change: Callable[[Cine], Cine], why: str
) -> None:
    result = result_of(tmp_path / "in", change(one_series()))
    assert result.summary["volume_ml"] == pytest.approx(volume(0), abs=0.06)
    assert "ejection_fraction_percent" not in result.summary
    assert "conclusion" not in result.summary
    assert any(why in remark for remark in result.findings.remarks), result.findings.remarks
    assert builders.standard_errors(tmp_path, result.report) == []


def test_one_plane_is_no_volume(tmp_path: Path) -> None:
    result = result_of(tmp_path, one_series()[:1])
    assert "volume_ml" not in result.summary
    assert "All frames lie in one plane, so no volume is measured." in result.findings.remarks
    assert result.findings.ventricle is None


def test_planes_that_are_not_parallel_are_no_stack(tmp_path: Path) -> None:
    cine = one_series()
    cine[0][0].ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    series = builders.as_loaded(tmp_path, [dataset for phases in cine for dataset in phases])
    with pytest.raises(NoStack):
        cine_grid(series.frames)


# ---- what the report says


def number(dataset: Dataset, meaning: str) -> tuple[float, str, list[int]]:
    (group,) = [item for item in dataset.ContentSequence[-1].ContentSequence if item.ValueType == "CONTAINER"]
    (item,) = [
        item
        for item in group.ContentSequence
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]
    value = item.MeasuredValueSequence[0]
    frames = item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber
    return float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue, list(frames)


def test_report_says_volumes_fraction_and_what_follows(tmp_path: Path) -> None:
    cine = one_series()
    result = result_of(tmp_path / "in", cine)
    report = result.report
    assert builders.standard_errors(tmp_path, report) == []
    diastolic = number(report, codes.END_DIASTOLIC_VOLUME.meaning)
    assert diastolic == (pytest.approx(volume(0), rel=1e-3), "mL", [1, 4, 7, 10])
    systolic = number(report, codes.END_SYSTOLIC_VOLUME.meaning)
    assert systolic == (pytest.approx(volume(1), rel=1e-3), "mL", [2, 5, 8])  # the apex is empty then
    assert number(report, codes.STROKE_VOLUME.meaning)[0] == pytest.approx(volume(0) - volume(1), rel=1e-3)
    assert number(report, codes.EJECTION_FRACTION.meaning)[1] == "%"
    text = builders.report_text(tmp_path, report)
    assert "No diagnosis is made by the model." in text
    assert "not reduced. Cut-offs" in text
    assert "Derived from the measurement, not said by the model; research use only." in text
    assert "Certainty of Impression" not in text
    assert "Depression of left ventricular systolic function" in text
    assert result.summary["diagnosis"] is None
    assert result.summary["confidence"] is None
    key = result.summary["key_frame"]
    assert key["sop_instance_uid"] == cine[0][0].SOPInstanceUID  # type: ignore[index]


class Untold(builders.MaskPredictor):
    """Says diastole and systole alike: nothing beats."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        return replace(super().predict(image, prompt), mask=cavity(10), has_region=True)


@pytest.mark.parametrize(
    ("percent", "label", "answer"),
    [
        (0.0, "reduced", codes.PRESENT),
        (40.4, "reduced", codes.PRESENT),
        (40.6, "mildly reduced", codes.MILD),
        (49.4, "mildly reduced", codes.MILD),
        (49.5, "not reduced", codes.ABSENT),
        (58.0, "not reduced", codes.ABSENT),
    ],
)
def test_cut_offs(tmp_path: Path, percent: float, label: str, answer: Any) -> None:
    result = result_of(tmp_path, one_series())
    ventricle = result.findings.ventricle
    assert ventricle is not None
    given = replace(ventricle, volumes_ml=(100.0, 100.0 - percent), end_diastole=0, end_systole=1)
    conclusion = conclude(given)
    assert conclusion is not None
    assert (conclusion.label, conclusion.answer) == (label, answer)


def test_a_heart_that_does_not_move_is_said_to_be_reduced(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path, [dataset for phases in one_series() for dataset in phases])
    summary = analyse(series, Untold(**HEART), AnalysisRequest(QUERY, VENTRICLE)).summary
    assert summary["ejection_fraction_percent"] == 0.0
    assert summary["conclusion_label"] == "left ventricular function reduced"
