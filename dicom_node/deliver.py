"""9 DELIVER. One delivery to one destination, by C-STORE; retry only what can recover."""

import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dicom_node.backoff import backoff_s
from dicom_node.dimse.scu import SendStatus, send_instances
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination
from storage.database import Database
from storage.deliveries import ClaimedDelivery, claim_delivery, finish_delivery, retry_delivery_later
from storage.errors import LeaseLost
from storage.index import find_instance
from storage.part10 import absolute

logger = logging.getLogger(__name__)


STORED_WITH_WARNING = frozenset({0xB000, 0xB006, 0xB007})
MAY_PASS = frozenset({0x0110, 0x0213})  # processing failure, resource limitation
MISSING = 0x0112  # no such SOP Instance


class Verdict(StrEnum):
    """What a C-STORE status means for a delivery."""

    DELIVERED = "DELIVERED"
    RETRY = "RETRY"
    REFUSED = "REFUSED"


def classify(status: int | None) -> Verdict:
    """What becomes of a delivery that the destination answered with `status`; None = no answer.

    Source: PS3.4 B.2.3 (warnings 0xB000, 0xB006, 0xB007 mean stored) and PS3.7 Annex C.
    """
    if status is None:
        return Verdict.RETRY
    if status == 0x0000 or status in STORED_WITH_WARNING:
        return Verdict.DELIVERED
    if status >> 8 == 0xA7 or status in MAY_PASS:
        return Verdict.RETRY
    return Verdict.REFUSED


@dataclass(frozen=True)
class DeliveryServices:
    """What a delivery needs, opened once per process."""

    database: Database
    settings: NodeSettings
    worker: str

    def destination(self, name: str) -> Destination | None:
        """The destination of this name, None when the configuration has it no longer."""
        return next((entry for entry in self.settings.destinations if entry.name == name), None)


def deliver(delivery_id: str, services: DeliveryServices) -> None:
    """Make one attempt at a delivery: claim, send, record; nothing happens if it is not due."""
    delivery_settings = services.settings.delivery
    with services.database.transaction() as tx:
        claimed = claim_delivery(tx, delivery_id, services.worker, delivery_settings.lease_s)
    if claimed is None:
        return
    answer = _send(claimed, services)
    try:
        _record(claimed, answer, services)
    except LeaseLost:
        logger.warning("delivery was taken over", extra={"delivery_id": delivery_id})


def _send(claimed: ClaimedDelivery, services: DeliveryServices) -> SendStatus:
    with services.database.reading() as tx:
        instance = find_instance(tx, claimed.sop_instance_uid)
    path = absolute(services.settings.storage.files_root, instance.path) if instance else Path()
    destination = services.destination(claimed.destination)
    if instance is None or not path.exists():
        return SendStatus(path, claimed.sop_instance_uid, MISSING, "the instance or its file is not here")
    if destination is None:
        detail = "the configuration has no destination of this name"
        return SendStatus(path, claimed.sop_instance_uid, None, detail)
    return send_instances([path], destination, services.settings.dimse.ae_title)[0]


def _record(claimed: ClaimedDelivery, answer: SendStatus, services: DeliveryServices) -> None:
    settings = services.settings.delivery
    verdict = classify(answer.status)
    delay_s = backoff_s(claimed.attempt, settings.first_retry_s, settings.max_retry_s)
    with services.database.transaction() as tx:
        is_over = verdict is Verdict.REFUSED or _age_s(tx, claimed) > settings.max_age_s
