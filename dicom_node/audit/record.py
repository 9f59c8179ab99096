"""One record of the trail: a line that names the digest of the line before it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

GENESIS: Final = "0" * 64  # what the first record of all names as the one before it


class NoRecord(ValueError):
    """The line is none of ours."""


@dataclass(frozen=True)
class Record:
    """What a line says."""

    number: int  # from 1, without gaps
    previous: str  # SHA-256 of the line before, hexadecimal
    at: str  # RFC 3339, UTC
    pid: int
    message: str  # the audit message, XML

    def line(self) -> bytes:
        """The line, without its end."""
        values = {
            "number": self.number, "previous": self.previous, "at": self.at, "pid": self.pid,
            "message": self.message,
        }  # fmt: skip
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def digest_of(line: bytes) -> str:
    """SHA-256 of a line without its end, hexadecimal."""
    return hashlib.sha256(line).hexdigest()


def parse(line: bytes) -> Record:
    """Read a line back; raises NoRecord."""
    try:
        values = json.loads(line)
        return Record(
            int(values["number"]),
            str(values["previous"]),
            str(values["at"]),
            int(values["pid"]),
            str(values["message"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NoRecord("a line of the trail is no record") from error
