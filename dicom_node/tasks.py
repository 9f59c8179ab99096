"""Celery app and its thin tasks. A message is a wake-up without content, the job table the truth."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from celery import Celery, signals
from celery.worker import state
from kombu import Queue
from kombu.exceptions import OperationalError

from dicom_node import mailbox, readiness
from dicom_node.attempt import claim_next, hand_back, keep_lease, settle_failure
from dicom_node.deliver import DeliveryServices, deliver_to
from dicom_node.forms.form import Recipient
from dicom_node.frames import FrameLimits, display_frames
from dicom_node.lanes import Lanes
from dicom_node.limited import LimitedPool
from dicom_node.model_process import ModelStopped
from dicom_node.pipeline import Services, run_job, warm_up
from dicom_node.predictors import WorkerModels
from dicom_node.questions import PRIORITY, RULE
from dicom_node.services import open_decoders, open_receiver
from dicom_node.settings import NodeSettings
from inference.contract import Predictor
from inference.errors import InferenceError
from storage.database import Database
from storage.deliveries import due_destinations
from storage.errors import LeaseLost
from storage.files import open_files
from storage.jobs import ClaimedJob

logger = logging.getLogger(__name__)

RUN_QUEUE = "run"
DELIVER_QUEUE = "deliver"
AT_ONCE = "dicom_node.tasks:at_once"
BROKER_TIMEOUT_S = 5.0
HAND_BACK_S = 5.0  # from the end of the model's process to the row that says so
OPENING = "the models are being opened"
DRAIN_S = 20.0  # what is being sent when the worker is told to end may be sent to its end


def build_app(settings: NodeSettings) -> Celery:
    """The Celery app of this node: JSON only, one message at a time, no results kept."""
    app = Celery("dicom_node", set_as_current=False)
    app.conf.update(
        broker_url=_broker_url(settings),
        broker_transport_options=_transport_options(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=BROKER_TIMEOUT_S,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_queues=[Queue(RUN_QUEUE), Queue(DELIVER_QUEUE)],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def _broker_url(settings: NodeSettings) -> str:
    url = settings.broker.url
    if not url.startswith("filesystem://"):
        return url
    mailbox.register()
    return f"{mailbox.SCHEME}://"


def _transport_options(settings: NodeSettings) -> dict[str, object]:
    """A broker that hangs is one that is down: nothing waits for it longer than BROKER_TIMEOUT_S."""
    scheme = settings.broker.url.partition("://")[0]
    if scheme.startswith("redis"):
        return {"socket_timeout": BROKER_TIMEOUT_S, "socket_connect_timeout": BROKER_TIMEOUT_S}
    if scheme.startswith("amqp"):
        return {"read_timeout": BROKER_TIMEOUT_S, "write_timeout": BROKER_TIMEOUT_S, "confirm_publish": True}
    if scheme != "filesystem":
        return {}
    folder = settings.home / "broker"
    messages, control = folder / "messages", folder / "control"
    for path in (messages, control):
        path.mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),  # without it kombu makes ./control wherever the process was started
        "polling_interval": settings.broker.polling_interval_s,
    }


class WakeUps:
    """Sends wake-ups; one that is lost is sent again by the sweep."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def run_jobs(self) -> None:
        """Wake a worker: there is a job to run."""
        self._app.send_task(RUN_QUEUE, queue=RUN_QUEUE, retry=False)

    def deliver(self, destination: str) -> None:
        """Wake a worker for what waits for this destination."""
        self._app.send_task(DELIVER_QUEUE, args=[destination], queue=DELIVER_QUEUE, retry=False)


def register_run_job(app: Celery, settings: NodeSettings, database: Database) -> None:
    """Open the models of the rules and run jobs: a message wakes the thread that does, and it looks itself.

    So a message is answered at once, however long a job takes: no broker gives it to a second worker.
    """
    worker = RunWorker(settings, database, WakeUps(app), WorkerModels(settings))
    worker.open_models()
    lanes = Lanes(lambda _: worker.run_next(), lambda _: settings.jobs.at_once)
    lanes.wake(RUN_QUEUE)
    signals.worker_shutting_down.connect(lambda **_: worker.end(lanes), weak=False)

    @app.task(name=RUN_QUEUE, Strategy=AT_ONCE)  # type: ignore[untyped-decorator]
    def run() -> None:
        lanes.wake(RUN_QUEUE)


def register_deliver(app: Celery, settings: NodeSettings, database: Database) -> None:
    """Let `app` deliver results: a message wakes the threads of a destination, and they look themselves."""
    files = open_files(settings.storage)
    services = DeliveryServices(database, files, settings, worker_name())
    lanes = Lanes(lambda destination: deliver_to(destination, services), services.threads_of)
    for destination in settings.destinations:
        lanes.wake(destination.name)
    signals.worker_shutting_down.connect(lambda **_: lanes.stop(DRAIN_S), weak=False)

    @app.task(name=DELIVER_QUEUE, Strategy=AT_ONCE)  # type: ignore[untyped-decorator]
    def run() -> None:
        for destination in settings.destinations:
            lanes.wake(destination.name)


