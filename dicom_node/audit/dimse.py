"""What is told of queries, retrievals and deliveries: who asked for which studies, and what went over."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND, C_MOVE
from pynetdicom.events import Event

from dicom_node.audit import events
from dicom_node.audit.events import Node, Taken, Tally
from dicom_node.audit.query import identifier_of
from dicom_node.audit.trail import trail_of
from dicom_node.dimse.rights import peer_of
from dicom_node.settings import NodeSettings
from storage.database import Database
from storage.errors import StorageError
from storage.index import find_instance


class Sent(Taken, Protocol):
    """An instance that is sent; rows of the index are such."""

    @property
    def sop_instance_uid(self) -> str:
        """Its UID."""


def caller(association: Association) -> Node:
    """Who called us on `association`."""
    requestor = association.requestor
    address = requestor.address_info.address if requestor.address_info is not None else ""
    return Node(str(requestor.ae_title).strip(), address)


def find_asked(event: Event, settings: NodeSettings) -> None:
    """Tell of a C-FIND that is about to be answered."""
    trail = trail_of(settings)
    sop_class = str(cast("C_FIND", event.request).AffectedSOPClassUID)
    syntax = str(event.context.transfer_syntax)
    identifier = identifier_of(event.identifier, syntax, is_whole=trail.tells_patients)
    trail.queried(caller(event.assoc), events.c_find(sop_class, identifier, syntax))


def retrieval_began(
    settings: NodeSettings, association: Association, request: object, instances: Sequence[Sent]
) -> Callable[[Iterable[str], int], None]:
    """Tell that a C-MOVE or C-GET begins; gives what to call at its end: what failed, how many are left."""
    requestor = receiver = caller(association)
    if isinstance(request, C_MOVE):
        peer = peer_of(settings, str(request.MoveDestination))
        receiver = receiver if peer is None else Node(peer.ae_title, peer.host)
    trail = trail_of(settings)
    trail.sending(receiver, tally_of(instances), requestor)

    def end(failed_uids: Iterable[str], remaining: int) -> None:
        failed = {*failed_uids, *(each.sop_instance_uid for each in instances[len(instances) - remaining :])}
        went, lost = split(instances, failed)
        trail.sent(receiver, went, lost, requestor)

    return end


def delivery_began(
    settings: NodeSettings, database: Database, receiver: Node, sop_instance_uids: Iterable[str]
) -> Callable[[Iterable[str]], None]:
    """Tell that results go to a destination; gives what to call at the end, with the UIDs that arrived."""
    if not settings.audit.enabled:
        return lambda _: None
    try:
        with database.reading() as tx:
            found = [find_instance(tx, uid) for uid in sop_instance_uids]
    except StorageError:
        found = []
    instances = [row for row in found if row is not None]
    trail = trail_of(settings)
    trail.sending(receiver, tally_of(instances))

    def end(arrived: Iterable[str]) -> None:
        lost, went = split(instances, set(arrived))
        trail.sent(receiver, went, lost)

    return end


def tally_of(instances: Iterable[Sent]) -> Tally:
    """Count instances by study and SOP class."""
    tally = Tally()
    for each in instances:
        tally.take(each)
    return tally


def split(instances: Sequence[Sent], uids: set[str]) -> tuple[Tally, Tally]:
    """Count those that are not in `uids`, and those that are."""
    others = tally_of(each for each in instances if each.sop_instance_uid not in uids)
    return others, tally_of(each for each in instances if each.sop_instance_uid in uids)
