"""The one door in, around a database and a folder of a test."""

from pathlib import Path

from dicom_node.intake import ReceiveLimits
from dicom_node.pressure import Pressure
from dicom_node.receive import Receiver
from storage.database import Database
from storage.files import DiskFiles


def make_receiver(
    database: Database, files_root: Path, limits: ReceiveLimits | None = None, *, hard_bytes: int = 0
) -> Receiver:
    """A receiver without watermarks, unless `hard_bytes` must stay free."""
    pressure = Pressure(files_root.parent, files_root, soft_bytes=0, hard_bytes=hard_bytes)
    return Receiver(database, DiskFiles(files_root), limits or ReceiveLimits(), pressure)
