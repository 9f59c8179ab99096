"""Serves whole associations by pynetdicom: queries, retrievals, commitments; C-STORE and C-ECHO beside.

The listener hands over every association that proposes more than C-STORE and C-ECHO, socket and all.

Source: PS3.7 D.3.3.4 (role selection: C-GET, Storage Commitment), PS3.4 C.5 and J.3.
"""

import socket
import time
from typing import Final, cast

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.events import EventHandlerType

from dicom_node.announced import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.audit.dimse import caller
from dicom_node.audit.trail import trail_of
from dicom_node.dimse.association import HandedSocket, Rooms, ServedAssociation
from dicom_node.dimse.commitment import STORAGE_COMMITMENT
from dicom_node.dimse.commitment_scp import CommitmentReporter, answer_commitment_request, waker
from dicom_node.dimse.commitment_scu import answer_commitment_report
from dicom_node.dimse.find_scp import answer_find
from dicom_node.dimse.mixed_store import answer_store, beginning_of
from dicom_node.dimse.negotiation import VERIFICATION, name_service, offer_storage
from dicom_node.dimse.query_model import MODEL_OF, MODELS
from dicom_node.dimse.retrieve_scp import Retrieval
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from storage.database import Database
from storage.files import open_files

MIB: Final = 1024 * 1024
DRAIN_S: Final = 5.0
SYNTAXES: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SERVICES: Final = (*MODEL_OF, STORAGE_COMMITMENT)
FIND_OPTIONS: Final = bytes((1, 1, 1, 0, 0))
"""Relational queries, combined date and time, fuzzy names: yes; timezone, enhanced: no. PS3.4 C.5.1.1."""


class Acceptor:
    """What a process needs to serve associations; safe to share between threads."""

    def __init__(self, settings: NodeSettings, receiver: Receiver, database: Database) -> None:
        _config.LOG_REQUEST_IDENTIFIERS = False  # they name patients
        _config.LOG_RESPONSE_IDENTIFIERS = False
        self._settings = settings
        files = open_files(settings.storage)
        self._ae = _application_entity(settings)
        self._retrieval = Retrieval(settings, database, files)
        self._reporter = CommitmentReporter(settings, database, files)
        self._begin = beginning_of(settings, receiver)
        self._handlers: list[EventHandlerType] = [
            (evt.EVT_REQUESTED, offer_storage),
            (evt.EVT_REQUESTED, _offer_services),
            (evt.EVT_SOP_EXTENDED, _answer_extended),
            (evt.EVT_SOP_COMMON, name_service),
            (evt.EVT_DIMSE_RECV, _count_anew),
            (evt.EVT_DIMSE_SENT, waker(self._reporter)),
            (evt.EVT_C_ECHO, _answer_echo),
            (evt.EVT_C_STORE, _answer_store),
            (evt.EVT_C_FIND, answer_find, [settings, database]),
            (evt.EVT_N_ACTION, answer_commitment_request, [settings, database, self._reporter]),
            (evt.EVT_N_EVENT_REPORT, answer_commitment_report, [database]),
        ]

    def start(self) -> None:
        """Begin to send the reports that are owed."""
        self._reporter.start()

    def shutdown(self) -> None:
        """Let associations under way end for a while, then abort them; stop sending reports."""
        deadline = time.monotonic() + DRAIN_S
        while self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        self._ae.shutdown()
        self._reporter.stop()

    def serve(self, connection: socket.socket, address: tuple[str, int], first: bytes = b"") -> None:
        """Serve the association on `connection` to its end; `first` = what was read of it already."""
        rooms = Rooms(self._retrieval.serve, self._begin, self._settings.limits.max_instance_mb * MIB)
        association = ServedAssociation(self._ae, rooms)
        association.accept(connection, address, first)
        for event, handler, *arguments in self._handlers:
            association.bind(event, handler, *arguments)
        association.start()
        association.join()
        association.forget_arriving()
        trail_of(self._settings).received(caller(association), association.tally)


def _application_entity(settings: NodeSettings) -> AE:
    ae = AE(settings.dimse.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = settings.dimse.max_associations
    ae.maximum_pdu_size = settings.dimse.max_pdu
    ae.acse_timeout = settings.dimse.acse_timeout_s
    ae.dimse_timeout = settings.dimse.network_timeout_s
    ae.network_timeout = settings.dimse.network_timeout_s
    ae.require_called_aet = settings.dimse.require_called_ae
    ae.require_calling_aet = list(settings.dimse.allowed_calling_aes)
    ae.add_supported_context(VERIFICATION)
    return ae


def _offer_services(event: evt.Event) -> None:
    """Add queries, retrievals and commitments to what is offered, and the roles that the peer asks for."""
    acceptor, requestor = event.assoc.acceptor, event.assoc.requestor
    contexts = list(acceptor.supported_contexts)
    contexts += [build_context(sop_class, list(SYNTAXES)) for sop_class in SERVICES]
    for context in contexts:
        if context.abstract_syntax in requestor.role_selection:
            context.scu_role = context.scp_role = True
    acceptor.supported_contexts = contexts


def _answer_extended(event: evt.Event) -> dict[UID, bytes]:
    """Grant what we can of the options asked for."""
    finds = {model.find for model in MODELS}
    answers = {}
    for sop_class, asked in event.assoc.requestor.sop_class_extended.items():
        if sop_class in finds:
            answers[sop_class] = bytes(min(pair) for pair in zip(asked, FIND_OPTIONS, strict=False))
        elif sop_class in MODEL_OF:
            answers[sop_class] = bytes(min(option, 1) for option in asked[:1])
    return answers


def _count_anew(event: evt.Event) -> None:
    connection = event.assoc.dul.socket
    if isinstance(connection, HandedSocket):
        connection.message_is_over()


def _answer_echo(event: evt.Event) -> int:
    del event
    return 0x0000


def _answer_store(event: evt.Event) -> Dataset:
    return answer_store(event, cast("ServedAssociation", event.assoc).tally)
