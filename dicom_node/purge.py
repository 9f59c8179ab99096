"""Removes studies that are old enough, or the oldest when the disk is full: only what is owed to nobody."""

import logging
import shutil

from dicom_node.audit.patients import patients_of
from dicom_node.audit.trail import trail_of
from dicom_node.header import MIB
from dicom_node.settings import NodeSettings
from dicom_node.web.metadata import MetadataCache
from storage.database import Database
from storage.files import FileStore
from storage.retention import DAY_S, Purged, purge_study, purgeable_studies

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 20  # studies in one pass of the sweep, which has other things to do as well


def purge(database: Database, files: FileStore, settings: NodeSettings) -> list[Purged]:
    """Make one pass: studies older than retention.days, then the oldest while the disk is too full."""
    purged: list[Purged] = []
    if settings.retention.days > 0:
        purged += _purge(database, files, settings, settings.retention.days * DAY_S, MOST_AT_ONCE)
    if settings.retention.purge_when_full:
        while len(purged) < MOST_AT_ONCE and _is_full(files, settings):
            gone = _purge(database, files, settings, settings.completion.quiet_period_s, 1)
            if not gone:
                logger.warning("the disk is full, and no study may go: see deliveries and conflicts")
                break
            purged += gone
    rendered = MetadataCache(settings.home / "cache" / "metadata", settings.http.metadata_cache_mb * MIB)
    for study in purged:
        rendered.forget_study(study.study_instance_uid)
    return purged


def _is_full(files: FileStore, settings: NodeSettings) -> bool:
    return shutil.disk_usage(files.spool).free < settings.limits.low_free_mb * MIB


def _purge(
    database: Database, files: FileStore, settings: NodeSettings, older_than_s: float, limit: int
) -> list[Purged]:
    with database.reading() as tx:
        uids = purgeable_studies(tx, older_than_s, limit)
    patients = patients_of(settings, uids)  # nobody knows them afterwards
    gone = [found for uid in uids if (found := purge_study(database, files, uid)) is not None]
    for study in gone:
        extra = {
            "study_instance_uid": study.study_instance_uid,
            "count": study.instances,
            "bytes": study.size_bytes,
        }
        logger.info("study removed", extra=extra)
        trail_of(settings).deleted(study.study_instance_uid, "retention", patients)
    return gone
