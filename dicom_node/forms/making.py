"""All objects of a result: SEG and SR always, and what else any destination asks for."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

from pydicom.dataset import Dataset

from dicom_node.forms.content import Content
from dicom_node.forms.form import EVERYBODY, SEG_FORMS, Form, Made, Profile, segmentation_of
from dicom_node.forms.key_objects import build_key_objects
from dicom_node.forms.pdf_report import build_pdf_report
from dicom_node.forms.presentation_state import build_presentation_state
from dicom_node.forms.secondary_capture import build_secondary_capture
from dicom_node.frames import SourceSeries
from dicom_node.seg import SegmentationRequest, build_segmentation
from dicom_node.sr import build_report

WITHOUT_SEG: Final = "without SEG"  # the report of a destination that gets no SEG

MAKERS: Final[dict[Form, Callable[[Content], Dataset]]] = {
    Form.SC: build_secondary_capture,
    Form.GSPS: build_presentation_state,
    Form.KOS: build_key_objects,
    Form.PDF: build_pdf_report,
}
NEED_OUTLINE: Final = frozenset({Form.GSPS, Form.KOS})  # without one there is nothing for them to show


def make_segmentations(content: Content, form: Form = Form.SEG) -> list[Dataset]:
    """One SEG for each series that anything was outlined in: viewers show no SEG over several."""
    findings, provenance = content.findings, content.provenance
    uids = dict.fromkeys(str(frame.source.SeriesInstanceUID) for frame in content.series.frames)
    built = []
    for uid in uids:
        part, places = _part(content.series, uid)
        masks = content.masks.part(places)
        if masks.marked:
            name = "" if uid == provenance.series_instance_uid else uid
            request = SegmentationRequest((findings.target,), findings.body_part, provenance, name, form)
            built.append(build_segmentation(part, [masks], request))
    return built


def make_report(content: Content, segmentations: Sequence[Dataset], variant: str = "") -> Dataset:
    """The SR whose numbers refer to these SEGs."""
    return build_report(content.series, segmentations, content.findings, content.provenance, variant)


def default_objects(segmentations: Sequence[Dataset], report: Dataset) -> list[Made]:
    """BINARY SEGs and the SR beside them; one without SEGs says the same to everybody."""
    beside = frozenset({Form.SEG}) if segmentations else EVERYBODY
    return [*(Made(Form.SEG, each) for each in segmentations), Made(Form.SR, report, beside)]


def other_objects(content: Content, profiles: Collection[Profile]) -> Iterator[Made]:
    """What these profiles ask for beyond the default.

    A destination's SR refers to the SEG that the same destination gets, so there is one SR for each form of
    SEG in use, and one that refers to none.
    """
    if content.is_outlined:
        for form in _seg_forms(profiles):
            yield from _beside(content, form, profiles)
    for form, make in MAKERS.items():
        is_asked_for = any(form in profile for profile in profiles)
        if is_asked_for and (content.is_outlined or form not in NEED_OUTLINE):
            yield Made(form, make(content))


def _seg_forms(profiles: Collection[Profile]) -> list[Form | None]:
    """The forms of SEG in use besides BINARY, always in one order; None: no SEG."""
    used = {segmentation_of(profile) for profile in profiles}
    return [form for form in (*SEG_FORMS, None) if form in used and form is not Form.SEG]


def _beside(content: Content, form: Form | None, profiles: Collection[Profile]) -> Iterator[Made]:
    segmentations = [] if form is None else make_segmentations(content, form)
    yield from (Made(form, each) for each in segmentations if form is not None)
    if any(Form.SR in profile and segmentation_of(profile) is form for profile in profiles):
        report = make_report(content, segmentations, WITHOUT_SEG if form is None else str(form))
        yield Made(Form.SR, report, frozenset({form}))


def _part(series: SourceSeries, series_instance_uid: str) -> tuple[SourceSeries, list[int]]:
    """What of `series` lies in the DICOM series of this UID, and where its frames stand."""
    places = [
        place
        for place, frame in enumerate(series.frames)
        if str(frame.source.SeriesInstanceUID) == series_instance_uid
    ]
    datasets = [each for each in series.datasets if str(each.SeriesInstanceUID) == series_instance_uid]
    frames = tuple(series.frames[place] for place in places)
    return replace(series, datasets=tuple(datasets), frames=frames), places
