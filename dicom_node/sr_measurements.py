"""7 SR, its numbers: each measurement with its unit and the frames of the SEG it was taken from."""

from collections.abc import Iterable, Iterator, Sequence

from highdicom.sr import Measurement, SourceImageForMeasurement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node import codes
from dicom_node.findings import Findings, Region
from dicom_node.frames import Frame
from dicom_node.regions import Measures
from dicom_node.ventricle import VentricleVolumes


def measurements_of(
    findings: Findings, region: Region, frames: Sequence[Frame], segmentations: Sequence[Dataset]
) -> list[Measurement]:
    """Sizes of the region on the key frame, volumes over `frames` of the source, certainty in percent.

    Source: PS3.16 TID 1419.
    """
    places = _Places(frames, segmentations)
    sizes, key = region.measures, places.made_from([frames.index(findings.key)])
    length = codes.MILLIMETRE if sizes.is_calibrated else codes.PIXELS
    measured = [
        Measurement(codes.AREA, *_area(sizes), referenced_images=key),
        Measurement(codes.LONG_AXIS, _rounded(sizes.long_axis), length, referenced_images=key),
        Measurement(codes.SHORT_AXIS, _rounded(sizes.short_axis), length, referenced_images=key),
    ]
    if region.volume_ml is not None:
        volume = _rounded(region.volume_ml)
        whole = [_reference(each, None) for each in segmentations] or None
        measured.append(Measurement(codes.VOLUME, volume, codes.CUBIC_CENTIMETRE, referenced_images=whole))
    if findings.ventricle is not None:
        measured += _beat(findings.ventricle, places)
    if findings.confidence is not None:
        measured.append(Measurement(codes.CERTAINTY, percent(findings.confidence), codes.PERCENT))
    return measured


def _beat(volumes: VentricleVolumes, places: "_Places") -> list[Measurement]:
    """What the heart ejects, each number with the frames of its phases; nothing without two phases."""
    fraction = volumes.ejection_fraction
    if fraction is None:
        return []
    phases = (volumes.end_diastole, volumes.end_systole)
    diastole, systole = ([members[phase] for members in volumes.grid.frames] for phase in phases)
    return [
        Measurement(name, _rounded(value), unit, referenced_images=places.made_from(members))
        for name, value, unit, members in (
            (codes.END_DIASTOLIC_VOLUME, volumes.end_diastolic_ml, codes.MILLILITRE, diastole),
            (codes.END_SYSTOLIC_VOLUME, volumes.end_systolic_ml, codes.MILLILITRE, systole),
            (codes.STROKE_VOLUME, volumes.stroke_ml, codes.MILLILITRE, [*diastole, *systole]),
            (codes.EJECTION_FRACTION, round(fraction, 1), codes.PERCENT, [*diastole, *systole]),
        )
    ]


class _Places:
    """Which frame of which SEG was made from each frame of the source."""

    def __init__(self, frames: Sequence[Frame], segmentations: Sequence[Dataset]) -> None:
        numbers = {
            source: (segmentation, number)
            for segmentation in segmentations
            for number, source in enumerate(_sources(segmentation), start=1)
        }
        self._made = [numbers.get((str(f.source.SOPInstanceUID), f.frame_number)) for f in frames]

    def made_from(self, indices: Iterable[int]) -> list[SourceImageForMeasurement] | None:
        """References to the frames of the SEGs made from these frames of the source; None when none was."""
        found: dict[str, tuple[Dataset, list[int]]] = {}
        for segmentation, number in filter(None, (self._made[index] for index in indices)):
            found.setdefault(str(segmentation.SOPInstanceUID), (segmentation, []))[1].append(number)
        return [_reference(segmentation, sorted(n)) for segmentation, n in found.values()] or None


def _sources(segmentation: Dataset) -> Iterator[tuple[str, int | None]]:
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        yield str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber")


def _area(sizes: Measures) -> tuple[float, Code]:
    if sizes.area_mm2 is None:
        return float(sizes.area_px), codes.PIXELS
    return _rounded(sizes.area_mm2), codes.SQUARE_MILLIMETRE


def _reference(segmentation: Dataset, frames: list[int] | None) -> SourceImageForMeasurement:
    """Which frames of the SEG (None: all of them) a number was taken from."""
    return SourceImageForMeasurement(
        referenced_sop_class_uid=segmentation.SOPClassUID,
        referenced_sop_instance_uid=segmentation.SOPInstanceUID,
        referenced_frame_numbers=frames,
    )


def percent(share: float) -> float:
    """A share of 1 in percent, to one digit."""
    return round(share * 100, 1)


def _rounded(value: float) -> float:
    """Four significant digits: a mask of pixels has no more."""
    return float(f"{value:.4g}") if value < 10000 else float(round(value))
