"""What a process of the node opens once and hands down: the receiver, and what a job needs."""

from dicom_node.receive import ReceiveLimits, Receiver
from dicom_node.settings import NodeSettings
from storage.database import Database

MIB = 1024 * 1024


def open_receiver(settings: NodeSettings, database: Database) -> Receiver:
    """The door in, with the limits of the configuration."""
    limits = ReceiveLimits(
        max_instance_bytes=settings.limits.max_instance_mb * MIB,
        min_free_bytes=settings.limits.min_free_mb * MIB,
    )
    return Receiver(database, settings.storage.files_root, limits)
