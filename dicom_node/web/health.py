"""Alive, ready, and why not; Prometheus metrics.

Every figure comes from the database at the time of asking; no process is asked for its own. Without the
database the answer still says that, and why, the node is not ready.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from starlette.requests import Request
from starlette.responses import Response

from dicom_node import readiness
from dicom_node.audit.health import AuditCollector
from dicom_node.audit.health import problems as audit_problems
from dicom_node.header import MIB
from dicom_node.readiness import Problem
from dicom_node.settings import NodeSettings
from dicom_node.settings_web import Role
from dicom_node.web.login.way_in import login_problems
from dicom_node.web.login.who import may
from dicom_node.web.services import json_response, services_of
from dicom_node.whereabouts import missing_files
from storage.corrections import correction_counts
from storage.database import Database, Transaction, database_now, require_current_schema
from storage.durable import errno_name
from storage.errors import SchemaMismatch, StorageUnavailable
from storage.files import FileStore
from storage.tables import Conflict, Delivery, Instance, Job, Study

Check = Callable[[], list[Problem]]
QUEUED: Final = "SCHEDULED"
DATABASE, SCHEMA, DISK, FILES, OBJECT_STORE = "database", "schema", "disk", "files", "object store"
SYSTEM: Final = "system"
NOBODYS_FILE: Final = f"objects/00/{64 * '0'}.dcm"  # the store is asked for it, and says that it has none


def live(request: Request) -> Response:
    """Answer GET /health/live: this process answers."""
    del request
    return json_response({"status": "alive"})


def ready(request: Request) -> Response:
    """Answer GET /health/ready: 200, or 503 with every reason; to who has no role for that, without them."""
    problems = _problems(request)
    if problems and not may(request, Role.MONITOR):
        return json_response({"status": "not ready"}, 503)
    if problems:
        reasons, sentences = zip(*problems, strict=True)
        return json_response({"status": "not ready", "reasons": reasons, "problems": sentences}, 503)
    return json_response({"status": "ready"})


def metrics(request: Request) -> Response:
    """Answer GET /metrics in Prometheus' text format."""
    problems = _problems(request)
    audit = AuditCollector(services_of(request).settings)
    if not {problem.reason for problem in problems} & {DATABASE, SCHEMA}:
        with suppress(StorageUnavailable), services_of(request).database.reading() as tx:
            return _exposition(_ReadinessCollector(problems), audit, _NodeCollector(tx))
    return _exposition(_ReadinessCollector(problems), audit)


def _exposition(*collectors: Collector) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return Response(generate_latest(registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})


def _problems(request: Request) -> list[Problem]:
    return [problem for check in services_of(request).readiness_checks for problem in _asked(check)]


def _asked(check: Check) -> list[Problem]:
    try:
        return check()
    except OSError as error:  # no descriptors left, or a home that cannot be read
        return [Problem(SYSTEM, f"the node cannot look after itself ({errno_name(error)}): see its logs")]


def readiness_checks(settings: NodeSettings, database: Database, files: FileStore) -> list[Check]:
    """The checks of this node, each giving what is wrong."""
    checks = [
        lambda: _database_problems(database),
        lambda: _disk_problems(settings),
        lambda: _files_problems(settings, database),
        lambda: readiness.problems(settings.home),
        lambda: audit_problems(settings),
    ]
    if settings.http.login != "none":
        checks.append(lambda: login_problems(settings))
    return checks if settings.storage.s3_bucket is None else [*checks, lambda: _bucket_problems(files)]


def _database_problems(database: Database) -> list[Problem]:
    try:
        require_current_schema(database)
    except SchemaMismatch as error:
        return [Problem(SCHEMA, str(error))]
    except StorageUnavailable as error:
        return [Problem(DATABASE, str(error))]
    return []


def _bucket_problems(files: FileStore) -> list[Problem]:
    try:
        files.find(NOBODYS_FILE)
    except StorageUnavailable as error:
        return [Problem(OBJECT_STORE, str(error))]
    return []


