"""DICOM JSON of stored instances, rendered once for a file and kept on disk; of whole series, too.

An instance's JSON depends on its file alone, and the file of a digest never changes, so nothing here can be
out of date; all of it may be deleted at any time. It holds patient data, hence the rights of its folders.
One folder a study, so that a study is forgotten in one step. Nothing is synced, so a power cut may leave a
file short or empty: each says its length first, and one that has another is made anew.
"""

import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.errors import InvalidDicomError

from dicom_node.web.dicom_json import bulk_element, render_data_set
from dicom_node.web.stored import data_set_of, unreadable
from storage.files import FileStore
from storage.records import VALUE_ERRORS
from storage.retrieval import KeptInstance

FORM: Final = "4"  # changes with what is rendered, so that nothing of an older program is served
DICOM_WEB: Final = "/dicom-web"
MIN_JOINED: Final = 16  # instances; fewer are joined at every request
MAX_JOINED_BYTES: Final = 64 * 1024 * 1024
PIECE_BYTES: Final = 1024 * 1024
LENGTH_DIGITS: Final = 16  # before the JSON: its length in bytes
TRIM_EVERY: Final = 500  # files written between two looks at the size of the folder


class MetadataCache:
    """The folder of rendered metadata; for many threads and processes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._written = 0
        self._lock = threading.Lock()

    def of_instance(self, files: FileStore, row: KeptInstance) -> bytes:
        """Return the JSON object of one instance."""
        path = self._study_folder(row.study_instance_uid) / f"{row.sha256}.json"
        with suppress(OSError), path.open("rb") as file:
            if _is_whole(file):
                return file.read()
        rendered = render_instance(files, row)
        self._keep(path, rendered)
        return rendered

    def of_all(self, files: FileStore, rows: Sequence[KeptInstance], tag: str) -> Iterator[bytes]:
        """Yield the JSON array of `rows`; `tag` names just these rows."""
        if len(rows) < MIN_JOINED:
            yield from self._array(files, rows)
            return
        path = self._study_folder(rows[0].study_instance_uid) / f"all-{tag}.json"
        with suppress(FileNotFoundError), path.open("rb") as file:
            if _is_whole(file):
                yield from iter(partial(file.read, PIECE_BYTES), b"")
                return
        yield from self._joined(files, rows, path)

    def forget_study(self, study_instance_uid: str) -> None:
        """Remove all that is kept of a study, at its erasure."""
        shutil.rmtree(self._study_folder(study_instance_uid), ignore_errors=True)

    def trim(self) -> None:
        """Remove the studies that were asked for longest ago, until the rest fits."""
        studies = sorted(self._studies())
        total = sum(size for _asked_at, size, _folder in studies)
        for _asked_at, size, folder in studies:
            if total <= self._max_bytes:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= size

    def _joined(self, files: FileStore, rows: Sequence[KeptInstance], path: Path) -> Iterator[bytes]:
        pieces: list[bytes] = []
        total = 0
        for piece in self._array(files, rows):
            total += len(piece)
            if total <= MAX_JOINED_BYTES:
                pieces.append(piece)
            yield piece
        if total <= MAX_JOINED_BYTES:
            self._keep(path, b"".join(pieces))

    def _array(self, files: FileStore, rows: Sequence[KeptInstance]) -> Iterator[bytes]:
        opening = b"["
        for row in rows:
            yield opening + self.of_instance(files, row)
            opening = b","
        yield b"]" if rows else b"[]"

    def _study_folder(self, study_instance_uid: str) -> Path:
        name = hashlib.sha256(f"{FORM} {study_instance_uid}".encode()).hexdigest()[:32]
        return self._folder / name[:2] / name

    def _keep(self, path: Path, content: bytes) -> None:
        """Write `content`; a cache that cannot be written is no reason to refuse an answer."""
        draft = path.with_name(f"{secrets.token_hex(8)}.part")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.touch(mode=0o600, exist_ok=False)
            with draft.open("wb") as file:
                file.write(b"%0*d" % (LENGTH_DIGITS, len(content)))
                file.write(content)
            draft.replace(path)
        with self._lock:
            self._written += 1
            is_due = self._written % TRIM_EVERY == 0
        if is_due:
            self.trim()

    def _studies(self) -> Iterator[tuple[float, int, Path]]:
        for folder in self._folder.glob("*/*"):
            with suppress(OSError):
                found = [entry.stat() for entry in os.scandir(folder)]
                asked_at = max((max(state.st_atime, state.st_mtime) for state in found), default=0.0)
                yield asked_at, sum(state.st_size for state in found), folder


def render_instance(files: FileStore, row: KeptInstance) -> bytes:
    """Render one instance; raises Unparseable, StoredDamaged."""
    address = f"{instance_address(row)}/bulkdata"
    try:
        with data_set_of(files, row) as (dataset, pixels):
            rendered: dict[str, Any] = render_data_set(dataset, address)
    except (InvalidDicomError, *VALUE_ERRORS) as error:
        raise unreadable(files, row, "the stored data set cannot be read") from error
    rendered["00083002"] = {"vr": "UI", "Value": [row.transfer_syntax_uid]}
    if pixels is not None:
        rendered[f"{pixels.tag:08X}"] = bulk_element(pixels.vr, address, pixels.tag)
    rendered = dict(sorted(rendered.items()))
    return json.dumps(rendered, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def instance_address(row: KeptInstance) -> str:
    """Absolute path of one instance under the DICOMweb root."""
    return (
        f"{DICOM_WEB}/studies/{row.study_instance_uid}"
        f"/series/{row.series_instance_uid}/instances/{row.sop_instance_uid}"
    )


def _is_whole(file: BinaryIO) -> bool:
    """Whether all of a kept file is there; it then stands where the JSON begins."""
    told = file.read(LENGTH_DIGITS)
    return told.isdigit() and os.fstat(file.fileno()).st_size == LENGTH_DIGITS + int(told)
