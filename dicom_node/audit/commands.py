"""`dicom-node audit`: show the trail, and verify that nobody changed it."""

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from xml.etree import ElementTree

from dicom_node.audit.activity import person
from dicom_node.audit.record import Record
from dicom_node.audit.spool import Spool
from dicom_node.audit.trail import spool_of, trail_of
from dicom_node.audit.verify import verify
from dicom_node.errors import BadRequest
from dicom_node.settings import NodeSettings, load_settings

BROKEN: Final = 1


def audit(options: argparse.Namespace) -> int:
    """Show or verify; status 1 when the chain is broken."""
    settings = load_settings(options.home, options.config)
    if options.what == "verify":
        return _verify(spool_of(settings))
    _show(settings, options)
    return 0


def _verify(spool: Spool) -> int:
    checked = verify(spool)
    for finding in checked.findings:
        print(finding)
    print(f"{checked.records} records, {'the chain is whole' if not checked.findings else 'BROKEN'}")
    return BROKEN if checked.findings else 0


def _show(settings: NodeSettings, options: argparse.Namespace) -> None:
    since = _time(options.since) if options.since else ""
    trail_of(settings).read_by(person())  # who reads the trail is in the trail, A.5.3.2
    for record in _since(spool_of(settings), since):
        print(record.message if options.xml else json.dumps(line_of(record), ensure_ascii=False))


def line_of(record: Record) -> dict[str, Any]:
    """A record in a few words."""
    root = ElementTree.fromstring(record.message)  # noqa: S314 - our own file; expat expands no entity of it
    event = root.find("EventIdentification")
    code = root.find("EventIdentification/EventID")
    subjects = root.findall("ParticipantObjectIdentification")
    return {
        "number": record.number,
        "at": record.at,
        "event": "" if code is None else code.get("originalText"),
        "outcome": "" if event is None else event.get("EventOutcomeIndicator"),
        "why": root.findtext("EventIdentification/EventOutcomeDescription") or "",
        "who": [
            " ".join(filter(None, (each.get("UserID"), each.get("NetworkAccessPointID"))))
            for each in root.findall("ActiveParticipant")
        ],
        "what": [subject.get("ParticipantObjectID") for subject in subjects],
    }


def _since(spool: Spool, since: str) -> Iterator[Record]:
    for _, record in spool.records():
        if record.at >= since:
            yield record


def _time(text: str) -> str:
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(
            f"--since {text}: is no time; write it like 2026-01-31 or 2026-01-31T12:00Z"
        ) from error
    return (
        (given if given.tzinfo else given.replace(tzinfo=UTC))
        .astimezone(UTC)
        .isoformat(timespec="milliseconds")
    )
