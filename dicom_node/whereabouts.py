"""Whether the files are where the index says: a volume that is not mounted must not pass for an empty one.

Instances written below its mount point would be acknowledged, and be gone as soon as it is mounted again.
"""

from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from storage.database import Database
from storage.errors import StorageUnavailable
from storage.part10 import OBJECTS
from storage.settings import StorageSettings
from storage.tables import Instance


def missing_files(settings: StorageSettings, database: Database) -> str | None:
    """Say that the folder of the files is gone although the index has instances; None = all is well.

    Asks the database only when the folder is not there; without its answer nothing is received anyway.
    """
    if settings.s3_bucket is not None or _is_there(settings.files_root):
        return None
    with suppress(StorageUnavailable), database.reading() as tx:
        if tx.scalar(select(Instance.sop_instance_uid).limit(1)) is not None:
            return (
                "the files of the index are not there: mount the volume of storage.files_root or restore its "
                f"folder {OBJECTS}/ from the backup; if they are lost for good, make that folder anew and "
                "start the node again"
            )
    return None


def _is_there(root: Path) -> bool:
    return (root / OBJECTS).is_dir()