def _disk_problems(settings: NodeSettings) -> list[Problem]:
    root = settings.storage.files_root
    try:
        free = shutil.disk_usage(root if root.exists() else settings.home).free // MIB
    except OSError as error:
        return [Problem(DISK, f"the folder of the files cannot be looked at ({error.strerror})")]
    limits, sentence = settings.limits, f"{free} MiB of disk are free, below limits"
    if free < limits.min_free_mb:
        return [Problem(DISK, f"{sentence}.min_free_mb: nothing is received until there is room")]
    if free < limits.low_free_mb:
        return [Problem(DISK, f"{sentence}.low_free_mb: no new association or upload is taken")]
    return []


def _files_problems(settings: NodeSettings, database: Database) -> list[Problem]:
    sentence = missing_files(settings.storage, database)
    return [] if sentence is None else [Problem(FILES, f"{sentence}; nothing is received")]


class _ReadinessCollector(Collector):
    """Whether the node is ready, and why not."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = problems

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric families."""
        yield _gauge("dicom_node_ready", "1 while /health/ready answers 200.", not self._problems)
        family = GaugeMetricFamily(
            "dicom_node_problem", "What makes the node not ready, by reason.", labels=["reason"]
        )
        for reason in sorted({problem.reason for problem in self._problems}):
            family.add_metric([reason], 1)
        yield family


class _NodeCollector(Collector):
    """Reads all figures in one transaction, so that they agree."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric families."""
        yield self._instances()
        yield self._studies()
        yield self._jobs()
        yield self._deliveries()
        yield self._corrections()
        conflicts = self._tx.scalar(select(func.count()).select_from(Conflict)) or 0
        yield _gauge(
            "dicom_node_conflicts", "Contents in quarantine: a known SOP Instance UID came twice.", conflicts
        )
        yield _gauge(
            "dicom_node_oldest_queued_job_age_seconds",
            "Age of the oldest job that waits.",
            self._oldest_queued(),
        )

    def _instances(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "dicom_node_instances", "Instances received, by origin.", labels=["origin"]
        )
        for origin, count in self._tx.execute(
            select(Instance.origin_kind, func.count()).group_by(Instance.origin_kind)
        ):
            family.add_metric([origin], count)
        return family

    def _studies(self) -> GaugeMetricFamily:
        state = case((Study.completed_at.is_(None), "receiving"), else_="complete")
        family = GaugeMetricFamily("dicom_node_studies", "Studies, by state.", labels=["state"])
        for name, count in self._tx.execute(select(state, func.count()).group_by(state)):
            family.add_metric([name], count)
        return family

    def _jobs(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "dicom_node_jobs", "Jobs, by state and outcome.", labels=["state", "outcome"]
        )
        counted = select(Job.state, Job.outcome, func.count()).group_by(Job.state, Job.outcome)
        for state, outcome, count in self._tx.execute(counted):
            family.add_metric([state, outcome or ""], count)
        return family

    def _deliveries(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "dicom_node_deliveries", "Deliveries, by destination and state.", labels=["destination", "state"]
        )
        counted = select(Delivery.destination, Delivery.state, func.count()).group_by(
            Delivery.destination, Delivery.state
        )
        for destination, state, count in self._tx.execute(counted):
            family.add_metric([destination, state], count)
        return family

    def _corrections(self) -> GaugeMetricFamily:
        labels = ["model", "version", "verdict"]
        family = GaugeMetricFamily(
            "dicom_node_corrections", "Results that people judged, by model, version, verdict.", labels=labels
        )
        for each in correction_counts(self._tx):
            family.add_metric([each.model, each.model_version, each.verdict.lower()], each.count)
        return family

    def _oldest_queued(self) -> float:
        age = self._tx.scalar(select(database_now() - func.min(Job.created_at)).where(Job.state == QUEUED))
        return max(0.0, age or 0.0)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)
