"""What is wrong with the audit trail, and its figures for Prometheus.

What a process could not write it has reported to /health/ready by itself (trail.py). Here is what can be
seen without it: a disk with no room, also where not even a report can be written any more.
"""

import os
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dicom_node import readiness
from dicom_node.audit.forward import cursor_of, waiting
from dicom_node.audit.syslog import repository_context
from dicom_node.audit.trail import AUDIT, MIB, folder_of, spool_of
from dicom_node.errors import TlsUnusable
from dicom_node.readiness import Problem
from dicom_node.settings import NodeSettings

LEAST_FREE: Final = MIB


def problems(settings: NodeSettings) -> list[Problem]:
    """What keeps the trail from being written, beside what is reported already."""
    if not settings.audit.enabled or readiness.is_reported(settings.home, AUDIT):
        return []
    folder = folder_of(settings)
    try:
        found = os.statvfs(folder)
    except FileNotFoundError:
        return []  # nothing was told yet; the folder is made with the first record
    except OSError as error:
        return [Problem(AUDIT, f"the folder of the audit trail cannot be looked at ({error.strerror})")]
    if found.f_bavail * found.f_frsize < LEAST_FREE:
        return [Problem(AUDIT, "the disk of the audit trail is full: make room at audit.folder")]
    return []


def findings(settings: NodeSettings) -> Iterator[tuple[bool, str]]:
    """What `dicom-node doctor` says of the trail: whether it is well, and a sentence."""
    if not settings.audit.enabled:
        yield True, "no audit trail is kept (audit.enabled)"
        return
    found = [problem.sentence for problem in problems(settings)]
    found += [each.sentence for each in readiness.problems(settings.home) if each.reason == AUDIT]
    spool = spool_of(settings)
    yield not found, found[0] if found else f"audit trail: {spool.head().number} records in {spool.folder}"
    if settings.audit.syslog != "off":
        yield _repository(settings)


def _repository(settings: NodeSettings) -> tuple[bool, str]:
    where = f"{settings.audit.syslog_host}:{settings.audit.port}"
    count = waiting(spool_of(settings))
    if settings.audit.syslog == "tls":
        try:
            repository_context(settings)
        except TlsUnusable as error:
            return False, str(error)
    return True, f"audit records go to {where} by syslog; {count} wait"


class AuditCollector(Collector):
    """Records written, sent and waiting, from the trail itself."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the metric families; none where no trail is kept."""
        if not self._settings.audit.enabled:
            return
        spool = spool_of(self._settings)
        written = spool.head().number
        yield CounterMetricFamily("dicom_node_audit_records", "Audit records written.", value=written)
        if self._settings.audit.syslog != "off":
            sent = cursor_of(spool).number
            yield CounterMetricFamily("dicom_node_audit_sent", "Audit records sent on.", value=sent)
            left = waiting(spool)
            yield GaugeMetricFamily("dicom_node_audit_waiting", "Audit records to be sent on.", value=left)
