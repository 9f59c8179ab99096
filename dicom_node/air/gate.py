"""7 CHECK. The rules that a result keeps or is not sent: IHE AI Results, and what viewers need.

No public tool checks IHE AIR. The rules are those of its Evidence Creator (identity, equipment, algorithm,
references, tracking, codes), and those that OHIF 3.13 needs to show an object at all.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_node.air.other_forms import OTHER_FORM_RULES
from dicom_node.air.report import REPORT_RULES
from dicom_node.air.rules import EVERY_KIND, MODALITY_OF, Rule, kind_of, present
from dicom_node.air.segmentation import SEGMENTATION_RULES, shares_geometry
from storage.keywords import OF_PATIENT

UID_FORM: Final = re.compile(r"[0-9]+(\.[0-9]+)*")  # leading zeros come from devices, and are referred to
TIMEZONE_FORM: Final = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
MAX_CHARACTERS: Final = {  # Source: PS3.5 6.2
    "AE": 16, "AS": 4, "CS": 16, "DS": 16, "IS": 12, "LO": 64, "LT": 10240, "SH": 16, "ST": 1024, "UI": 64,
}  # fmt: skip
SCHEMES: Final = frozenset({"SCT", "DCM", "UCUM", "LN", "UMLS", "NCIt", "RFC5646", "ISO3166_1"})
PATIENT_AND_STUDY: Final = ("StudyInstanceUID", *OF_PATIENT)
COPIED: Final = frozenset(  # as they came: what a modality wrote too long is not ours to mend
    {
        *PATIENT_AND_STUDY, "AccessionNumber", "StudyDescription", "StudyID", "ReferringPhysicianName",
        "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "FrameOfReferenceUID",
        "PositionReferenceIndicator",
    }
)  # fmt: skip
DATES: Final = (
    "InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "SeriesDate", "SeriesTime",
)  # fmt: skip
EQUIPMENT: Final = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceUID")
PROCESSING: Final = "109102"


@dataclass(frozen=True)
class Broken:
    """A rule that an object breaks."""

    rule: str
    detail: str  # never a value of a patient attribute

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def check(dataset: Dataset) -> list[Broken]:
    """The rules that one object of a result breaks by itself."""
    kind = kind_of(dataset)
    if kind is None:
        return [Broken("class", "is of no class that results are written as")]
    return [
        Broken(rule.name, detail)
        for rule in RULES
        if kind in rule.kinds
        for detail in _applied(rule, dataset)
    ]


def check_together(results: Sequence[Dataset], sources: Sequence[Dataset]) -> list[Broken]:
    """The rules that `results` break by themselves, among each other, and towards their source images."""
    broken = [each for dataset in results for each in check(dataset)]
    if broken or not sources:
        return broken
    broken = check_references(results, sources)
    for dataset in results:
        broken += [Broken("same patient and study", word) for word in _strangers(dataset, sources[0])]
        broken += [Broken("geometry of the source", word) for word in shares_geometry(dataset, sources)]
    return broken + [Broken("tracking", word) for word in _untracked(results)]


def check_references(results: Sequence[Dataset], sources: Sequence[Dataset]) -> list[Broken]:
    """What of `results` refers to instances that who gets these, and has the images, does not have."""
    known = {str(each.SOPInstanceUID) for each in (*results, *sources)}
    return [Broken("references resolve", word) for dataset in results for word in _dangling(dataset, known)]


def _applied(rule: Rule, dataset: Dataset) -> Iterator[str]:
    """What the rule finds; where the object lacks what the rule reads, that is what it finds."""
    try:
        yield from rule.check(dataset)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        yield f"cannot be checked ({type(error).__name__}): something it needs is missing"


# ---- every object


def _walk(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value or []:
                yield from _walk(item)


def _has_identity(dataset: Dataset) -> Iterator[str]:
    for keyword in (*PATIENT_AND_STUDY, "StudyDate", "AccessionNumber"):
        if keyword not in dataset:
            yield f"{keyword} is missing"
    yield from present(dataset, "SpecificCharacterSet", "SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber")
    uids = [str(dataset.get(k, "")) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    if len(set(uids)) < len(uids):
        yield "study, series and instance share a UID"


def _says_when(dataset: Dataset) -> Iterator[str]:
    yield from present(dataset, *DATES)
    if not TIMEZONE_FORM.fullmatch(str(dataset.get("TimezoneOffsetFromUTC") or "")):
        yield "TimezoneOffsetFromUTC is missing or malformed"


def _names_its_equipment(dataset: Dataset) -> Iterator[str]:
    yield from present(dataset, "DeviceUID", "SoftwareVersions", "ManufacturerModelName")
    for item in dataset.get("ContributingEquipmentSequence") or []:
        purposes = {str(code.get("CodeValue", "")) for code in item.get("PurposeOfReferenceCodeSequence", [])}
        if PROCESSING in purposes and all(item.get(keyword) for keyword in EQUIPMENT):
            return
    yield "Contributing Equipment has no item for the algorithm with manufacturer, model, version and UID"


def _values_fit(dataset: Dataset) -> Iterator[str]:
    for element in _walk(dataset):
        if element.keyword in COPIED:
            continue
        limit = MAX_CHARACTERS.get(element.VR)
        values = element.value if element.VM > 1 else [element.value]
        if limit is not None and any(len(str(value)) > limit for value in values if value is not None):
            yield f"{_name(element)} is longer than {limit} characters"
        if element.VR == "UI" and any(value and not UID_FORM.fullmatch(str(value)) for value in values):
            yield f"{_name(element)} is no UID"


def _codes_are_known(dataset: Dataset) -> Iterator[str]:
    for element in _walk(dataset):
        if element.VR != "SQ" or not keyword_for_tag(element.tag).endswith("CodeSequence"):
            continue
        for code in element.value:
            if not all(code.get(keyword) for keyword in ("CodeValue", "CodeMeaning")):
                yield f"{_name(element)} has an item without value or meaning"
            if code.get("CodingSchemeDesignator") not in SCHEMES:
                yield f"{_name(element)} uses a coding scheme that readers do not know"


def _name(element: DataElement) -> str:
    return keyword_for_tag(element.tag) or str(element.tag)


def _is_labelled(dataset: Dataset) -> Iterator[str]:
    expected = MODALITY_OF[kind_of(dataset) or ""]
    if dataset.get("Modality") != expected:
        yield f"Modality is not {expected}"
    if "research use only" not in str(dataset.get("SeriesDescription", "")).lower():
        yield "Series Description does not say that it is for research use only"


# ---- objects among each other


def _strangers(dataset: Dataset, source: Dataset) -> Iterator[str]:
    if dataset.get("StudyInstanceUID") != source.get("StudyInstanceUID"):
        yield "the study is another than the source's"
    if str(dataset.get("PatientID") or "") != str(source.get("PatientID") or ""):
        yield "PatientID differs from the source's"


def _dangling(dataset: Dataset, known: set[str]) -> Iterator[str]:
    for element in dataset:
        if element.keyword == "PredecessorDocumentsSequence":
            continue
        for each in _walk_element(element):
            if each.keyword == "ReferencedSOPInstanceUID" and str(each.value) not in known:
                yield f"{element.keyword} refers to an instance that is neither a source nor a result"
                break


def _walk_element(element: DataElement) -> Iterable[DataElement]:
    if element.VR != "SQ":
        return [element]
    return (each for item in element.value or [] for each in _walk(item))


def _untracked(results: Sequence[Dataset]) -> Iterator[str]:
    """Every segment's Tracking UID stands in a report, where there is a report."""
    reported = {
        str(element.value)
        for dataset in results
        if kind_of(dataset) == "SR"
        for element in _walk(dataset)
        if element.keyword == "UID"
    }
    tracked = {
        str(segment.TrackingUID)
        for dataset in results
        if kind_of(dataset) == "SEG"
        for segment in dataset.SegmentSequence
        if segment.SegmentNumber > 0  # the background of a label map is no finding
    }
    if reported and not tracked <= reported:
        yield "a segment's Tracking UID stands in no report"


RULES: Final[tuple[Rule, ...]] = (
    Rule("identity", "IHE AIR A5; PS3.3 C.7.1.1, C.7.2.1", EVERY_KIND, _has_identity),
    Rule("dates and time zone", "IHE AIR A8; PS3.3 C.12.1", EVERY_KIND, _says_when),
    Rule("contributing equipment", "IHE AIR A6; PS3.3 C.12.1", EVERY_KIND, _names_its_equipment),
    Rule("values fit", "PS3.5 6.2 and 9.1", EVERY_KIND, _values_fit),
    Rule("codes", "IHE AIR A10; PS3.16", EVERY_KIND, _codes_are_known),
    Rule("label", "interop 4.5.14", EVERY_KIND, _is_labelled),
    *SEGMENTATION_RULES,
    *REPORT_RULES,
    *OTHER_FORM_RULES,
)
