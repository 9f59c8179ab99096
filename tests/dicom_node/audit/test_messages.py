"""Codes and XML: as the standard has them, whatever names and numbers a peer may send."""

import pytest
from pydicom.sr.codedict import codes as dictionary

from dicom_node.audit import codes, events
from dicom_node.audit.events import Node, PatientOf, StudyOf, Transfer
from dicom_node.audit.message import Source, encode
from tests.dicom_node.audit.schema import complaints

OURS, PEER = Node("SIM4SEG", "node"), Node("SCANNER", "10.0.0.7")
AT = "2026-01-31T12:00:00.000+00:00"
STUDY = StudyOf("1.2.3", {"1.2.840.10008.5.1.4.1.1.2": 3}, PatientOf("MRN-1", "Müller^Ännchen"))
TRANSFER = Transfer(PEER, OURS, PEER, "C")
EVENTS = [
    events.application(OURS, "serve", "root", is_start=True),
    events.application(OURS, "serve", "root", is_start=False),
    events.transferring(Transfer(OURS, PEER, OURS), STUDY),
    events.transferred(TRANSFER, STUDY),
    events.transferred(Transfer(OURS, PEER, Node("WARD", "10.0.0.8")), STUDY),
    events.not_transferred(TRANSFER, None, "3 instances were refused"),
    events.patient_corrected(PEER, OURS, STUDY),
    events.accessed(PEER, OURS, STUDY),
    events.deleted(OURS, "retention", STUDY),
    events.queried(PEER, OURS, events.c_find("1.2.840.10008.5.1.4.1.2.2.1", b"\0\xff", "1.2.840.10008.1.2")),
    events.queried(PEER, OURS, events.web_query("/dicom-web/studies", "/dicom-web/studies?limit=1")),
    events.alert(OURS, PEER, codes.NODE_AUTHENTICATION, "association rejected 1/1/3"),
    events.operated(OURS, "root", "node", "requeue"),
    events.recording_stopped(OURS, 7),
    events.log_used(OURS, "root", "file:///srv/audit"),
    events.logged_in(OURS, "dr.a", "10.0.0.8", is_success=False),
    events.logged_out(OURS, "dr.a", "10.0.0.8"),
]


def written(event):
    return encode(event, Source("SIM4SEG", "hospital"), AT)


def test_codes_are_those_of_the_dictionary():
    ours = {code for code in vars(codes).values() if isinstance(code, codes.Code) and code.scheme == "DCM"}
    known = {}
    for name in dir(dictionary.DCM):
        code = getattr(dictionary.DCM, name)
        if hasattr(code, "value") and hasattr(code, "meaning"):
            known[code.value] = code.meaning
    assert len(ours) > 15
    assert {code.value: code.meaning for code in ours} == {code.value: known[code.value] for code in ours}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.code.meaning)
def test_every_event_is_a_good_message(event):
    assert complaints(written(event)) == []


def test_what_is_told_of_events_names_each_of_them():
    assert {event.code for event in EVENTS} == set(events.SENT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('EventActionCode="C"', 'EventActionCode="X"'),
        ('EventOutcomeIndicator="0"', 'EventOutcomeIndicator="1"'),
        ('EventDateTime="2026-01-31T12:00:00.000+00:00"', 'EventDateTime="today"'),
        ('UserIsRequestor="true"', ""),
        (' csd-code="110104"', ""),
        ('csd-code="110153"', 'csd-code="110150"'),
        ("<ParticipantObjectName>1.2.3</ParticipantObjectName>", ""),
        ('ParticipantObjectTypeCode="2"', 'ParticipantObjectTypeCode="9"'),
        ('NumberOfInstances="3"', 'NumberOfInstances="three"'),
        ("AuditSourceIdentification", "AuditSource"),
        ("</AuditMessage>", "<More /></AuditMessage>"),
        ("</AuditMessage>", ""),
    ],
)
def test_the_rules_find_what_is_wrong(old, new):
    good = written(events.transferred(TRANSFER, STUDY))
    assert old in good
    assert complaints(good.replace(old, new)) != []


def test_a_name_that_is_no_text_does_no_harm():
    odd = Node('A<&">\x00\x1b\ud800', "::1")
    message = written(events.alert(OURS, odd, codes.NODE_AUTHENTICATION, "why\x01<b>"))
    assert complaints(message) == []
    assert message.encode()
    assert "<b>" not in message


def test_an_address_is_told_as_what_it_is():
    assert 'NetworkAccessPointID="10.0.0.7" NetworkAccessPointTypeCode="2"' in written(EVENTS[3])
    assert 'NetworkAccessPointID="node" NetworkAccessPointTypeCode="1"' in written(EVENTS[3])
