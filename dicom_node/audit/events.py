"""What is told of each kind of event: who took part, and what it was about.

Source: PS3.15 A.5.3.1 (Application Activity), .2 (Audit Log Used), .3 (Begin Transferring), .6 (Instances
Accessed), .7 (Instances Transferred), .8 (Study Deleted), .10 (Query), .11 (Security Alert), .12 (User
Authentication), .14 (Patient Record).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from dicom_node.audit import codes
from dicom_node.audit.message import Event, Outcome, Participant, Subject
from storage.index import IndexResult

PERSON, SYSTEM_OBJECT = 1, 2
PATIENT, REPORT, SECURITY_RESOURCE, QUERY = 1, 3, 13, 24  # PS3.15 A.5.1.2.2


@dataclass(frozen=True)
class Node:
    """A node of the network, an AE with its address or only an address; and who logged in from there."""

    ae_title: str = ""
    address: str = ""
    user: str = ""

    def takes_part(self, role: codes.Code | None = None, *, is_requestor: bool = False) -> Participant:
        """The node as a participant."""
        name = self.user or self.ae_title or self.address or "unknown"
        return Participant(name, is_requestor, role, self.ae_title, self.address)


class Taken(Protocol):
    """An instance, by what is counted of it."""

    @property
    def study_instance_uid(self) -> str:
        """Its study."""

    @property
    def sop_class_uid(self) -> str:
        """Its SOP class."""


Counts = dict[str, dict[str, int]]  # by study, then by SOP class


@dataclass
class Tally:
    """Instances by study and SOP class; counting one costs a few look-ups."""

    studies: Counts = field(default_factory=dict)
    held: Counts = field(default_factory=dict)  # were here before, the same
    corrected: Counts = field(default_factory=dict)  # were here before, of another patient

    def take(self, instance: Taken) -> None:
        """Count one instance; what was received says what it was to the index."""
        result = getattr(instance, "result", None)
        counts = self.studies
        if result is IndexResult.DUPLICATE:
            counts = self.held
        elif result is IndexResult.CORRECTED:
            counts = self.corrected
        classes = counts.setdefault(instance.study_instance_uid, {})
        classes[instance.sop_class_uid] = classes.get(instance.sop_class_uid, 0) + 1


@dataclass(frozen=True)
class PatientOf:
    """Whose study it is; only where the configuration lets that be written."""

    patient_id: str
    name: str


@dataclass(frozen=True)
class StudyOf:
    """A study as an event tells it."""

    uid: str
    sop_classes: Mapping[str, int] = field(default_factory=dict)
    patient: PatientOf | None = None

    def subjects(self) -> tuple[Subject, ...]:
        """The study, and its patient where it is known."""
        study = Subject(self.uid, codes.STUDY_UID, SYSTEM_OBJECT, REPORT, sop_classes=self.sop_classes)
        if self.patient is None:
            return (study,)
        patient = self.patient
        return study, Subject(
            patient.patient_id or "unknown", codes.PATIENT_NUMBER, PERSON, PATIENT, patient.name
        )


@dataclass(frozen=True)
class Transfer:
    """Instances on their way from one node to another, asked for by one of them or by a third."""

    sender: Node
    receiver: Node
    requestor: Node
    action: str = "R"  # by us: C what was new here, R what was here, U what was changed

    def participants(self) -> tuple[Participant, ...]:
        """Sender, receiver, and a third who asked."""
        sender = self.sender.takes_part(codes.SOURCE, is_requestor=self.requestor == self.sender)
        receiver = self.receiver.takes_part(codes.DESTINATION, is_requestor=self.requestor == self.receiver)
        others = () if self.requestor in {self.sender, self.receiver} else (self.requestor,)
        return sender, receiver, *(other.takes_part(is_requestor=True) for other in others)


def application(node: Node, process: str, user: str, *, is_start: bool) -> Event:
    """The node, or one process of it that runs alone, was started or told to end."""
    ours = Participant(f"{node.ae_title} {process}", False, codes.APPLICATION, node.ae_title, node.address)
    launcher = Participant(user, is_requestor=True, role=codes.LAUNCHER)
    kind = codes.APPLICATION_START if is_start else codes.APPLICATION_STOP
    return Event(codes.APPLICATION_ACTIVITY, "E", (ours, launcher), kind=kind)


def transferring(transfer: Transfer, study: StudyOf) -> Event:
    """A transfer of instances of one study begins."""
    return Event(codes.BEGIN_TRANSFERRING, "E", transfer.participants(), study.subjects())


def transferred(transfer: Transfer, study: StudyOf) -> Event:
    """Instances of one study went over."""
    return Event(codes.INSTANCES_TRANSFERRED, transfer.action, transfer.participants(), study.subjects())


def not_transferred(transfer: Transfer, study: StudyOf | None, why: str) -> Event:
    """Some did not; what succeeded and what failed are two messages (PS3.15 A.5.2)."""
    subjects = () if study is None else study.subjects()  # nobody knows the study of what could not be read
    code, failed = codes.INSTANCES_TRANSFERRED, Outcome.MINOR_FAILURE
    return Event(code, transfer.action, transfer.participants(), subjects, failed, description=why)


def patient_corrected(sender: Node, ours: Node, study: StudyOf) -> Event:
    """A sender said that a study belongs to another patient."""
    participants = sender.takes_part(is_requestor=True), ours.takes_part()
    return Event(codes.PATIENT_RECORD, "U", participants, study.subjects())


def accessed(reader: Node, ours: Node, study: StudyOf) -> Event:
    """Somebody looked at a study."""
    participants = reader.takes_part(is_requestor=True), ours.takes_part()
    return Event(codes.INSTANCES_ACCESSED, "R", participants, study.subjects())


def deleted(ours: Node, process: str, study: StudyOf) -> Event:
    """A study was removed."""
    by = Participant(f"{ours.ae_title} {process}", True, None, ours.ae_title, ours.address)
    return Event(codes.STUDY_DELETED, "D", (by,), study.subjects())


def queried(asker: Node, ours: Node, query: Subject) -> Event:
    """Somebody searched."""
    participants = asker.takes_part(codes.SOURCE, is_requestor=True), ours.takes_part(codes.DESTINATION)
    return Event(codes.QUERY, "E", participants, (query,))


def c_find(sop_class: str, identifier: bytes, transfer_syntax: str) -> Subject:
    """The query of a C-FIND."""
    details = (("TransferSyntax", transfer_syntax.encode("ascii")),)
    return Subject(sop_class, codes.SOP_CLASS_UID, SYSTEM_OBJECT, REPORT, query=identifier, details=details)


def web_query(address: str, query: str) -> Subject:
    """The query of a search by DICOMweb, as the path and parameters of its address."""
    return Subject(address, codes.URI, SYSTEM_OBJECT, QUERY, query=query.encode())


def alert(ours: Node, by: Node, kind: codes.Code, why: str) -> Event:
    """Somebody was turned away."""
    return _alert(ours, (by.takes_part(),), kind, why, Outcome.MINOR_FAILURE)


def operated(ours: Node, user: str, address: str, what: str) -> Event:
    """A person had the node do something; an informative alert."""
    by = Participant(user, address=address)
    return _alert(ours, (by,), codes.RESTRICTED_FUNCTION, what, Outcome.SUCCESS)


def recording_stopped(ours: Node, count: int) -> Event:
    """The trail could not be written for a while, and `count` records of this process are lost."""
    why = f"the audit trail could not be written: {count} records are lost"
    return _alert(ours, (), codes.RECORDING_STOPPED, why, Outcome.SERIOUS_FAILURE)


def logged_in(ours: Node, user: str, address: str, *, is_success: bool) -> Event:
    """A person, or a program with a token, said who it is, and was believed or not."""
    by = Participant(user, is_requestor=True, address=address)
    outcome = Outcome.SUCCESS if is_success else Outcome.MINOR_FAILURE
    participants = by, ours.takes_part()
    return Event(codes.USER_AUTHENTICATION, "E", participants, outcome=outcome, kind=codes.LOGIN)


def logged_out(ours: Node, user: str, address: str) -> Event:
    """A person ended the session."""
    participants = Participant(user, is_requestor=True, address=address), ours.takes_part()
    return Event(codes.USER_AUTHENTICATION, "E", participants, kind=codes.LOGOUT)


def log_used(ours: Node, user: str, trail: str) -> Event:
    """A person read the trail here."""
    by = Participant(user, is_requestor=True, address=ours.address)
    log = Subject(trail, codes.URI, SYSTEM_OBJECT, SECURITY_RESOURCE, "Security Audit Log")
    return Event(codes.AUDIT_LOG_USED, "R", (by,), (log,))


def _alert(
    ours: Node, others: tuple[Participant, ...], kind: codes.Code, why: str, outcome: Outcome
) -> Event:
    detail = (("Alert Description", why.encode()),)
    name = ours.ae_title
    subject = Subject(name, codes.NODE_ID, SYSTEM_OBJECT, SECURITY_RESOURCE, details=detail)
    participants = ours.takes_part(is_requestor=True), *others
    return Event(codes.SECURITY_ALERT, "E", participants, (subject,), outcome, kind, why)


SENT: Final = {
    codes.APPLICATION_ACTIVITY: "start and end of the node, or of a process that runs alone",
    codes.AUDIT_LOG_USED: "`dicom-node audit show`",
    codes.BEGIN_TRANSFERRING: "a delivery, C-MOVE or C-GET begins; one for each study",
    codes.INSTANCES_TRANSFERRED: "an association with C-STORE, a STOW-RS request, a delivery, C-MOVE, C-GET "
    "(ours too), or a WADO-RS request for a study or series ends; one for each study, more for what failed",
    codes.INSTANCES_ACCESSED: "WADO-RS and WADO-URI requests for less, metadata and pictures; the first of "
    "each study and address in `audit.access_again_s`",
    codes.STUDY_DELETED: "a study is removed by `retention`",
    codes.PATIENT_RECORD: "known images come again with another patient (`identity.corrections_from`)",
    codes.QUERY: "C-FIND, QIDO-RS, search for workitems",
    codes.USER_AUTHENTICATION: "a log-in, a log-out, or a token that is not believed",
    codes.SECURITY_ALERT: "an association is rejected by AE title, address or certificate, a TLS handshake "
    "fails, a right is missing, another site's page asks for a change; and, as information, what operators "
    "do: jobs and deliveries asked for again, an index made anew or mended, workitems created, changed and "
    "cancelled, questions asked, users changed",
}
"""Every message of this module, and what it is sent for; the conformance statement prints it."""
