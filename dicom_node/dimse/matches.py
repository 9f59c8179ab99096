"""From what a search found to the identifier of a C-FIND response: the keys asked for, in a fitting encoding.

Source: PS3.4 C.4.1.1.3.2 (response identifier), C.3.4 and C.3.5 (attributes about related entities).
"""

from collections.abc import Iterator
from typing import Final

from pydicom import Dataset
from pydicom.charset import python_encoding

from dicom_node.dimse.query_model import Level, Request
from storage.index import InstanceMatch, SeriesMatch, StudyMatch
from storage.keywords import OF_INSTANCE, OF_PATIENT, OF_SERIES, OF_STUDY, values_of
from storage.patients import PatientMatch

Match = PatientMatch | StudyMatch | SeriesMatch | InstanceMatch
Pairs = Iterator[tuple[str, object]]

UTF_8: Final = "ISO_IR 192"
PATIENT_KEYS: Final = (
    *OF_PATIENT,
    "NumberOfPatientRelatedStudies",
    "NumberOfPatientRelatedSeries",
    "NumberOfPatientRelatedInstances",
)
STUDY_KEYS: Final = (
    *OF_STUDY,
    "ModalitiesInStudy",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)
SERIES_KEYS: Final = (*OF_SERIES, "NumberOfSeriesRelatedInstances")
IMAGE_KEYS: Final = tuple(OF_INSTANCE)
ANSWERED: Final = {
    Level.PATIENT: PATIENT_KEYS,
    Level.STUDY: STUDY_KEYS,
    Level.SERIES: SERIES_KEYS,
    Level.IMAGE: IMAGE_KEYS,
}
"""The keys that each level adds to those above it; the conformance statement prints this table."""


def render(match: Match, request: Request, ae_title: str) -> Dataset:
    """Build the response identifier of one match: the keys asked for that this node knows."""
    values = dict(_values(match))
    answer = Dataset()
    for keyword in request.keys:
        if keyword in values:
            setattr(answer, keyword, values[keyword])
    answer.QueryRetrieveLevel = str(request.level)
    answer.RetrieveAETitle = ae_title
    answer.InstanceAvailability = "ONLINE"
    character_set = _character_set(answer, request.character_set)
    if character_set:
        answer.SpecificCharacterSet = character_set
    return answer


def _character_set(answer: Dataset, wished: str) -> str:
    """None for ASCII; the one of the request if it holds every character; else UTF-8."""
    text = "".join(str(element.value) for element in answer)
    if text.isascii():
        return ""
    encoding = python_encoding.get(wished) if wished.startswith("ISO_IR") else None
    if encoding is None:
        return UTF_8
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return UTF_8
    return wished


def _values(match: Match) -> Pairs:
    if isinstance(match, PatientMatch):
        yield from _patient(match)
        return
    yield from values_of(match.study, OF_STUDY)
    if isinstance(match, StudyMatch):
        yield "ModalitiesInStudy", list(match.modalities)
        yield "NumberOfStudyRelatedSeries", match.number_of_series
        yield "NumberOfStudyRelatedInstances", match.number_of_instances
        return
    yield from values_of(match.series, OF_SERIES)
    if isinstance(match, SeriesMatch):
        yield "NumberOfSeriesRelatedInstances", match.number_of_instances
        return
    yield from values_of(match.instance, OF_INSTANCE)


def _patient(match: PatientMatch) -> Pairs:
    yield from values_of(match, OF_PATIENT)
    yield "NumberOfPatientRelatedStudies", match.number_of_studies
    yield "NumberOfPatientRelatedSeries", match.number_of_series
    yield "NumberOfPatientRelatedInstances", match.number_of_instances
