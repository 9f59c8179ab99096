"""9 DELIVER. One delivery to one destination, by C-STORE; retry only what can recover."""

import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dicom_node.backoff import backoff_s
from dicom_node.dimse.scu import SendStatus, send_instances
from dicom_node.lease import Lease
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination
from storage.database import Database
from storage.deliveries import (
    ClaimedDelivery,
    DeliveryState,
    claim_delivery,
    finish_delivery,
    heartbeat_delivery,
    retry_delivery_later,
)
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
    with _lease(claimed, services):
        answer = _send(claimed, services)
    try:
        _record(claimed, answer, services)
    except LeaseLost:
        logger.warning("delivery was taken over", extra={"delivery_id": delivery_id})


def _lease(claimed: ClaimedDelivery, services: DeliveryServices) -> Lease:
    lease_s = services.settings.delivery.lease_s

    def beat() -> bool:
        with services.database.transaction() as tx:
            return heartbeat_delivery(tx, claimed.delivery_id, claimed.fence, lease_s)

    return Lease(beat, lease_s)


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
    is_over = verdict is not Verdict.RETRY or claimed.age_s > settings.max_age_s
    status = "no answer" if answer.status is None else f"0x{answer.status:04X}"
    with services.database.transaction() as tx:
        if is_over:
            state = DeliveryState.DELIVERED if verdict is Verdict.DELIVERED else DeliveryState.FAILED
            finish_delivery(tx, claimed.delivery_id, claimed.fence, state, status, detail=answer.detail)
        else:
            delay_s = backoff_s(claimed.attempt, settings.first_retry_s, settings.max_retry_s)
            retry_delivery_later(
                tx, claimed.delivery_id, claimed.fence, status, delay_s, detail=answer.detail
            )
    logger.log(
        logging.INFO if verdict is Verdict.DELIVERED else logging.ERROR,
        "delivery attempt",
        extra={
            "delivery_id": claimed.delivery_id,
            "job_id": claimed.job_id,
            "destination": claimed.destination,
            "status": status,
            "attempt": claimed.attempt,
            "outcome": "given up" if is_over and verdict is Verdict.RETRY else verdict,
        },
    )
