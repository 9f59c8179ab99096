"""Workitems as DICOM JSON: what others wrote, completed by what the node knows, and our jobs.

Source: PS3.4 Table CC.2.5-3 (attributes of a UPS), PS3.3 C.30 (UPS modules).
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicom_node.progress import images_read
from dicom_node.web.services import DICOM_WEB
from storage.database import Transaction
from storage.index import find_instance
from storage.jobs import JobState
from storage.keywords import OF_PATIENT, values_of
from storage.retrieval import kept_instances
from storage.tables import Instance, Job
from storage.workitems import Attributes, WorkitemView

PUSH_SOP_CLASS: Final = "1.2.840.10008.5.1.4.34.6.1"
OUR_SCHEME: Final = "99SIM4SEG"
WORKLIST: Final = "SIM4SEG"
MAX_REFERENCES: Final = 10_000
TRANSACTION_UID: Final = "00081195"
STATE: Final = "00741000"
UNSPECIFIED: Final = ("110513", "DCM", "Discontinued for unspecified reason")
PROCESSING: Final = ("110001", "DCM", "Image Processing")


def render_workitem(tx: Transaction, view: WorkitemView, *, is_listed: bool = False) -> Attributes:
    """Render a workitem; one of a list names its series, not every instance."""
    if view.attributes is None:
        return dict(sorted(_of_job(tx, view, is_listed=is_listed).items()))
    rendered = {**view.attributes, **_always(view)}
    if view.state is JobState.CANCELED and view.job is None:
        rendered = {**_canceled(view), **rendered}
    if view.job is not None:
        rendered |= _performed(tx, view, view.job)
    return dict(sorted(rendered.items()))


def element(keyword: str, *values: object) -> tuple[str, dict[str, Any]]:
    """Tag and DICOM JSON element of some values; empty ones make an element without Value."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    vr = dictionary_VR(tag)
    present = [value for value in values if value not in (None, "")]
    if vr == "PN":
        names = ("Alphabetic", "Ideographic", "Phonetic")
        present = [
            {name: text for name, text in zip(names, str(value).split("="), strict=False) if text}
            for value in present
        ]
    return f"{tag:08X}", {"vr": vr, "Value": present} if present else {"vr": vr}


def data_set(*elements: tuple[str, dict[str, Any]]) -> Attributes:
    """Elements as a DICOM JSON object."""
    return dict(sorted(elements))


def code(keyword: str, value: str, scheme: str, meaning: str) -> tuple[str, dict[str, Any]]:
    """A code sequence of one item."""
    item = data_set(
        element("CodeValue", value),
        element("CodingSchemeDesignator", scheme),
        element("CodeMeaning", meaning[:64]),
    )
    return element(keyword, item)


