"""The structure of an audit message as PS3.15 A.5.1.1 defines it, as rules of our own.

One table: of each element its attributes (with the values that may stand there, and whether they must) and
its children in their order. What A.5.3 asks of each event beyond that is in EVENTS.
"""

import base64
import re
from xml.etree import ElementTree

TOKEN = re.compile(r"\S(.*\S)?", re.DOTALL)
TEXT = re.compile(r".*", re.DOTALL)
NUMBER = re.compile(r"-?[0-9]+")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})")


def one_of(*values):
    return re.compile("|".join(map(re.escape, values)))


def numbers(last):
    return one_of(*map(str, range(1, last + 1)))


CODED = {"csd-code": (TOKEN, True), "codeSystemName": (TOKEN, True), "originalText": (TOKEN, True),
         "displayName": (TOKEN, False)}  # fmt: skip
# element -> its attributes, and its children with how often they may stand there
RULES = {
    "AuditMessage": ({}, [
        ("EventIdentification", "1"), ("ActiveParticipant", "+"), ("AuditSourceIdentification", "1"),
        ("ParticipantObjectIdentification", "*"),
    ]),
    "EventIdentification": ({
        "EventActionCode": (one_of("C", "R", "U", "D", "E"), False), "EventDateTime": (TIME, True),
        "EventOutcomeIndicator": (one_of("0", "4", "8", "12"), True),
    }, [("EventID", "1"), ("EventTypeCode", "*"), ("EventOutcomeDescription", "?")]),
    "ActiveParticipant": ({
        "UserID": (TEXT, True), "AlternativeUserID": (TEXT, False), "UserName": (TEXT, False),
        "UserIsRequestor": (one_of("true", "false"), True), "NetworkAccessPointID": (TOKEN, False),
        "NetworkAccessPointTypeCode": (numbers(5), False),
    }, [("RoleIDCode", "*")]),
    "AuditSourceIdentification": (
        {"AuditEnterpriseSiteID": (TOKEN, False), "AuditSourceID": (TOKEN, True)},
        [("AuditSourceTypeCode", "*")],
    ),
    "AuditSourceTypeCode": ({"csd-code": (numbers(9), True)}, []),
    "ParticipantObjectIdentification": ({
        "ParticipantObjectID": (TOKEN, True), "ParticipantObjectTypeCode": (numbers(4), False),
        "ParticipantObjectTypeCodeRole": (numbers(26), False),
        "ParticipantObjectDataLifeCycle": (numbers(15), False),
        "ParticipantObjectSensitivity": (TOKEN, False),
    }, [
        ("ParticipantObjectIDTypeCode", "1"), (("ParticipantObjectName", "ParticipantObjectQuery"), "1"),
        ("ParticipantObjectDetail", "*"), ("ParticipantObjectDescription", "*"),
    ]),
    "ParticipantObjectDetail": ({"type": (TOKEN, True), "value": (TEXT, True)}, []),
    "ParticipantObjectDescription": ({}, [
        ("MPPS", "*"), ("Accession", "*"), ("SOPClass", "*"), ("ParticipantObjectContainsStudy", "?"),
        ("Encrypted", "?"), ("Anonymized", "?"),
    ]),
    "SOPClass": ({"UID": (TOKEN, False), "NumberOfInstances": (NUMBER, True)}, [("Instance", "*")]),
    "Instance": ({"UID": (TOKEN, True)}, []),
    **dict.fromkeys(
        ("EventID", "EventTypeCode", "RoleIDCode", "ParticipantObjectIDTypeCode"), (CODED, [])
    ),
    **dict.fromkeys(
        ("EventOutcomeDescription", "ParticipantObjectName", "ParticipantObjectQuery"), ({}, [])
    ),
}  # fmt: skip
OFTEN = {"1": (1, 1), "?": (0, 1), "*": (0, 10**6), "+": (1, 10**6)}
SOURCE, DESTINATION, STUDY = "110153", "110152", "110180"
# event -> actions, roles of participants that must be there, kinds of objects that must be there
EVENTS = {
    "110100": ("E", ["110150"], []),
    "110101": ("R", [], ["12"]),
    "110102": ("E", [SOURCE, DESTINATION], [STUDY]),
    "110103": ("CRUD", [], [STUDY]),
    "110104": ("CRU", [SOURCE, DESTINATION], []),  # a failure may know no study
    "110105": ("D", [], [STUDY]),
    "110110": ("CRUD", [], []),
    "110112": ("E", [SOURCE, DESTINATION], []),
    "110113": ("E", [], []),
    "110114": ("E", [], []),
}
NEEDS_TYPE = {"110100", "110113", "110114"}


def complaints(message):
    """What is wrong with a message, in sentences; none for a good one."""
    try:
        root = ElementTree.fromstring(message)
    except ElementTree.ParseError as error:
        return [f"no XML: {error}"]
    if root.tag != "AuditMessage":
        return [f"begins with {root.tag}"]
    return [*_of_element(root), *_of_event(root)]


def _of_element(node):
    if node.tag not in RULES:
        return [f"{node.tag} is not known"]
    attributes, children = RULES[node.tag]
    found = [f"{node.tag}: {name} is not known" for name in node.attrib if name not in attributes]
    for name, (form, is_required) in attributes.items():
        value = node.get(name)
        if (value is None and is_required) or (value is not None and not form.fullmatch(value)):
            found.append(f"{node.tag}: {name}={value!r}")
    found += _of_children(node, children)
    if node.tag == "ParticipantObjectQuery":
        found += _of_base64(node.text or "")
    if node.tag == "ParticipantObjectDetail":
        found += _of_base64(node.get("value", ""))
    return [*found, *(complaint for child in node for complaint in _of_element(child))]


def _of_children(node, expected):
    tags, place = [child.tag for child in node], 0
    for names, often in expected:
        allowed = (names,) if isinstance(names, str) else names
        count = 0
        while place < len(tags) and tags[place] in allowed:
            count, place = count + 1, place + 1
        low, high = OFTEN[often]
        if not low <= count <= high:
            return [f"{node.tag}: {count} of {'/'.join(allowed)}"]
    return [f"{node.tag}: {tags[place]} stands where it may not"] if place < len(tags) else []


def _of_base64(text):
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return ["what should be base64 is not"]
    return []


def _of_event(root):
    code = root.find("EventIdentification/EventID")
    event = "" if code is None else code.get("csd-code")
    if event not in EVENTS:
        return [f"the event {event} is not known"]
    actions, roles, kinds = EVENTS[event]
    found = []
    if root.find("EventIdentification").get("EventActionCode", "") not in actions:
        found.append(f"{event}: its action")
    there = {each.get("csd-code") for each in root.findall("ActiveParticipant/RoleIDCode")}
    found += [f"{event}: nobody is {role}" for role in roles if role not in there]
    path = "ParticipantObjectIdentification/ParticipantObjectIDTypeCode"
    objects = {each.get("csd-code") for each in root.findall(path)}
    found += [f"{event}: no object {kind}" for kind in kinds if kind not in objects]
    if event in NEEDS_TYPE and root.find("EventIdentification/EventTypeCode") is None:
        found.append(f"{event}: no EventTypeCode")
    return found
