"""5-8. run_job(): load -> preprocess -> run -> SEG/SR -> store, one screen long."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.frames import IMAGER_PIXEL_SPACING, Frame, FrameLimits, NotSuitable, SourceSeries, load_series
from dicom_node.make_dicom import SeriesDetails, build_series
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.receive import Receiver
from dicom_node.regions import measure, volume_ml
from dicom_node.seg import SegmentationRequest, build_segmentation
from dicom_node.sr import Findings, Region, build_report
from inference.contract import Image, Prediction, Predictor, Prompt
from inference.errors import InputRejected
from storage.database import Database
from storage.deliveries import queue_delivery
from storage.index import instances_of_series
from storage.jobs import ClaimedJob, cancel_job, complete_job
from storage.part10 import absolute

RESULT, NO_FINDING, NOT_SUITABLE = "RESULT", "NO FINDING", "NOT SUITABLE"
FRAMES_AT_ONCE: Final = 8  # images handed to the predictor in one call: bounds what it may hold
MIN_REGION_PX: Final = 4  # fewer pixels than this are no region


@dataclass(frozen=True)
class AnalysisRequest:
    """What to ask of a series; `target` is what the rule expects, for an answer without one."""

    query: str
    target: str | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What one analysis gives: the objects to store and what people and machines read first."""

    segmentation: Dataset | None
    report: Dataset
    findings: Findings
    summary: dict[str, object]
    outcome: str  # RESULT or NO FINDING; a series that cannot be analysed raises NotSuitable instead

    @property
    def datasets(self) -> list[Dataset]:
        """The objects in the order in which they refer to each other."""
        return [self.report] if self.segmentation is None else [self.segmentation, self.report]


@dataclass(frozen=True, eq=False)
class Services:
    """What run_job needs around it."""

    database: Database
    receiver: Receiver
    files_root: Path
    open_predictor: Callable[[str], Predictor]
    frame_limits: FrameLimits
    destinations: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Reading:
    """What the predictor said about a series."""

    key: Frame
    prediction: Prediction  # of the key frame: its text, diagnosis and confidence are the result's
    masks: list[NDArray[np.bool_]]  # one (H, W) per frame

    @property
    def has_region(self) -> bool:
        return any(mask.any() for mask in self.masks)


def run_job(job: ClaimedJob, services: Services) -> None:
    """One attempt at a job: objects, completion and deliveries are stored in one transaction, or nothing is.

    Raises
    ------
    LeaseLost
        If another worker claimed the job meanwhile; nothing of this attempt is stored.
    """
    predictor = services.open_predictor(job.model)
    try:
        series = load_series(_paths(job, services), services.frame_limits)
        result = analyse(series, predictor, AnalysisRequest(job.query, job.target or None))
    except (NotSuitable, InputRejected) as error:
        with services.database.transaction() as tx:
            cancel_job(tx, job.job_id, job.fence, NOT_SUITABLE, str(error))
        return
    with services.database.transaction() as tx:
        stored = services.receiver.receive_own_results(tx, result.datasets, job.job_id)
        complete_job(
            tx, job.job_id, job.fence, result.outcome, result.summary, model_version=predictor.version
        )
        for sop_instance_uid in stored:
            for destination in services.destinations:
                queue_delivery(tx, sop_instance_uid, destination, job.job_id)


def warm_up() -> None:
    """Make one tiny segmentation, so that highdicom reads its tables (1 s) before the first job."""
    (source,) = build_series([np.zeros((8, 8), np.uint8)], SeriesDetails(modality="US"))
    frame = Frame(np.zeros((8, 8), np.uint8), source, None, None, "", None, None, None)
    model = ModelIdentity("warm-up", "0", "0" * 64)
    provenance = Provenance(str(source.StudyInstanceUID), str(source.SeriesInstanceUID), (), model, "")
    series = SourceSeries((source,), (frame,), (), ())
    build_segmentation(series, [np.ones((8, 8), bool)], SegmentationRequest(None, "", provenance))


def _paths(job: ClaimedJob, services: Services) -> list[Path]:
    with services.database.reading() as tx:
        rows = instances_of_series(tx, job.series_instance_uid)
        return [absolute(services.files_root, row.path) for row in rows]


