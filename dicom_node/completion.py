"""3 STUDY COMPLETE. Decides from database times, never from timers; records evidence, then creates jobs."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dicom_node.routing import RouteChoice, SeriesAttributes, choose_route
from dicom_node.settings import NodeSettings
from storage.database import Database, Transaction
from storage.index import (
    QuietStudy,
    instances_of_series,
    mark_complete,
    quiet_studies,
    record_outcome,
    series_of_study,
)
from storage.jobs import JobRequest, create_job
from storage.tables import Instance, Series, Study

logger = logging.getLogger(__name__)


def complete_studies(database: Database, settings: NodeSettings) -> list[str]:
    """Complete every study that is quiet or whose completion was requested; give the new jobs' ids.

    Each study is its own transaction: completion, jobs and outcome appear together or not at all.
    """
    with database.transaction() as tx:
        quiet = quiet_studies(tx, settings.completion.quiet_period_s)
    job_ids: list[str] = []
    for study in quiet:
        with database.transaction() as tx:
            job_ids += _complete(tx, study, settings)
    return job_ids


def _complete(tx: Transaction, quiet: QuietStudy, settings: NodeSettings) -> list[str]:
    evidence = _evidence(quiet, settings.completion.quiet_period_s)
    is_ours = mark_complete(
        tx, quiet.study_instance_uid, quiet.version, evidence, last_received_at=quiet.last_received_at
    )
    if not is_ours:  # an instance came since the look: the next pass decides anew
        return []
    choices = {
        series.series_instance_uid: choose_route(attributes_of(tx, series), settings.routes)
        for series in series_of_study(tx, quiet.study_instance_uid)
    }
    job_ids = [
        job_id
        for series_uid, choice in choices.items()
        if (job_id := _create_job(tx, quiet, series_uid, choice)) is not None
    ]
    record_outcome(tx, quiet.study_instance_uid, outcome_of(choices, len(job_ids)))
    logger.info(
        "study complete",
        extra={
            "study_instance_uid": quiet.study_instance_uid,
            "evidence": evidence["kind"],
            "job_ids": job_ids,
        },
    )
    return job_ids


def _evidence(quiet: QuietStudy, quiet_period_s: float) -> dict[str, Any]:
    return {
        "kind": "requested" if quiet.requested_by else "quiet period",
        "requested_by": quiet.requested_by,
        "quiet_period_s": quiet_period_s,
        "last_received_at": quiet.last_received_at,
        "instance_count": quiet.instance_count,
    }


def attributes_of(tx: Transaction, series: Series) -> SeriesAttributes:
    """What the rules may look at, from the rows of `series`."""
    instances = instances_of_series(tx, series.series_instance_uid)
    study = tx.get(Study, series.study_instance_uid)
    return SeriesAttributes(
        modality=series.modality or "",
        body_part=series.body_part_examined or "",
        sop_classes=frozenset(instance.sop_class_uid for instance in instances),
        descriptions=(series.series_description or "", (study.study_description or "") if study else ""),
        calling_ae=_calling_ae(instances),
        is_own_result=series.is_own_result,
    )


def _calling_ae(instances: Sequence[Instance]) -> str:
    senders = Counter(instance.origin_detail for instance in instances if instance.origin_kind == "DIMSE")
    return senders.most_common(1)[0][0] if senders else ""


def _create_job(tx: Transaction, quiet: QuietStudy, series_uid: str, choice: RouteChoice) -> str | None:
    if choice.route is None:
        return None
    route = choice.route
    request = JobRequest(
        study_instance_uid=quiet.study_instance_uid,
        study_version=quiet.version,
        series_instance_uid=series_uid,
        rule=route.name,
        model=route.model,
        query=route.query,
        target=route.target,
        priority=route.priority,
    )
    return create_job(tx, request)


def outcome_of(choices: dict[str, RouteChoice], job_count: int) -> str:
    """The sentence that stands as the study's outcome; without a job it says why each rule did not match."""
    if any(choice.route is not None for choice in choices.values()):
        return f"{job_count} job" if job_count == 1 else f"{job_count} jobs"
    reasons = {" | ".join(choice.why_not) for choice in choices.values()}
    return f"no rule matched: {'; '.join(sorted(reasons))}"[:1000]
