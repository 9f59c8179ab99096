"""What a process of the node opens once and hands down: the receiver, and what a job needs."""

from dicom_node.audit.trail import AUDIT
from dicom_node.intake import ReceiveLimits
from dicom_node.limited import MIB, LimitedPool, Limits
from dicom_node.notes import IdentityRules
from dicom_node.pressure import Pressure
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from dicom_node.whereabouts import missing_files
from storage.database import Database
from storage.files import open_files


def open_receiver(settings: NodeSettings, database: Database) -> Receiver:
    """The door in, with the limits of the configuration."""
    limits = ReceiveLimits(max_instance_bytes=settings.limits.max_instance_mb * MIB)
    identity = IdentityRules(
        settings.identity.follow_rejection_notes, frozenset(settings.identity.corrections_from)
    )
    files = open_files(settings.storage)
    return Receiver(database, files, limits, open_pressure(settings, database), identity=identity)


def open_pressure(settings: NodeSettings, database: Database | None = None) -> Pressure:
    """The watermarks of the configuration; with the index, a volume that is not mounted is noticed."""
    return Pressure(
        settings.home,
        settings.storage.files_root,
        soft_bytes=settings.limits.low_free_mb * MIB,
        hard_bytes=settings.limits.min_free_mb * MIB,
        needs=(AUDIT,) if settings.audit.when_full == "refuse" else (),
        find_missing=lambda: None if database is None else missing_files(settings.storage, database),
    )


def open_decoders(settings: NodeSettings) -> LimitedPool:
    """Children that decode pixels of outside, with the limits of the configuration; close it in the end."""
    limits = Limits(
        memory_bytes=settings.limits.decode_memory_mb * MIB,
        cpu_s=settings.limits.decode_cpu_s,
        wall_s=settings.limits.decode_wall_s,
        result_bytes=settings.limits.decode_memory_mb * MIB,
    )
    return LimitedPool(settings.limits.decode_children, limits=limits)
