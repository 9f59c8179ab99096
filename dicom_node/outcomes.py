"""8 STORE. What a job ends with: results that pass the check, or a small report that says why there are none.

Silence never means normal: a study that was not suitable, or whose analysis failed, gets a report too, made
from rows of the index alone, since the images may be the very thing that cannot be read.
"""

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.air.gate import Broken, check_references, check_together
from dicom_node.findings import Ended, Findings
from dicom_node.forms.form import Form, Made, Recipient
from dicom_node.frames import Frame, SourceSeries
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.receive import Receiver
from dicom_node.sr import build_report
from dicom_node.unmatched import NOT_ROUTED
from storage.database import Transaction
from storage.deliveries import queue_delivery
from storage.index import instances_of_series
from storage.keywords import OF_STUDY, values_of
from storage.questions import hold_results
from storage.tables import Instance, Series, Study

logger = logging.getLogger(__name__)

WORDS: Final = {
    "NOT SUITABLE": "Not analysed, the images are not suitable",
    "FAILED": "Not analysed, the analysis failed",
    NOT_ROUTED: "Not analysed, no rule asks for it",
}
UNKNOWN: Final = "unknown"


class ResultBroken(Exception):
    """Results that break a rule, so that nothing of them is stored or sent."""

    def __init__(self, broken: Sequence[Broken]) -> None:
        self.broken = tuple(broken)
        super().__init__("the result breaks a rule: " + "; ".join(map(str, self.broken[:5])))


class JobOfSeries(Protocol):
    """What of a job its outcome is made from."""

    @property
    def job_id(self) -> str: ...  # noqa: D102
    @property
    def study_instance_uid(self) -> str: ...  # noqa: D102
    @property
    def series_instance_uid(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def query(self) -> str: ...  # noqa: D102


class Outbox(Protocol):
    """What storing needs of the services of a job."""

    @property
    def receiver(self) -> Receiver: ...  # noqa: D102
    @property
    def destinations(self) -> tuple[Recipient, ...]: ...  # noqa: D102


def require_sound(
    results: Sequence[Made], sources: Sequence[Dataset], recipients: Sequence[Recipient]
) -> None:
    """Let nothing pass that a rule of `air` forbids, neither all together nor what one destination gets.

    Raises
    ------
    ResultBroken
        Before anything is stored.
    """
    broken = check_together([made.dataset for made in results], sources)
    for profile in dict.fromkeys(recipient.forms for recipient in recipients):
        broken += check_references([made.dataset for made in results if made.is_for(profile)], sources)
    if broken:
        raise ResultBroken(broken)


def store_and_queue(tx: Transaction, services: Outbox, job_id: str, results: Sequence[Made]) -> list[str]:
    """Store sound results and queue each for the destinations it is for, in the caller's transaction."""
    stored = services.receiver.receive_own_results(tx, [made.dataset for made in results], job_id)
    for made, sop_instance_uid in zip(results, stored, strict=True):
        for destination in services.destinations:
            if made.is_for(destination.forms):
                queue_delivery(tx, sop_instance_uid, destination.name, job_id)
    hold_results(tx, job_id)
    return stored


def end_without_result(
    tx: Transaction, services: Outbox, job: JobOfSeries, *, outcome: str, reason: str
) -> list[str]:
    """Store and queue the report that a job ended with `outcome` and why; its UIDs follow from both.

    Nothing is written for a series without instances, which nobody waits for.
    """
    series = _series_from_rows(tx, job)
    if series is None:
        return []
    report = outcome_report(series, job, Ended(WORDS.get(outcome, outcome), reason))
    broken = check_together([report], series.datasets)
    if broken:  # the identity of the images themselves breaks a rule; the operator's page still tells
        logger.error("outcome not sent", extra={"job_id": job.job_id, "reason": str(broken[0])})
        return []
    return store_and_queue(tx, services, job.job_id, [Made(Form.SR, report)])


def outcome_report(series: SourceSeries, job: JobOfSeries, ended: Ended) -> Dataset:
    """The report on an analysis without a result."""
    identity = ModelIdentity(job.model, UNKNOWN, UNKNOWN)
    query = f"{job.query} | {ended.words} | {ended.reason}"
    provenance = Provenance(job.study_instance_uid, job.series_instance_uid, series.digests, identity, query)
    key = Frame(np.zeros((1, 1), np.uint8), series.datasets[0], None, None, "", None, None, None)
    findings = Findings(
        target=None,
        body_part="",
        diagnosis=None,
        confidence=None,
        text="",
        reasoning="",
        key=key,
        region=None,
        remarks=(),
        ended=ended,
    )
    return build_report(series, (), findings, provenance)


def _series_from_rows(tx: Transaction, job: JobOfSeries) -> SourceSeries | None:
    rows = instances_of_series(tx, job.series_instance_uid)
    study, series = tx.get(Study, job.study_instance_uid), tx.get(Series, job.series_instance_uid)
    if not rows or study is None or series is None:
        return None
    datasets = tuple(_source(study, series, row) for row in rows)
    return SourceSeries(datasets, (), tuple(sorted(row.sha256 for row in rows)), ())


def _source(study: Study, series: Series, row: Instance) -> Dataset:
    """As much of an image's header as the index holds."""
    source = Dataset()
    source.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values_of(study, OF_STUDY):
        setattr(source, keyword, value or "")
    source.SeriesInstanceUID = series.series_instance_uid
    source.SeriesDate, source.SeriesTime = series.series_date, series.series_time
    source.Modality = series.modality
    source.SOPClassUID, source.SOPInstanceUID = row.sop_class_uid, row.sop_instance_uid
    source.Rows, source.Columns = row.rows or 1, row.columns or 1
    return source