def at_once(task: Callable[[], None], _: object, consumer: Any, **__: object) -> Callable[..., None]:
    """Celery's strategy for our tasks: a message is answered and its task called; its body is never read.

    So nothing that somebody puts into the broker is decoded, and no message can end the worker.
    """

    def handle(message: Any, *_: object, **__: object) -> None:
        message.ack_log_error(logger, consumer.connection_errors)
        task()

    return handle


class RunWorker:
    """Runs jobs, jobs.at_once of them side by side, with models that live in processes of their own."""

    def __init__(
        self, settings: NodeSettings, database: Database, wake_ups: WakeUps, models: WorkerModels
    ) -> None:
        self._settings = settings
        self._database = database
        self._wake_ups = wake_ups
        self._models = models
        self._decoders = open_decoders(settings)
        self._services = job_services(settings, database, models.open, self._decoders)
        self._is_ending = threading.Event()

    def open_models(self) -> None:
        """Open every model of the rules before the first job; one that cannot be makes the node unready."""
        readiness.report(self._settings.home, "models", OPENING)
        for name in sorted({route.model for route in self._settings.routes}):
            try:
                self._models.open(name)
            except (InferenceError, ModelStopped):
                logger.exception("the model cannot be opened", extra={"model": name})
        warm_up()
        readiness.report(self._settings.home, "models", None)

    def run_next(self) -> bool:
        """Make one attempt at the job that is next; False when none is due."""
        job = claim_next(self._services, worker_name(), self._settings)
        if job is None:
            return False
        started = time.monotonic()
        lost = partial(self._models.stop, job.job_id)
        with keep_lease(self._services, job, self._settings, lost=lost):
            is_done = self._attempt(job)
        self._models.forget(job.job_id)
        if is_done:
            seconds = round(time.monotonic() - started, 3)
            extra = {"job_id": job.job_id, "attempt": job.attempt, "seconds": seconds}
            logger.info("job finished", extra=extra)
            self._wake_deliveries()
        return True

    def _attempt(self, job: ClaimedJob) -> bool:
        extra = {"job_id": job.job_id, "attempt": job.attempt}
        try:
            run_job(job, self._services_of(job))
        except LeaseLost:
            logger.warning("job was taken over", extra=extra)
            return False
        except Exception as error:  # the task boundary: logged, and the job never stays in progress
            if self._is_ending.is_set():
                hand_back(self._database, job)
                return False
            logger.exception("attempt failed", extra=extra)
            settle_failure(self._services, job, error, self._settings)
            return False
        return True

    def _services_of(self, job: ClaimedJob) -> Services:
        """The models as this job asks them: a person's question before what a rule wants."""
        priority = PRIORITY if job.rule == RULE else 0
        return replace(
            self._services, open_predictor=partial(self._models.open, job_id=job.job_id, priority=priority)
        )

    def end(self, lanes: Lanes) -> None:
        """Let the job at hand end within jobs.stop_grace_s, or hand it back; take up nothing new."""
        if not lanes.stop(self._settings.jobs.stop_grace_s):
            self._is_ending.set()
            self._models.stop_all()
            lanes.stop(HAND_BACK_S)
        self.close()

    def close(self) -> None:
        """End the processes of models and decoders."""
        self._models.close()
        self._decoders.close()

    def _wake_deliveries(self) -> None:
        with self._database.reading() as tx:
            due = due_destinations(tx)
        try:
            for destination in due:
                self._wake_ups.deliver(destination)
        except OperationalError:
            logger.warning("no broker to wake deliveries with; the sweep will", exc_info=True)


def worker_name() -> str:
    """Who holds a lease: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def job_services(
    settings: NodeSettings,
    database: Database,
    open_predictor: Callable[[str], Predictor],
    decoders: LimitedPool,
) -> Services:
    """What run_job needs around it, by the configuration."""
    limits = settings.limits
    return Services(
        database=database,
        receiver=open_receiver(settings, database),
        files=open_files(settings.storage),
        open_predictor=open_predictor,
        frame_limits=FrameLimits(
            limits.max_frames, limits.max_frame_megapixels, limits.max_series_megapixels
        ),
        destinations=tuple(
            Recipient(each.name, frozenset(each.forms), each.reports_unmatched)
            for each in settings.destinations
        ),
        decode=partial(decoders.each, display_frames),
    )


def start_worker(app: Celery, queue: str, settings: NodeSettings) -> int:
    """Work on `queue` until SIGTERM; the job at hand is finished first. Gives the exit status."""
    signals.worker_shutting_down.connect(_end_at_once_if_idle, weak=False)
    worker = app.Worker(
        hostname=f"{queue}@{worker_name()}",
        queues=[queue],
        pool="solo",  # the process is the unit: the supervisor starts it again, ONNX Runtime is never forked
        loglevel=settings.logs.level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _end_at_once_if_idle(**_: object) -> None:
    """Celery takes five seconds over a worker that has nothing to do; nothing is lost by not waiting."""
    if not state.active_requests:
        logging.shutdown()
        os._exit(0)
