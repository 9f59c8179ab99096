"""Audit messages: an event as a value, and its XML.

Source: PS3.15 A.5.1 (audit message schema), A.5.2 (general conventions).
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from dicom_node.audit.codes import Code

NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MACHINE_NAME, IP_ADDRESS = "1", "2"  # NetworkAccessPointTypeCode
APPLICATION_SERVER: Final = "4"  # AuditSourceTypeCode


class Outcome(IntEnum):
    """EventOutcomeIndicator."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8


@dataclass(frozen=True)
class Participant:
    """Who took part: a person, a process or another node."""

    user_id: str
    is_requestor: bool = False
    role: Code | None = None
    ae_title: str = ""
    address: str = ""  # IP address or host name


@dataclass(frozen=True)
class Subject:
    """What the event was about: a study, a patient, a query, a node."""

    object_id: str
    id_type: Code
    object_type: int  # 1 person, 2 system object
    role: int  # ParticipantObjectTypeCodeRole, PS3.15 A.5.1.2.2
    name: str = ""
    query: bytes | None = None  # instead of the name
    details: tuple[tuple[str, bytes], ...] = ()
    sop_classes: Mapping[str, int] = field(default_factory=dict)  # -> number of instances


@dataclass(frozen=True)
class Event:
    """One audit message, but for its time and its source."""

    code: Code
    action: str  # C, R, U, D or E
    participants: tuple[Participant, ...]
    subjects: tuple[Subject, ...] = ()
    outcome: Outcome = Outcome.SUCCESS
    kind: Code | None = None  # EventTypeCode
    description: str = ""  # EventOutcomeDescription


@dataclass(frozen=True)
class Source:
    """Who keeps the trail."""

    source_id: str
    enterprise_site: str | None = None


def encode(event: Event, source: Source, at: str) -> str:
    """Write `event` as XML in one line; `at` is an xsd:dateTime with its time zone."""
    root = Element("AuditMessage")
    _identify(root, event, at)
    for participant in event.participants:
        _add_participant(root, participant)
    _add_source(root, source)
    for subject in event.subjects:
        _add_subject(root, subject)
    return tostring(root, encoding="unicode")


def clean(text: str) -> str:
    """`text` without what XML cannot hold."""
    return NOT_IN_XML.sub("?", text)


def _identify(root: Element, event: Event, at: str) -> None:
    node = SubElement(
        root,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=at,
        EventOutcomeIndicator=str(int(event.outcome)),
    )
    _add_code(node, "EventID", event.code)
    if event.kind is not None:
        _add_code(node, "EventTypeCode", event.kind)
    if event.description:
        SubElement(node, "EventOutcomeDescription").text = clean(event.description)


def _add_participant(root: Element, participant: Participant) -> None:
    node = SubElement(root, "ActiveParticipant", UserID=clean(participant.user_id))
    if participant.ae_title:
        node.set("AlternativeUserID", f"AETITLES={clean(participant.ae_title)}")
    node.set("UserIsRequestor", "true" if participant.is_requestor else "false")
    if participant.address:
        node.set("NetworkAccessPointID", clean(participant.address))
        kind = IP_ADDRESS if _is_ip(participant.address) else MACHINE_NAME
        node.set("NetworkAccessPointTypeCode", kind)
    if participant.role is not None:
        _add_code(node, "RoleIDCode", participant.role)


def _add_source(root: Element, source: Source) -> None:
    node = SubElement(root, "AuditSourceIdentification", AuditSourceID=clean(source.source_id))
    if source.enterprise_site is not None:
        node.set("AuditEnterpriseSiteID", clean(source.enterprise_site))
    SubElement(node, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})


def _add_subject(root: Element, subject: Subject) -> None:
    node = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=clean(subject.object_id),
        ParticipantObjectTypeCode=str(subject.object_type),
        ParticipantObjectTypeCodeRole=str(subject.role),
    )
    _add_code(node, "ParticipantObjectIDTypeCode", subject.id_type)
    if subject.query is not None:
        SubElement(node, "ParticipantObjectQuery").text = _base64(subject.query)
    else:
        SubElement(node, "ParticipantObjectName").text = clean(subject.name or subject.object_id)
    for kind, value in subject.details:
        SubElement(node, "ParticipantObjectDetail", type=kind, value=_base64(value))
    if subject.sop_classes:
        description = SubElement(node, "ParticipantObjectDescription")
        for uid, count in subject.sop_classes.items():
            SubElement(description, "SOPClass", UID=clean(uid), NumberOfInstances=str(count))


def _add_code(parent: Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    SubElement(parent, name, attributes)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _is_ip(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True
