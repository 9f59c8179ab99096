"""5-8. run_job(): load -> preprocess -> run -> SEG, SR and other forms -> store, one screen long."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from dicom_node.analysis import Result, analyse
from dicom_node.earlier_report import earlier_report
from dicom_node.errors import InputUnreadable
from dicom_node.forms.form import Recipient
from dicom_node.frames import (
    Decode,
    Frame,
    FrameLimits,
    NotSuitable,
    SourceSeries,
    display_frames,
    join_series,
    load_series,
)
from dicom_node.heart_series import read_headers, stack_with
from dicom_node.make_dicom import SeriesDetails, build_series
from dicom_node.mask_stack import MaskStack
from dicom_node.outcomes import ResultBroken, end_without_result, require_sound, store_and_queue
from dicom_node.progress import Progress
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.reading import VENTRICLE, AnalysisRequest
from dicom_node.receive import Receiver
from dicom_node.seg import SegmentationRequest, build_segmentation
from dicom_node.standing import Standing, standing_of
from dicom_node.unmatched import NO_MODEL, NO_RULE, NOT_ROUTED
from inference.contract import Predictor
from inference.errors import InputRejected
from storage.database import Database
from storage.errors import InstanceDamaged, InstanceMissing, StorageUnavailable
from storage.files import FileStore
from storage.index import find_study, instances_of_series, series_of_study
from storage.jobs import FAILED, ClaimedJob, cancel_job, complete_job, series_asked_alike
from storage.questions import send_repeated
from storage.soundness import sound_local
from storage.tables import Job
from storage.versions import (
    OutdatedError,
    OvertakenError,
    remember_inputs,
    supersede,
    supersede_outcomes,
)

NOT_SUITABLE: Final = "NOT SUITABLE"
OUTDATED: Final = "OUTDATED"  # what it saw counts no longer; another version follows or is there
OTHER_SERIES: Final = "OTHER SERIES"  # analysed as a slice of the stack that another series' job reads


class OfAnotherSeries(Exception):
    """The series is a slice of a stack that the job of another series analyses."""

    def __init__(self, series_instance_uid: str) -> None:
        super().__init__(series_instance_uid)
        self.series_instance_uid = series_instance_uid


class Answered(Exception):
    """The same was asked about the same images before, and the answer is current."""

    def __init__(self, job: Job, standing: Standing) -> None:
        super().__init__(job.job_id)
        self.job = job
        self.standing = standing


@dataclass(frozen=True, eq=False)
class Services:
    """What run_job needs around it."""

    database: Database
    receiver: Receiver
    files: FileStore
    open_predictor: Callable[[str], Predictor]
    frame_limits: FrameLimits
    destinations: tuple[Recipient, ...]
    decode: Decode = display_frames  # of image files; a worker has it done in limited children


def run_job(job: ClaimedJob, services: Services) -> None:
    """One attempt at a job: objects, completion and deliveries are stored in one transaction, or nothing is.

    Raises
    ------
    InputUnreadable
        If a stored image is missing or cannot be read: none is left out of a result silently.
    LeaseLost
        If another worker claimed the job meanwhile; nothing of this attempt is stored.
    OvertakenError
        If other versions of the result appeared again and again.
    """
    if job.model == NO_MODEL:
        _tell_unmatched(job, services)
        return
    predictor = services.open_predictor(job.model)
    try:
        _analyse_and_store(job, predictor, services)
    except OvertakenError:  # on top of what another version has stored meanwhile
        _analyse_and_store(job, predictor, services)


def _analyse_and_store(job: ClaimedJob, predictor: Predictor, services: Services) -> None:
    try:
        result, standing = _analyse(job, predictor, services)
    except (NotSuitable, InputRejected) as error:
        _end(job, services, NOT_SUITABLE, str(error))
        return
    except ResultBroken as error:  # the same again at every attempt
        _end(job, services, FAILED, str(error))
        return
    except OfAnotherSeries as other:
        _leave_to(other.series_instance_uid, job, services)
        return
    except Answered as earlier:
        _repeat(earlier.job, job, earlier.standing, services)
        return
    try:
        _store(job, result, standing, predictor.version, services)
    except OutdatedError as error:
        with services.database.transaction() as tx:
            cancel_job(tx, job.job_id, job.fence, OUTDATED, str(error))


def _store(
    job: ClaimedJob, result: Result, standing: Standing, model_version: str, services: Services
) -> None:
    summary = result.summary | {"standing": standing.summary()}
    with services.database.transaction() as tx:
        stored = store_and_queue(tx, services, job.job_id, result.objects)
        supersede(tx, job, standing.inputs, standing.predecessors, stored)
        complete_job(tx, job.job_id, job.fence, result.outcome, summary, model_version=model_version)


def _repeat(earlier: Job, job: ClaimedJob, standing: Standing, services: Services) -> None:
    """The same images, model and question have their result: it is this job's, too."""
    summary = json.loads(earlier.summary or "{}") | {"same_as": earlier.job_id}
    with services.database.transaction() as tx:
        remember_inputs(tx, job, standing.inputs)
        complete_job(
            tx,
            job.job_id,
            job.fence,
            earlier.outcome or "",
            summary,
            model_version=earlier.model_version,
        )
        send_repeated(tx, job.job_id)


