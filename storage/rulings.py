"""Rulings: what was decided about a file's content that no file says, kept beside the files.

    rulings/<sha256>.txt    a line for each: seconds since 1970 by the receiver's clock, and the ruling

The index knows who counts; when it is lost, it is made anew from the files, and these say what the files
cannot: that this content was a correction of its sender, or that it was refused. A purge takes them along.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from storage.files import FileStore
from storage.index import IndexResult
from storage.records import InstanceRecord

CORRECTION: Final = "CORRECTION"  # followed, each time at which a line says so
REFUSAL: Final = "REFUSAL"  # kept apart, as long as nothing else is said

_SAID: Final = {
    IndexResult.CORRECTED: CORRECTION,
    IndexResult.CONFLICT: REFUSAL,
    IndexResult.OTHER_PATIENT: REFUSAL,
}


@dataclass(frozen=True)
class Rulings:
    """What was decided about one content."""

    corrected_at: list[float] = field(default_factory=list)  # UTC epoch seconds, in their order
    is_refused: bool = False


def write_rulings(
    files: FileStore, records: Iterable[InstanceRecord], results: Iterable[IndexResult]
) -> None:
    """Keep what the index decided about `records`, durably; to be called before the transaction ends.

    Of refusals one line is enough, however often the same content comes.
    """
    for record, result in zip(records, results, strict=True):
        said = _SAID.get(result)
        if said is None or (said == REFUSAL and files.ruling(record.stored.path)):
            continue
        files.add_ruling(record.stored.path, f"{time.time():.3f} {said}\n")


def read_rulings(files: FileStore) -> dict[str, Rulings]:
    """Return all that is kept, by sha256; a line that was torn by a crash says nothing."""
    return {sha256: _parsed(text) for sha256, text in files.rulings()}


def _parsed(text: str) -> Rulings:
    lines = [line.split(" ") for line in text.splitlines(keepends=True) if line.endswith("\n")]
    said = [(float(words[0]), words[1].strip()) for words in lines if len(words) == 2]
    corrected_at = [at for at, what in said if what == CORRECTION]
    return Rulings(corrected_at, is_refused=not corrected_at and bool(said))