def moment(seconds: float | None) -> str | None:
    """A DT value in UTC of epoch seconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d%H%M%S.%f") + "+0000"


def _always(view: WorkitemView) -> Attributes:
    return data_set(
        element("SpecificCharacterSet", "ISO_IR 192"),
        element("SOPClassUID", PUSH_SOP_CLASS),
        element("SOPInstanceUID", view.workitem_uid),
        element("ProcedureStepState", str(view.state)),
        element("ScheduledProcedureStepModificationDateTime", moment(view.changed_at)),
    )


def _of_job(tx: Transaction, view: WorkitemView, *, is_listed: bool) -> Attributes:
    job = view.job
    if job is None:
        return _always(view)
    return {
        **_always(view),
        **_patient(view),
        **data_set(
            element("ProcedureStepLabel", f"{job.rule}: {job.model}"[:64]),
            element("WorklistLabel", WORKLIST),
            element("ScheduledProcedureStepPriority", _priority(job.priority)),
            element("ScheduledProcedureStepStartDateTime", moment(job.created_at)),
            element("InputReadinessState", "READY"),
            code("ScheduledWorkitemCodeSequence", *PROCESSING),
            _parameters(job),
            element("InputInformationSequence", _input(tx, job, is_listed=is_listed)),
        ),
        **_performed(tx, view, job),
    }


def _patient(view: WorkitemView) -> Attributes:
    study = view.study
    if study is None:
        return {}
    request = data_set(
        element("StudyInstanceUID", study.study_instance_uid),
        element("AccessionNumber", study.accession_number),
    )
    return data_set(
        *(element(keyword, value) for keyword, value in values_of(study, OF_PATIENT)),
        element("ReferencedRequestSequence", request),
    )


def _priority(priority: int) -> str:
    return "MEDIUM" if priority == 0 else "HIGH" if priority > 0 else "LOW"


def _parameters(job: Job) -> tuple[str, dict[str, Any]]:
    """The question and the model, as they can be given at creation."""
    given = (("model", job.model), ("query", job.query), ("target", job.target))
    items = [_text_parameter(name, value) for name, value in given if value]
    return element("ScheduledProcessingParametersSequence", *items)


def _text_parameter(name: str, value: str) -> Attributes:
    return data_set(
        element("ValueType", "TEXT"),
        code("ConceptNameCodeSequence", name, OUR_SCHEME, name.capitalize()),
        element("TextValue", value),
    )


def _input(tx: Transaction, job: Job, *, is_listed: bool) -> Attributes:
    address = f"{DICOM_WEB}/studies/{job.study_instance_uid}/series/{job.series_instance_uid}"
    retrieval = data_set(element("RetrieveURL", address))
    parts = [
        element("TypeOfInstances", "DICOM"),
        element("StudyInstanceUID", job.study_instance_uid),
        element("SeriesInstanceUID", job.series_instance_uid),
        element("WADORSRetrievalSequence", retrieval),
    ]
    if not is_listed:
        rows = kept_instances(tx, job.study_instance_uid, job.series_instance_uid)[:MAX_REFERENCES]
        named = [_reference(row.sop_class_uid, row.sop_instance_uid) for row in rows]
        parts.append(element("ReferencedSOPSequence", *named))
    return data_set(*parts)


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Attributes:
    return data_set(
        element("ReferencedSOPClassUID", sop_class_uid), element("ReferencedSOPInstanceUID", sop_instance_uid)
    )


def _performed(tx: Transaction, view: WorkitemView, job: Job) -> Attributes:
    """What the node did, and what came of it."""
    parts = [element("ProcedureStepProgressInformationSequence", _progress(view, job))]
    if job.started_at is not None:
        parts.append(element("UnifiedProcedureStepPerformedProcedureSequence", _procedure(tx, job)))
    return data_set(*parts)


def _progress(view: WorkitemView, job: Job) -> Attributes:
    is_over = view.state is JobState.COMPLETED
    parts = [element("ProcedureStepProgress", "100" if is_over else str(_percent(job)))]
    said = job.outcome if job.reason is None else f"{job.outcome}: {job.reason}"
    if how_far := images_read(job):
        parts.append(element("ProcedureStepProgressDescription", how_far))
    if job.outcome:
        parts.append(element("ProcedureStepProgressDescription", str(said)[:1000]))
    if view.state is JobState.CANCELED:
        parts += [
            element("ProcedureStepCancellationDateTime", moment(job.finished_at)),
            element("ReasonForCancellation", str(said)[:1000]),
            code("ProcedureStepDiscontinuationReasonCodeSequence", *UNSPECIFIED),
        ]
    return data_set(*parts)


def _percent(job: Job) -> int:
    return 100 * (job.images_done or 0) // job.images_all if images_read(job) and job.images_all else 0


def _canceled(view: WorkitemView) -> Attributes:
    """What a workitem that was canceled before anybody performed it must say."""
    progress = data_set(
        element("ProcedureStepCancellationDateTime", moment(view.finished_at)),
        code("ProcedureStepDiscontinuationReasonCodeSequence", *UNSPECIFIED),
    )
    return data_set(element("ProcedureStepProgressInformationSequence", progress))


def _procedure(tx: Transaction, job: Job) -> Attributes:
    parts = [
        code("PerformedStationNameCodeSequence", WORKLIST, OUR_SCHEME, "SIM4SEG node"),
        element("PerformedProcedureStepStartDateTime", moment(job.started_at)),
        code("PerformedWorkitemCodeSequence", *PROCESSING),
    ]
    if job.finished_at is not None:
        parts.append(element("PerformedProcedureStepEndDateTime", moment(job.finished_at)))
    return data_set(*parts, element("OutputInformationSequence", *_output(tx, job)))


def _output(tx: Transaction, job: Job) -> Iterator[Attributes]:
    for row in _results(tx, job):
        yield data_set(
            element("TypeOfInstances", "DICOM"),
            element("StudyInstanceUID", row.study_instance_uid),
            element("SeriesInstanceUID", row.series_instance_uid),
            element("ReferencedSOPSequence", _reference(row.sop_class_uid, row.sop_instance_uid)),
        )


def _results(tx: Transaction, job: Job) -> Sequence[Instance]:
    uids = json.loads(job.summary or "{}").get("sop_instance_uids") or {}
    found = (find_instance(tx, str(uid)) for uid in uids.values())
    return [row for row in found if row is not None]
