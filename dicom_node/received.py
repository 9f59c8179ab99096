"""What became of an instance, and what storage says of it, in the words that peers are answered with."""

import logging
from dataclasses import dataclass

from dicom_node.committer import Entry
from dicom_node.errors import (
    ConflictingInstance,
    IndexUnavailable,
    NodeError,
    StorageExhausted,
    UidMismatch,
)
from storage.errors import (
    InstanceConflict,
    InstanceUnidentified,
    NotDurable,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from storage.index import IndexResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """One instance that is now durable and indexed."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    result: IndexResult


def received(entry: Entry) -> Received:
    """Say what became of a committed instance; raises ConflictingInstance, NodeUnable."""
    if entry.error is not None:
        raise told(entry.error) from entry.error
    record, result = entry.record, entry.result
    assert result is not None  # noqa: S101 - no error, so there is a result
    if logger.isEnabledFor(logging.DEBUG):
        extra = {"origin": record.origin.kind, "result": str(result)}
        logger.debug("received", extra={"sop_instance_uid": record.sop_instance_uid, **extra})
    if result is IndexResult.CONFLICT:
        raise ConflictingInstance("this SOP Instance UID was received before with other content")
    if result is IndexResult.OTHER_PATIENT:
        raise ConflictingInstance("its study belongs to another patient here; it is kept apart")
    return Received(
        record.sop_class_uid,
        record.sop_instance_uid,
        record.study_instance_uid,
        record.series_instance_uid,
        result,
    )


def told(error: StorageError) -> NodeError:
    """Say what storage says in our words."""
    if isinstance(error, StorageFull):
        return StorageExhausted("the disk, quota or database is full")
    if isinstance(error, NotDurable):
        return StorageExhausted("the disk did not confirm the file")
    if isinstance(error, StorageUnavailable):
        return IndexUnavailable("the disk or the database cannot be used now")
    if isinstance(error, InstanceUnidentified):
        return UidMismatch(str(error))
    if isinstance(error, InstanceConflict):
        return ConflictingInstance(error.reason)
    return IndexUnavailable("the database refused the instance")
