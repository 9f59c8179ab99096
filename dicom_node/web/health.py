"""Alive, ready, and why not; Prometheus metrics.

Every figure comes from the database at the time of asking; no process is asked for its own.
"""

import shutil
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from starlette.requests import Request
from starlette.responses import Response

from dicom_node import readiness
from dicom_node.header import MIB
from dicom_node.settings import NodeSettings
from dicom_node.web.services import json_response, services_of
from storage.database import Database, Transaction, database_now, require_current_schema
from storage.errors import SchemaMismatch, StorageUnavailable
from storage.tables import Conflict, Delivery, Instance, Job, Study

Check = Callable[[], list[str]]
QUEUED: Final = "SCHEDULED"


def live(request: Request) -> Response:
    """Answer GET /health/live: this process answers."""
    del request
    return json_response({"status": "alive"})


def ready(request: Request) -> Response:
    """Answer GET /health/ready: 200, or 503 with every reason."""
    problems = [problem for check in services_of(request).readiness_checks for problem in check()]
    if problems:
        return json_response({"status": "not ready", "problems": problems}, 503)
    return json_response({"status": "ready"})


def metrics(request: Request) -> Response:
    """Answer GET /metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    with services_of(request).database.reading() as tx:
        registry.register(_NodeCollector(tx))
        return Response(generate_latest(registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})


def readiness_checks(settings: NodeSettings, database: Database) -> list[Check]:
    """The checks of this node, each giving sentences about what is wrong."""
    return [
        lambda: _database_problems(database),
        lambda: _disk_problems(settings),
        lambda: readiness.problems(settings.home),
    ]


def _database_problems(database: Database) -> list[str]:
    try:
        require_current_schema(database)
    except (SchemaMismatch, StorageUnavailable) as error:
        return [str(error)]
    return []


def _disk_problems(settings: NodeSettings) -> list[str]:
    root = settings.storage.files_root
    try:
        free = shutil.disk_usage(root if root.exists() else settings.home).free // MIB
    except OSError as error:
        return [f"the folder of the files cannot be looked at ({error.strerror})"]
    if free < settings.limits.min_free_mb:
        return [
            f"{free} MiB of disk are free, below limits.min_free_mb: nothing is received until there is room"
        ]
    return []


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

    def _oldest_queued(self) -> float:
        age = self._tx.scalar(select(database_now() - func.min(Job.created_at)).where(Job.state == QUEUED))
        return max(0.0, age or 0.0)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)
