"""7 CHECK of a report: template, tracking, references, numbers and text, for IHE AIR and OHIF 3.13."""

import math
from collections.abc import Iterator
from typing import Final

from pydicom.dataset import Dataset

from dicom_node.air.rules import Rule

ROOT: Final = "126000"
TEMPLATE: Final = "1500"
GROUP: Final = "125007"
TRACKING_IDENTIFIER, TRACKING_UID = "112039", "112040"
ALGORITHM_NAME, ALGORITHM_VERSION = "111001", "111003"


def _items(item: Dataset) -> Iterator[Dataset]:
    """Every content item below `item`."""
    for child in item.get("ContentSequence") or []:
        yield child
        yield from _items(child)


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or []
    return str(names[0].get("CodeValue", "")) if names else ""


def _groups(dataset: Dataset) -> list[Dataset]:
    return [item for item in _items(dataset) if item.ValueType == "CONTAINER" and _name(item) == GROUP]


def _is_measurement_report(dataset: Dataset) -> Iterator[str]:
    if _name(dataset) != ROOT:
        yield "the root is no Imaging Measurement Report"
    templates = [str(each.TemplateIdentifier) for each in dataset.get("ContentTemplateSequence") or []]
    if templates != [TEMPLATE]:
        yield "the template is not TID 1500"


def _tracks_every_group(dataset: Dataset) -> Iterator[str]:
    """OHIF throws at a group without a Tracking Unique Identifier."""
    uids = []
    for group in _groups(dataset):
        own = {_name(item): item for item in group.ContentSequence}
        if TRACKING_IDENTIFIER not in own or not own[TRACKING_IDENTIFIER].get("TextValue"):
            yield "a measurement group has no Tracking Identifier"
        if TRACKING_UID not in own or not own[TRACKING_UID].get("UID"):
            yield "a measurement group has no Tracking Unique Identifier"
        else:
            uids.append(str(own[TRACKING_UID].UID))
    if len(set(uids)) < len(uids):
        yield "two measurement groups have one Tracking Unique Identifier"


def _shows_every_group(dataset: Dataset) -> Iterator[str]:
    """OHIF stops at a group without coordinates, and shows nothing of the report then."""
    for group in _groups(dataset):
        if not any(item.ValueType in {"SCOORD", "SCOORD3D"} for item in _items(group)):
            yield "a measurement group has no coordinates"


def _anchors_coordinates(dataset: Dataset) -> Iterator[str]:
    for item in _items(dataset):
        if item.ValueType != "SCOORD":
            continue
        images = [child for child in item.get("ContentSequence") or [] if child.ValueType == "IMAGE"]
        if len(images) != 1 or len(images[0].ReferencedSOPSequence) != 1:
            yield "coordinates are not selected from exactly one image"
        elif images[0].ReferencedSOPSequence[0].get_item("ReferencedFrameNumber") and (
            images[0].ReferencedSOPSequence[0]["ReferencedFrameNumber"].VM > 1
        ):
            yield "coordinates are selected from more than one frame"


def _lists_its_evidence(dataset: Dataset) -> Iterator[str]:
    listed = {
        str(instance.ReferencedSOPInstanceUID)
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in dataset.get(keyword) or []
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    if not listed:
        yield "there is no evidence"
    used = {
        str(reference.ReferencedSOPInstanceUID)
        for item in _items(dataset)
        for reference in item.get("ReferencedSOPSequence") or []
    }
    if not used <= listed:
        yield f"{len(used - listed)} referenced instances are not in the evidence"


def _names_its_algorithm(dataset: Dataset) -> Iterator[str]:
    names = {_name(item) for item in _items(dataset)}
    if not {ALGORITHM_NAME, ALGORITHM_VERSION} <= names:
        yield "Algorithm Name or Algorithm Version is missing"


def _measures_in_units(dataset: Dataset) -> Iterator[str]:
    for item in _items(dataset):
        if item.ValueType != "NUM":
            continue
        value = item.MeasuredValueSequence[0]
        if value.MeasurementUnitsCodeSequence[0].get("CodingSchemeDesignator") != "UCUM":
            yield "a unit is not one of UCUM"
        if not math.isfinite(float(value.NumericValue)):
            yield "a number is not finite"


def _says_what_it_is_for(dataset: Dataset) -> Iterator[str]:
    texts = [str(item.get("TextValue", "")).lower() for item in _items(dataset)]
    if not any("research use only" in text for text in texts):
        yield "no text says that it is for research use only"


REPORT_RULES: Final[tuple[Rule, ...]] = (
    Rule("template", "interop 4.6; IHE AIR A3; PS3.16 TID 1500", {"SR"}, _is_measurement_report),
    Rule("tracking of groups", "interop 4.6; IHE AIR A4", {"SR"}, _tracks_every_group),
    Rule("groups are shown", "interop 4.6", {"SR"}, _shows_every_group),
    Rule("coordinates", "interop 4.6; PS3.16 TID 1410", {"SR"}, _anchors_coordinates),
    Rule("evidence", "IHE AIR A9; PS3.3 C.17.2", {"SR", "KO"}, _lists_its_evidence),
    Rule("algorithm", "IHE AIR A7; PS3.16 TID 4019", {"SR"}, _names_its_algorithm),
    Rule("units", "interop 4.6; PS3.16 TID 1419", {"SR"}, _measures_in_units),
    Rule("text", "research use only", {"SR", "KO"}, _says_what_it_is_for),
)
