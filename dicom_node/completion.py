"""3 STUDY COMPLETE. Decides from database times, never from timers; records evidence, then creates jobs."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from dicom_node.routing import RouteChoice, SeriesAttributes, choose_route
from dicom_node.settings import NodeSettings
from dicom_node.steady import steadily
from dicom_node.unmatched import NO_RULE, NOT_ROUTED, job_that_tells
from storage.database import Database, Transaction
from storage.identity import note_identity, patients_of
from storage.index import (
    QuietStudy,
    instances_of_series,
    mark_complete,
    quiet_studies,
    record_outcome,
    series_of_study,
)
from storage.jobs import JobRequest, create_job
from storage.notes import DERIVED_MODALITIES
from storage.questions import send_alike
from storage.tables import Instance, Series, Study
from storage.versions import is_answered, retire_ends

logger = logging.getLogger(__name__)

TWO_PATIENTS: Final = "its images name different patients; have them corrected or rejected at their source"


def complete_studies(database: Database, settings: NodeSettings) -> list[str]:
    """Complete every study that is quiet or whose completion was requested; give the new jobs' ids.

    Each study is its own transaction: completion, jobs and outcome appear together or not at all.
    """
    with database.transaction() as tx:
        quiet = quiet_studies(tx, settings.completion.quiet_period_s)
    job_ids: list[str] = []
    for study in quiet:
        complete = partial(_complete_one, database, study, settings)
        uid = study.study_instance_uid
        job_ids += steadily(complete, otherwise=[], what="the completion of a study", study_instance_uid=uid)
    return job_ids


def _complete_one(database: Database, quiet: QuietStudy, settings: NodeSettings) -> list[str]:
    with database.transaction() as tx:
        return _complete(tx, quiet, settings)


def _complete(tx: Transaction, quiet: QuietStudy, settings: NodeSettings) -> list[str]:
    if settings.completion.hold_incomplete and quiet.is_incomplete:
        words = f"held: {quiet.instance_count} of {quiet.expected_count} instances have come"
        record_outcome(tx, quiet.study_instance_uid, words)
        return []
    evidence = _evidence(quiet, settings.completion.quiet_period_s)
    is_ours = mark_complete(
        tx, quiet.study_instance_uid, quiet.version, evidence, last_received_at=quiet.last_received_at
    )
    if not is_ours:  # an instance came since the look: the next pass decides anew
        return []
    if len(patients_of(tx, quiet.study_instance_uid)) > 1:
        note_identity(tx, quiet.study_instance_uid, TWO_PATIENTS)
        record_outcome(tx, quiet.study_instance_uid, f"held: {TWO_PATIENTS}")
        logger.error("study held", extra={"study_instance_uid": quiet.study_instance_uid})
        return []
    all_series = series_of_study(tx, quiet.study_instance_uid)
    choices = {each.series_instance_uid: _choose(tx, each, settings) for each in all_series}
    _send_asked_before(tx, choices)
    job_ids = [
        job_id
        for series_uid, choice in _changed(tx, choices).items()
        if (job_id := _create_job(tx, quiet, series_uid, choice)) is not None
    ]
    record_outcome(tx, quiet.study_instance_uid, outcome_of(choices, len(job_ids)))
    job_ids += _told(tx, quiet, settings, all_series, choices)
    logger.info(
        "study complete",
        extra={
            "study_instance_uid": quiet.study_instance_uid,
            "evidence": evidence["kind"],
            "job_ids": job_ids,
        },
    )
    return job_ids


def _choose(tx: Transaction, series: Series, settings: NodeSettings) -> RouteChoice:
    if not series.is_own_result and series.modality in DERIVED_MODALITIES:
        return RouteChoice(None, ("the series holds no images",))
    attributes = attributes_of(tx, series)
    if not attributes.sop_classes:
        return RouteChoice(None, ("all instances of the series were rejected or withdrawn",))
    return choose_route(attributes, settings.routes)


def _changed(tx: Transaction, choices: Mapping[str, RouteChoice]) -> dict[str, RouteChoice]:
    """Leave out what was asked and answered about the same images: a late series asks only for itself.

    Series that are asked alike may be slices of one stack, so they are left out together or not at all.
    """
    asked: dict[tuple[str, str], list[str]] = {}
    for series_uid, choice in choices.items():
        if choice.route is not None:
            asked.setdefault((choice.route.model, choice.route.query), []).append(series_uid)
    return {
        series_uid: choices[series_uid]
        for (model, query), series_uids in asked.items()
        if not all(is_answered(tx, series_uid, model, query) for series_uid in series_uids)
        for series_uid in series_uids
    }


def _told(
    tx: Transaction,
    quiet: QuietStudy,
    settings: NodeSettings,
    all_series: Sequence[Series],
    choices: Mapping[str, RouteChoice],
) -> list[str]:
    """The job that says that no rule matched, or none; what said so before holds no longer once one does."""
    if any(choice.route is not None for choice in choices.values()):
        retire_ends(tx, quiet.study_instance_uid, NOT_ROUTED)
        return []
    request = job_that_tells(tx, settings, all_series, quiet.version)
    job_id = None if request is None else create_job(tx, request)
    return [] if job_id is None else [job_id]


def _send_asked_before(tx: Transaction, choices: Mapping[str, RouteChoice]) -> None:
    """Results of a question that a rule asks, too, are the rule's, and go where those go."""
    for series_uid, choice in choices.items():
        if choice.route is not None:
            send_alike(tx, series_uid, choice.route.model, choice.route.query)


def _evidence(quiet: QuietStudy, quiet_period_s: float) -> dict[str, Any]:
    return {
        "kind": "requested" if quiet.requested_by else "quiet period",
        "requested_by": quiet.requested_by,
        "quiet_period_s": quiet_period_s,
        "last_received_at": quiet.last_received_at,
        "instance_count": quiet.instance_count,
        "expected_count": quiet.expected_count,
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
        if not job_count:
            return "unchanged: the results of before hold"
        return f"{job_count} job" if job_count == 1 else f"{job_count} jobs"
    reasons = {" | ".join(choice.why_not) for choice in choices.values()}
    return f"{NO_RULE}{'; '.join(sorted(reasons))}"[:1000]
