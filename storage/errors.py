"""StorageError and its tree: what can go wrong between an instance and the disk.

StorageError
├── StorageUnavailable     the database or the disk cannot be used now; trying again may help
│   ├── StorageFull        no room left (ENOSPC, EDQUOT, database full)
│   └── DatabaseDamaged    the database's own files are damaged: no repetition helps, a person has to
├── NotDurable             fsync failed: nobody knows what the disk holds; never tried again
├── DatabaseRefused        a statement broke a constraint: a mistake of this program
├── SchemaMismatch         the tables are older or newer than this program
├── IndexNotEmpty          an index that has instances is not made anew
├── InstanceUnidentified   a data set without usable UIDs
├── InstanceConflict       a known UID came with other content
├── InstanceMissing        a row without its file, or a UID that nobody knows
├── InstanceDamaged        a file whose bytes are not those that were stored
├── PathRefused            a relative path that this room did not hand out
├── SearchRefused          a search value that cannot be matched
├── IllegalTransition      a job or delivery was asked for a state it cannot reach
└── LeaseLost              somebody else holds the work by now

No message carries a patient attribute.
"""


class StorageError(Exception):
    """Root of everything this room raises on purpose."""


class StorageUnavailable(StorageError):
    """The database or the disk cannot be used now; trying again later may help."""


class StorageFull(StorageUnavailable):
    """There is no room for more: free disk space or raise the quota."""


class DatabaseDamaged(StorageUnavailable):
    """The database finds its own files damaged: restore the backup, or make the index anew from the files."""


class NotDurable(StorageError):
    """fsync reported an error, so written data may be gone; the same fsync is never tried again.

    Source: Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020.
    """


class DatabaseRefused(StorageError):
    """The database refused a statement that breaks a constraint or a type: a mistake of this program."""


class SchemaMismatch(StorageError):
    """The database's tables are not those of this program."""


class IndexNotEmpty(StorageError):
    """The index has instances, so it was not lost and is not made anew."""


class InstanceUnidentified(StorageError):
    """A data set lacks a UID that the index is built on, or carries an illegal one."""


class InstanceConflict(StorageError):
    """An instance came with a UID that is already taken by other content."""

    def __init__(self, sop_instance_uid: str, reason: str, first_sha256: str) -> None:
        super().__init__(f"instance {sop_instance_uid}: {reason}")
        self.sop_instance_uid = sop_instance_uid
        self.reason = reason
        self.first_sha256 = first_sha256


class InstanceMissing(StorageError):
    """The instance or its file is not here."""


class InstanceDamaged(StorageError):
    """The file of an instance has other bytes than were stored: restore it from the backup."""


class PathRefused(StorageError):
    """The path is not one that storage.part10 hands out."""


class SearchRefused(StorageError):
    """A search value is not of the form its attribute can be matched with; the sentence says which."""


class IllegalTransition(StorageError):
    """A job or delivery was asked to move to a state it cannot reach from where it is."""

    def __init__(self, work_id: str, current: str, requested: str) -> None:
        super().__init__(f"{work_id} is {current}; it cannot become {requested}")


class LeaseLost(StorageError):
    """The caller's fence is old: another worker claimed the work, so this result must be dropped."""

    def __init__(self, work_id: str, fence: int) -> None:
        super().__init__(f"{work_id}: fence {fence} is no longer the current one; drop this work")
