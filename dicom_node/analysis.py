"""5-7. analyse(): a series and a predictor -> findings, the objects of a result, a summary of it."""

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset

from dicom_node.context import NO_CONTEXT, ResultContext
from dicom_node.findings import Findings, Region
from dicom_node.forms.content import Content
from dicom_node.forms.form import Form, Made, Profile
from dicom_node.forms.making import default_objects, make_report, make_segmentations, other_objects
from dicom_node.frames import IMAGER_PIXEL_SPACING, SourceSeries
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.reading import AnalysisRequest, Reading, read_series
from dicom_node.regions import measure, volume_ml
from dicom_node.ventricle import VentricleVolumes, conclude, remarks_on
from inference.contract import Predictor

RESULT: Final = "RESULT"
NO_FINDING: Final = "NO FINDING"


@dataclass(frozen=True, eq=False)
class Result:
    """What one analysis gives: the objects to store and what people and machines read first."""

    objects: tuple[Made, ...]  # in the order in which they refer to each other
    findings: Findings
    summary: dict[str, object]
    outcome: str  # RESULT or NO FINDING; a series that cannot be analysed raises NotSuitable instead

    @property
    def datasets(self) -> list[Dataset]:
        """All objects."""
        return [made.dataset for made in self.objects]

    @property
    def segmentations(self) -> tuple[Dataset, ...]:
        """BINARY SEGs, one a series that anything was outlined in."""
        return tuple(made.dataset for made in self.objects if made.form is Form.SEG)

    @property
    def report(self) -> Dataset:
        """The SR that goes with the BINARY SEGs."""
        return next(made.dataset for made in self.objects if made.form is Form.SR)


def analyse(
    series: SourceSeries,
    predictor: Predictor,
    request: AnalysisRequest,
    context: ResultContext = NO_CONTEXT,
    profiles: Collection[Profile] = (),
) -> Result:
    """Run `predictor` on every frame and put what it says into a SEG, an SR, and what `profiles` ask for."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "run"):
        reading = read_series(series, predictor, request)
    provenance = _provenance(series, predictor, request, context)
    findings = _findings(series, reading, context)
    content = Content(series, reading.masks, findings, provenance)
    with _timed(seconds, "seg"):
        segmentations = make_segmentations(content)
    with _timed(seconds, "sr"):
        report = make_report(content, segmentations)
    with _timed(seconds, "forms"):
        objects = (*default_objects(segmentations, report), *other_objects(content, profiles))
    summary = _summary(series, findings, provenance)
    summary["sop_instance_uids"] = _uids(objects)
    summary["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    is_finding = bool(segmentations) or findings.diagnosis is not None
    return Result(objects, findings, summary, RESULT if is_finding else NO_FINDING)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _provenance(
    series: SourceSeries, predictor: Predictor, request: AnalysisRequest, context: ResultContext
) -> Provenance:
    first = series.datasets[0]
    return Provenance(
        study_instance_uid=str(first.StudyInstanceUID),
        series_instance_uid=str(first.SeriesInstanceUID),
        input_digests=series.digests,
        model=ModelIdentity(predictor.name, predictor.version, predictor.digest),
        query=request.query,
        context=context,
    )


def _uids(objects: Collection[Made]) -> dict[str, str | None]:
    """SOP Instance UIDs of the objects by form; where there are several of one, each further has a number."""
    uids: dict[str, str | None] = {"seg": None}
    count = Counter[Form]()
    for made in objects:
        count[made.form] += 1
        name = made.form.lower() if count[made.form] == 1 else f"{made.form.lower()} {count[made.form]}"
        uids[name] = str(made.dataset.SOPInstanceUID)
    return uids


def _findings(series: SourceSeries, reading: Reading, context: ResultContext) -> Findings:
    diagnosis = reading.prediction.diagnosis
    return Findings(
        target=reading.target,
        body_part=str(reading.key.source.get("BodyPartExamined") or ""),
        diagnosis=None if diagnosis is None else diagnosis.label,
        confidence=None if diagnosis is None else diagnosis.confidence,
        text=reading.prediction.text,
        reasoning=reading.prediction.reasoning,
        key=reading.key,
        region=_region(series, reading) if reading.has_region else None,
        remarks=(*context.sentences(), *_remarks(series, reading)),
        ventricle=reading.ventricle,
        conclusion=None if reading.ventricle is None else conclude(reading.ventricle),
    )


def _region(series: SourceSeries, reading: Reading) -> Region:
    mask = reading.masks[series.frames.index(reading.key)]
    return Region(mask, measure(mask, reading.key.spacing_mm), _volume_ml(series, reading))


def _volume_ml(series: SourceSeries, reading: Reading) -> float | None:
    """Of a stack; a beating heart has a volume in each phase instead."""
    volumes = reading.ventricle
    if volumes is not None:
        return None if volumes.ejection_fraction is not None else volumes.end_diastolic_ml
    return volume_ml(series.frames, reading.masks.areas_px)


def _remarks(series: SourceSeries, reading: Reading) -> tuple[str, ...]:
    remarks = [f"Left out: {reason}." for reason in series.left_out[:20]]
    if not reading.has_region:
        remarks.append("No region was outlined.")
        if reading.prediction.has_region:  # [SEG] was said, and the mask is empty or a speck
            remarks.append("The answer speaks of a region all the same: do not rely on what it says of it.")
    elif reading.key.spacing_mm is None:
        remarks.append("The image is not calibrated: sizes are in pixels.")
    elif reading.key.spacing_origin == IMAGER_PIXEL_SPACING:
        remarks.append("Sizes are at the detector plane (Imager Pixel Spacing), larger than in the patient.")
    if reading.ventricle is not None:
        remarks += remarks_on(reading.ventricle)
    if reading.bridged:
        slices = "1 slice" if reading.bridged == 1 else f"{reading.bridged} slices"
        its = "its" if reading.bridged == 1 else "their"
        remarks.append(f"On {slices} that the model missed, the outline is what {its} neighbours share.")
    if reading.why_no_volume:
        remarks.append(reading.why_no_volume)
    if not reading.prediction.is_well_formed:
        remarks.append("The model's answer is incomplete.")
    return tuple(remarks)


def _summary(series: SourceSeries, findings: Findings, provenance: Provenance) -> dict[str, object]:
    key = findings.key
    return {
        "diagnosis": findings.diagnosis,
        "confidence": None if findings.confidence is None else round(findings.confidence, 4),
        "text": findings.text,
        "reasoning": findings.reasoning,
        "target": findings.target,
        **_sizes(findings.region),
        **_heart(findings),
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


def _heart(findings: Findings) -> dict[str, object]:
    """Volumes over the heart beat, and the conclusion from them, which is not the model's."""
    volumes = findings.ventricle
    if volumes is None:
        return {}
    heart: dict[str, object] = {
        "phase_volumes_ml": [round(volume, 1) for volume in volumes.volumes_ml],
        "slices": len(volumes.grid.places_mm),
    }
    if volumes.ejection_fraction is not None:
        heart |= _ejection(volumes, volumes.ejection_fraction)
    if findings.conclusion is not None:
        heart["conclusion"] = findings.conclusion.text
        heart["conclusion_label"] = f"left ventricular function {findings.conclusion.label}"
    return heart


def _ejection(volumes: VentricleVolumes, fraction: float) -> dict[str, object]:
    return {
        "end_diastolic_ml": round(volumes.end_diastolic_ml, 1),
        "end_systolic_ml": round(volumes.end_systolic_ml, 1),
        "stroke_ml": round(volumes.stroke_ml, 1),
        "ejection_fraction_percent": round(fraction, 1),
    }
