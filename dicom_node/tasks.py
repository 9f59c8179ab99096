"""Celery app and its thin tasks; arguments are ids. A message is a wake-up, the job table the truth."""

import logging
import os
import socket
import time
from collections.abc import Callable

from celery import Celery, signals
from celery.worker import state
from kombu import Queue
from kombu.exceptions import OperationalError

from dicom_node import readiness
from dicom_node.attempt import MODEL_ERRORS, claim, keep_lease, settle_failure
from dicom_node.deliver import DeliveryServices, deliver
from dicom_node.frames import FrameLimits
from dicom_node.pipeline import Services, run_job, warm_up
from dicom_node.predictors import Predictors
from dicom_node.services import open_receiver
from dicom_node.settings import NodeSettings
from inference.contract import Predictor
from storage.database import Database
from storage.deliveries import due_deliveries
from storage.errors import LeaseLost

logger = logging.getLogger(__name__)

RUN_QUEUE = "run"
DELIVER_QUEUE = "deliver"
OPENING = "the models are being opened"


def build_app(settings: NodeSettings) -> Celery:
    """The Celery app of this node: JSON only, one message at a time, no results kept."""
    app = Celery("dicom_node", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker.url,
        broker_transport_options=_transport_options(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_heartbeat=0,  # a job blocks the solo worker for longer than a heartbeat may take
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_queues=[Queue(RUN_QUEUE), Queue(DELIVER_QUEUE)],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def _transport_options(settings: NodeSettings) -> dict[str, object]:
    if not settings.broker.url.startswith("filesystem://"):
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

    def run_job(self, job_id: str) -> None:
        """Wake a worker for this job."""
        self._app.send_task(RUN_QUEUE, args=[job_id], queue=RUN_QUEUE, retry=False)

    def deliver(self, delivery_id: str) -> None:
        """Wake a worker for this delivery."""
        self._app.send_task(DELIVER_QUEUE, args=[delivery_id], queue=DELIVER_QUEUE, retry=False)


def register_run_job(app: Celery, settings: NodeSettings, database: Database) -> None:
    """Open the models of the rules and let `app` run jobs."""
    worker = RunWorker(settings, database, WakeUps(app))
    worker.open_models()

    @app.task(name=RUN_QUEUE)  # type: ignore[untyped-decorator]
    def run(job_id: str) -> None:
        worker.run(job_id)


def register_deliver(app: Celery, settings: NodeSettings, database: Database) -> None:
    """Let `app` deliver results."""
    services = DeliveryServices(database, settings, worker_name())

    @app.task(name=DELIVER_QUEUE)  # type: ignore[untyped-decorator]
    def run(delivery_id: str) -> None:
        deliver(delivery_id, services)


class RunWorker:
    """Runs jobs in this process, with predictors that are opened once."""

    def __init__(self, settings: NodeSettings, database: Database, wake_ups: WakeUps) -> None:
        self._settings = settings
        self._database = database
        self._wake_ups = wake_ups
        self._predictors = Predictors(settings, is_worker=True)
        self._services = job_services(settings, database, self._predictors.open)

    def open_models(self) -> None:
        """Open every model of the rules before the first job; one that cannot be makes the node unready."""
        readiness.report(self._settings.home, "models", OPENING)
        for name in sorted({route.model for route in self._settings.routes}):
            try:
                self._predictors.open(name)
            except MODEL_ERRORS:
                logger.exception("the model cannot be opened", extra={"model": name})
        warm_up()
        readiness.report(self._settings.home, "models", None)

    def run(self, job_id: str) -> None:
        """Make one attempt at a job; nothing happens if it is not due."""
        job = claim(self._database, job_id, worker_name(), self._settings)
        if job is None:
            return
        started = time.monotonic()
        with keep_lease(self._database, job, self._settings):
            try:
                run_job(job, self._services)
            except LeaseLost:
                logger.warning("job was taken over", extra={"job_id": job_id, "attempt": job.attempt})
                return
            except Exception as error:  # the task boundary: logged, and the job never stays in progress
                logger.exception("attempt failed", extra={"job_id": job_id, "attempt": job.attempt})
                settle_failure(self._database, job, error, self._settings)
                return
        seconds = round(time.monotonic() - started, 3)
        logger.info("job finished", extra={"job_id": job_id, "attempt": job.attempt, "seconds": seconds})
        self._wake_deliveries()

    def _wake_deliveries(self) -> None:
        with self._database.reading() as tx:
            due = due_deliveries(tx)
        try:
            for delivery_id in due:
                self._wake_ups.deliver(delivery_id)
        except OperationalError:
            logger.warning("no broker to wake deliveries with; the sweep will", exc_info=True)


def worker_name() -> str:
    """Who holds a lease: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def job_services(
    settings: NodeSettings, database: Database, open_predictor: Callable[[str], Predictor]
) -> Services:
    """What run_job needs around it, by the configuration."""
    limits = settings.limits
    return Services(
        database=database,
        receiver=open_receiver(settings, database),
        files_root=settings.storage.files_root,
        open_predictor=open_predictor,
        frame_limits=FrameLimits(
            limits.max_frames, limits.max_frame_megapixels, limits.max_series_megapixels
        ),
        destinations=tuple(destination.name for destination in settings.destinations),
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
