"""A small receiving PACS for the demo: a storage SCP that writes what it gets into a folder."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pynetdicom import AE, AllStoragePresentationContexts, evt

AE_TITLE = "DEMO_PACS"
VERIFICATION = "1.2.840.10008.1.1"
KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.88.34": "SR",  # Comprehensive 3D SR
}
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


@dataclass(frozen=True)
class Arrival:
    """One instance that has arrived at the PACS."""

    sop_instance_uid: str
    kind: str  # SEG, SR, or OTHER
    path: Path
    arrived_at: float  # monotonic seconds


class DemoPacs:
    """Remembers what has arrived; may be asked from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._arrivals: dict[str, Arrival] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def arrival(self, sop_instance_uid: str) -> Arrival | None:
        """The instance of this UID, None while it has not arrived."""
        with self._lock:
            return self._arrivals.get(sop_instance_uid)

    def arrivals(self) -> list[Arrival]:
        """Everything that has arrived, in that order."""
        with self._lock:
            return list(self._arrivals.values())

    def store(self, event: evt.Event) -> int:
        """Answer a C-STORE: success only when the file is written."""
        request: Any = event.request
        uid = str(request.AffectedSOPInstanceUID)
        kind = KINDS.get(str(request.AffectedSOPClassUID), "OTHER")
        with self._lock:
            # The name is ours: a received UID is never part of a path.
            path = self._folder / f"{kind}-{len(self._arrivals) + 1:04d}.dcm"
            try:
                _write(path, event)
            except OSError:
                return OUT_OF_RESOURCES
            self._arrivals[uid] = Arrival(uid, kind, path, time.monotonic())
        return SUCCESS


def _write(path: Path, event: evt.Event) -> None:
    request: Any = event.request
    meta = DicomBytesIO()
    write_file_meta_info(meta, event.file_meta)
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM" + meta.getvalue() + request.DataSet.getvalue())


@contextmanager
def open_pacs(folder: Path, port: int) -> Iterator[DemoPacs]:
    """A PACS that listens on 127.0.0.1:`port` while the block runs."""
    pacs = DemoPacs(folder)
    ae: Any = AE(AE_TITLE)
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(VERIFICATION)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, pacs.store)])
    try:
        yield pacs
    finally:
        server.shutdown()
