"""9 DELIVER. Results to one destination by C-STORE; the answer decides whether and when it is tried again."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dicom_node.answers import Answer, Kind, Verdict, meaning_of
from dicom_node.audit.dimse import delivery_began
from dicom_node.audit.events import Node
from dicom_node.backoff import backoff_s
from dicom_node.confirm import confirm
from dicom_node.dimse.scu import Sending, SendStatus, send_instances
from dicom_node.lease import Lease
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination
from storage.database import Database
from storage.deliveries import (
    ClaimedDelivery,
    DeliveryState,
    Settled,
    claim_deliveries,
    finish_delivery,
    heartbeat_delivery,
    retry_delivery_later,
)
from storage.errors import InstanceDamaged, InstanceMissing, LeaseLost, StorageError
from storage.files import FileStore
from storage.index import find_instance
from storage.soundness import sound_local

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeliveryServices:
    """What a delivery needs, opened once per process."""

    database: Database
    files: FileStore
    settings: NodeSettings
    worker: str

    def destination(self, name: str) -> Destination | None:
        """The destination of this name, None when the configuration has it no longer."""
        return next((entry for entry in self.settings.destinations if entry.name == name), None)

    def threads_of(self, name: str) -> int:
        """How many associations may be held with it at the same time."""
        destination = self.destination(name)
        return 1 if destination is None else destination.concurrency


def deliver_to(name: str, services: DeliveryServices) -> bool:
    """Make one pass for a destination: send what is due, ask for commitment; True when more may be due."""
    delivery = services.settings.delivery
    with services.database.transaction() as tx:
        claimed = claim_deliveries(tx, name, services.worker, delivery.lease_s, delivery.batch)
    if claimed:
        _deliver(claimed, services)
    destination = services.destination(name)
    is_asking = destination is not None and confirm(destination, services.settings, services.database)
    return len(claimed) == delivery.batch or is_asking


def _deliver(claimed: Sequence[ClaimedDelivery], services: DeliveryServices) -> None:
    """One attempt at each of `claimed`, on one association."""
    with _lease(claimed, services):
        tell_end = _tell_begin(claimed, services)
        answers = _send(claimed, services)
        stored = {key for key, end in answers.items() if meaning_of(end.answer).verdict.is_stored}
        tell_end(each.sop_instance_uid for each in claimed if each.delivery_id in stored)
        for delivery in claimed:
            try:
                _record(delivery, answers[delivery.delivery_id], services)
            except LeaseLost:
                logger.warning("delivery was taken over", extra={"delivery_id": delivery.delivery_id})


def _tell_begin(
    claimed: Sequence[ClaimedDelivery], services: DeliveryServices
) -> Callable[[Iterable[str]], None]:
    destination = services.destination(claimed[0].destination)
    receiver = Node() if destination is None else Node(destination.ae_title, destination.host)
    uids = [each.sop_instance_uid for each in claimed]
    return delivery_began(services.settings, services.database, receiver, uids)


def _lease(claimed: Sequence[ClaimedDelivery], services: DeliveryServices) -> Lease:
    lease_s = services.settings.delivery.lease_s

    def beat() -> bool:
        with services.database.transaction() as tx:
            held = [heartbeat_delivery(tx, each.delivery_id, each.fence, lease_s) for each in claimed]
        return any(held)

    return Lease(beat, lease_s)


@dataclass(frozen=True)
class _End:
    """How an attempt ended, and what was said."""

    answer: Answer
    detail: str


def _send(claimed: Sequence[ClaimedDelivery], services: DeliveryServices) -> dict[str, _End]:
    destination = services.destination(claimed[0].destination)
    if destination is None:
        return {each.delivery_id: _End(Answer(Kind.NO_DESTINATION), "") for each in claimed}
    ends: dict[str, _End] = {}
    with ExitStack() as stack:
        paths: dict[str, Path] = {}
        for each in claimed:
            found = _file(each, services, stack)
            if isinstance(found, Path):
                paths[each.delivery_id] = found
            else:
                ends[each.delivery_id] = found
        sent = _send_files(list(dict.fromkeys(paths.values())), destination, services)
        by_path = {status.path: _End(status.answer, status.detail) for status in sent}
        return ends | {delivery_id: by_path[path] for delivery_id, path in paths.items()}


def _file(delivery: ClaimedDelivery, services: DeliveryServices, stack: ExitStack) -> Path | _End:
    """The file of a delivery on this machine while `stack` is open, or why there is none."""
    with services.database.reading() as tx:
        instance = find_instance(tx, delivery.sop_instance_uid)
    if instance is None:
        return _End(Answer(Kind.NO_INSTANCE), "the index does not show the instance")
    try:
        return stack.enter_context(sound_local(services.files, instance.path))
    except InstanceMissing as error:
        return _End(Answer(Kind.NO_INSTANCE), str(error))
    except InstanceDamaged as error:
        return _End(Answer(Kind.DAMAGED), str(error))
    except StorageError as error:
        return _End(Answer(Kind.UNREADABLE), str(error))


def _send_files(
    paths: Sequence[Path], destination: Destination, services: DeliveryServices
) -> list[SendStatus]:
    if not paths:
        return []
    settings = services.settings
    scratch = settings.home / "run"  # copies hold patient data: they stay under the home
    scratch.mkdir(parents=True, exist_ok=True)
    sending = Sending(
        response_timeout_s=settings.delivery.response_timeout_s, scratch=scratch, tls=settings.tls
    )
    return send_instances(paths, destination, settings.dimse.ae_title, sending)


def _record(claimed: ClaimedDelivery, end: _End, services: DeliveryServices) -> None:
    meaning = meaning_of(end.answer)
    delay_s = _delay_s(meaning.verdict, claimed, services)
    settled = Settled(str(end.answer), end.detail, _reason(meaning.verdict, meaning.sentence, delay_s))
    destination = services.destination(claimed.destination)
    with services.database.transaction() as tx:
        if math.isfinite(delay_s):
            retry_delivery_later(tx, claimed.delivery_id, claimed.fence, settled, delay_s)
        else:
            state = DeliveryState.DELIVERED if meaning.verdict.is_stored else DeliveryState.FAILED
            is_asked = destination is not None and destination.commitment
            finish_delivery(
                tx, claimed.delivery_id, claimed.fence, state, settled, is_committed_later=is_asked
            )
    _log(claimed, settled, meaning.verdict, is_over=not math.isfinite(delay_s))


def _delay_s(verdict: Verdict, claimed: ClaimedDelivery, services: DeliveryServices) -> float:
    """Seconds until the next attempt; infinite when this was the last one."""
    settings = services.settings.delivery
    if verdict.is_stored or verdict is Verdict.HOPELESS or claimed.age_s > settings.max_age_s:
        return math.inf
    if verdict is Verdict.PERMANENT:
        return backoff_s(1, settings.slow_retry_s, settings.slow_retry_s)
    return backoff_s(claimed.attempt, settings.first_retry_s, settings.max_retry_s)


def _reason(verdict: Verdict, sentence: str, delay_s: float) -> str | None:
    """What the operator reads; nothing while the ordinary repetitions may still help."""
    if verdict is Verdict.STORED or (verdict is Verdict.TRANSIENT and math.isfinite(delay_s)):
        return None
    return sentence


def _log(claimed: ClaimedDelivery, settled: Settled, verdict: Verdict, *, is_over: bool) -> None:
    is_given_up = is_over and not verdict.is_stored
    logger.log(
        logging.INFO if verdict.is_stored else logging.ERROR,
        "delivery attempt",
        extra={
            "delivery_id": claimed.delivery_id,
            "job_id": claimed.job_id,
            "destination": claimed.destination,
            "status": settled.status,
            "attempt": claimed.attempt,
            "outcome": "given up" if is_given_up else str(verdict),
            "reason": settled.reason,
        },
    )
