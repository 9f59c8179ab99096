"""Whose studies they are, for a trail that may say so (`audit.patient_ids`)."""

from collections.abc import Iterable

from dicom_node.audit.events import PatientOf
from dicom_node.settings import NodeSettings
from storage.database import Database
from storage.errors import StorageError
from storage.index import find_study


def patients_of(settings: NodeSettings, studies: Iterable[str]) -> dict[str, PatientOf]:
    """The patients by Study Instance UID; nothing where they may not be written, or the index is silent.

    The database is opened for each call: the trail holds nothing that a forked process would share.
    """
    if not settings.audit.patient_ids:
        return {}
    database = Database(settings.storage.database_url, settings.storage.database_answer_s)
    try:
        with database.reading() as tx:
            rows = {uid: find_study(tx, uid) for uid in studies}
            return {
                uid: PatientOf(row.patient_id, row.patient_name)
                for uid, row in rows.items()
                if row is not None
            }
    except StorageError:
        return {}
    finally:
        database.close()