def analyse(series: SourceSeries, predictor: Predictor, request: AnalysisRequest) -> Result:
    """Run `predictor` on every frame and put what it says into a SEG and an SR."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "run"):
        reading = _read(series, predictor, Prompt(request.query))
    provenance = _provenance(series, predictor, request)
    findings = _findings(series, reading, request)
    with _timed(seconds, "seg"):
        segmentation = _segmentation(series, reading, findings, provenance)
    with _timed(seconds, "sr"):
        report = build_report(series, segmentation, findings, provenance)
    summary = _summary(series, findings, provenance)
    summary["sop_instance_uids"] = {
        "seg": None if segmentation is None else str(segmentation.SOPInstanceUID),
        "sr": str(report.SOPInstanceUID),
    }
    summary["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    is_finding = segmentation is not None or findings.diagnosis is not None
    return Result(segmentation, report, findings, summary, RESULT if is_finding else NO_FINDING)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _read(series: SourceSeries, predictor: Predictor, prompt: Prompt) -> _Reading:
    """The answer about the middle frame, a mask of each, the answer about the frame with most of it."""
    middle = len(series.frames) // 2
    first = predictor.predict(Image(series.frames[middle].image), prompt)
    masks = _masks(series.frames, predictor, prompt, first, middle)
    areas = [int(mask.sum()) for mask in masks]
    key = middle if max(areas) == areas[middle] else areas.index(max(areas))
    answer = first if key == middle else predictor.predict(Image(series.frames[key].image), prompt)
    return _Reading(series.frames[key], answer, masks)


def _masks(
    frames: Sequence[Frame], predictor: Predictor, prompt: Prompt, first: Prediction, middle: int
) -> list[NDArray[np.bool_]]:
    """The mask of each frame, as predict() would give it; only the masks are kept."""
    masks = [_cleaned(first)] * len(frames)
    others = [index for index in range(len(frames)) if index != middle]
    for start in range(0, len(others), FRAMES_AT_ONCE):
        chunk = others[start : start + FRAMES_AT_ONCE]
        images = [Image(frames[index].image) for index in chunk]
        for index, prediction in zip(chunk, predictor.segment(images, prompt, first), strict=True):
            masks[index] = _cleaned(prediction)
    return masks


def _cleaned(prediction: Prediction) -> NDArray[np.bool_]:
    is_region = prediction.has_region and int(prediction.mask.sum()) >= MIN_REGION_PX
    return prediction.mask if is_region else _empty(prediction.mask.shape)


def _empty(size: tuple[int, ...]) -> NDArray[np.bool_]:
    """No region (H, W), at the cost of one byte: most slices of a large stack have none."""
    return np.broadcast_to(np.False_, size)


def _provenance(series: SourceSeries, predictor: Predictor, request: AnalysisRequest) -> Provenance:
    first = series.datasets[0]
    return Provenance(
        study_instance_uid=str(first.StudyInstanceUID),
        series_instance_uid=str(first.SeriesInstanceUID),
        input_digests=series.digests,
        model=ModelIdentity(predictor.name, predictor.version, predictor.digest),
        query=request.query,
    )


def _findings(series: SourceSeries, reading: _Reading, request: AnalysisRequest) -> Findings:
    diagnosis = reading.prediction.diagnosis
    return Findings(
        target=reading.prediction.target or request.target,
        body_part=str(reading.key.source.get("BodyPartExamined") or ""),
        diagnosis=None if diagnosis is None else diagnosis.label,
        confidence=None if diagnosis is None else diagnosis.confidence,
        text=reading.prediction.text,
        reasoning=reading.prediction.reasoning,
        key=reading.key,
        region=_region(series, reading) if reading.has_region else None,
        remarks=_remarks(series, reading),
    )


def _region(series: SourceSeries, reading: _Reading) -> Region:
    mask = reading.masks[series.frames.index(reading.key)]
    areas = [int(each.sum()) for each in reading.masks]
    return Region(mask, measure(mask, reading.key.spacing_mm), volume_ml(series.frames, areas))


def _remarks(series: SourceSeries, reading: _Reading) -> tuple[str, ...]:
    remarks = [f"Left out: {reason}." for reason in series.left_out[:20]]
    if not reading.has_region:
        remarks.append("No region was outlined.")
    elif reading.key.spacing_mm is None:
        remarks.append("The image is not calibrated: sizes are in pixels.")
    elif reading.key.spacing_origin == IMAGER_PIXEL_SPACING:
        remarks.append("Sizes are at the detector plane (Imager Pixel Spacing), larger than in the patient.")
    if not reading.prediction.is_well_formed:
        remarks.append("The model's answer is incomplete.")
    return tuple(remarks)


def _segmentation(
    series: SourceSeries, reading: _Reading, findings: Findings, provenance: Provenance
) -> Dataset | None:
    if not reading.has_region:
        return None
    request = SegmentationRequest(findings.target, findings.body_part, provenance)
    return build_segmentation(series, reading.masks, request)


def _summary(series: SourceSeries, findings: Findings, provenance: Provenance) -> dict[str, object]:
    key = findings.key
    return {
        "diagnosis": findings.diagnosis,
        "confidence": None if findings.confidence is None else round(findings.confidence, 4),
        "text": findings.text,
        "reasoning": findings.reasoning,
        "target": findings.target,
        **_sizes(findings.region),
        "key_frame": {
            "index": series.frames.index(key),
            "sop_instance_uid": str(key.source.SOPInstanceUID),
            "frame_number": key.frame_number,
        },
        "model": provenance.model.name,
        "model_version": provenance.model.version,
        "model_digest": provenance.model.digest,
        "query": provenance.query,
        "inputs": {"count": len(series.digests), "digests": list(series.digests)},
        "remarks": list(findings.remarks),
    }


def _sizes(region: Region | None) -> dict[str, object]:
    if region is None:
        return {}
    area_mm2 = region.measures.area_mm2
    sizes: dict[str, object] = {"area_px": region.measures.area_px}
    if area_mm2 is not None:
        sizes = {"area_mm2": round(area_mm2, 2)}
    if region.volume_ml is not None:
        sizes["volume_ml"] = round(region.volume_ml, 2)
    return sizes
