"""What a node told its trail, each message checked against the schema."""

from xml.etree import ElementTree

import pytest

from dicom_node.audit.trail import spool_of
from dicom_node.audit.verify import verify
from tests.dicom_node.audit.schema import complaints
from tests.dicom_node.dimse.instances import make_settings


class Told:
    """One message, as a test asks about it."""

    def __init__(self, message):
        self.root = ElementTree.fromstring(message)
        self.message = message

    def __repr__(self):
        return self.message

    @property
    def event(self):
        return self.root.find("EventIdentification/EventID").get("originalText")

    @property
    def kind(self):
        return self.root.find("EventIdentification/EventTypeCode").get("originalText")

    @property
    def action(self):
        return self.root.find("EventIdentification").get("EventActionCode")

    @property
    def outcome(self):
        return self.root.find("EventIdentification").get("EventOutcomeIndicator")

    @property
    def why(self):
        return self.root.findtext("EventIdentification/EventOutcomeDescription") or ""

    @property
    def who(self):
        """User, address and whether it asked, of each."""
        return [
            (each.get("UserID"), each.get("NetworkAccessPointID"), each.get("UserIsRequestor") == "true")
            for each in self.root.findall("ActiveParticipant")
        ]

    @property
    def objects(self):
        return [
            each.get("ParticipantObjectID") for each in self.root.findall("ParticipantObjectIdentification")
        ]

    @property
    def counts(self):
        """SOP class -> number of instances."""
        return {each.get("UID"): int(each.get("NumberOfInstances")) for each in self.root.iter("SOPClass")}


def told_in(settings):
    """Every message of a node's trail, in order; the chain is whole and each message is a good one."""
    spool = spool_of(settings)
    assert verify(spool).findings == ()
    messages = [record.message for _, record in spool.records()]
    assert [complaints(message) for message in messages] == [[] for _ in messages]
    return [Told(message) for message in messages]


@pytest.fixture
def settings_of(tmp_path, database_url, files_root):
    """A function that makes the settings of a node; sections as in the configuration."""

    def make(**sections):
        return make_settings(tmp_path, database_url, files_root, **sections)

    return make


@pytest.fixture
def settings(settings_of):
    return settings_of()