def _analyse(job: ClaimedJob, predictor: Predictor, services: Services) -> tuple[Result, Standing]:
    """The result on the series of the job, or on the stack of the heart that it begins."""
    with ExitStack() as held:  # files of a bucket are on this machine as long as they are worked on
        stack = _stack(job, services, held)
        if stack[0] != job.series_instance_uid:
            raise OfAnotherSeries(stack[0])
        with services.database.reading() as tx:
            standing = standing_of(tx, job, stack, predictor.version)
        if standing.answered is not None:
            raise Answered(standing.answered, standing)
        parts = [
            load_series(_local(standing.paths[uid], services, held), services.frame_limits, services.decode)
            for uid in stack
        ]
        series = join_series(parts)
        report = earlier_report(_reports(job, services, held), series.datasets[0])
        progress = Progress(services.database, job)
        request = AnalysisRequest(job.query, job.target or None, report, progress)
        profiles = {recipient.forms for recipient in services.destinations}
        result = analyse(series, predictor, request, standing.context, profiles)
        require_sound(result.objects, series.datasets, services.destinations)
        return result, standing


def _tell_unmatched(job: ClaimedJob, services: Services) -> None:
    """Say to those who ask for it that no rule matched the study."""
    with services.database.reading() as tx:
        study = find_study(tx, job.study_instance_uid)
    if study is None or study.version != job.study_version:  # more of it has come meanwhile
        with services.database.transaction() as tx:
            cancel_job(tx, job.job_id, job.fence, OUTDATED, "a newer version of the study follows")
        return
    recipients = tuple(each for each in services.destinations if each.hears_of_unmatched)
    reason = (study.outcome or "").removeprefix(NO_RULE)
    _end(job, replace(services, destinations=recipients), NOT_ROUTED, reason)


def _end(job: ClaimedJob, services: Services, outcome: str, reason: str) -> None:
    with services.database.transaction() as tx:
        stored = end_without_result(tx, services, job, outcome=outcome, reason=reason)
        supersede_outcomes(tx, job, stored)
        cancel_job(tx, job.job_id, job.fence, outcome, reason)


def warm_up() -> None:
    """Make one tiny segmentation, so that highdicom reads its tables (1 s) before the first job."""
    (source,) = build_series([np.zeros((8, 8), np.uint8)], SeriesDetails(modality="US"))
    frame = Frame(np.zeros((8, 8), np.uint8), source, None, None, "", None, None, None)
    model = ModelIdentity("warm-up", "0", "0" * 64)
    provenance = Provenance(str(source.StudyInstanceUID), str(source.SeriesInstanceUID), (), model, "")
    series = SourceSeries((source,), (frame,), (), ())
    stack = MaskStack.of([np.ones((8, 8), bool)])
    build_segmentation(series, [stack], SegmentationRequest((None,), "", provenance))


def _stack(job: ClaimedJob, services: Services, held: ExitStack) -> tuple[str, ...]:
    """The series that are slices of one heart with this job's, lowest first; its own alone otherwise."""
    if job.target != VENTRICLE:
        return (job.series_instance_uid,)
    with services.database.reading() as tx:
        alike = series_asked_alike(tx, job)
    if len(alike) < 2:
        return (job.series_instance_uid,)
    headers = {uid: read_headers(_paths(uid, services, held)) for uid in alike}
    return stack_with(job.series_instance_uid, headers)


def _leave_to(series_instance_uid: str, job: ClaimedJob, services: Services) -> None:
    summary = {"analysed_with": series_instance_uid, "sop_instance_uids": {}}
    with services.database.transaction() as tx:
        complete_job(tx, job.job_id, job.fence, OTHER_SERIES, summary)


def _paths(series_instance_uid: str, services: Services, held: ExitStack) -> list[Path]:
    with services.database.reading() as tx:
        stored = [row.path for row in instances_of_series(tx, series_instance_uid)]
    return _local(stored, services, held)


def _reports(job: ClaimedJob, services: Services, held: ExitStack) -> list[Path]:
    """The files of the study's Structured Reports that others made."""
    with services.database.reading() as tx:
        told = [
            row.path
            for series in series_of_study(tx, job.study_instance_uid)
            if series.modality == "SR" and not series.is_own_result
            for row in instances_of_series(tx, series.series_instance_uid)
        ]
    return _local(told, services, held)


def _local(stored: Sequence[str], services: Services, held: ExitStack) -> list[Path]:
    try:
        return [held.enter_context(sound_local(services.files, path)) for path in stored]
    except (InstanceDamaged, InstanceMissing, StorageUnavailable) as error:
        raise InputUnreadable(str(error)) from error
