"""Shorthands: data sets without pixels, files, rows. All synthetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import select

from storage.database import Database, Transaction
from storage.index import IndexResult, InstanceRecord, Origin, index_instance, record_from_dataset
from storage.jobs import JobRequest, create_job
from storage.part10 import StoredFile, new_incoming
from storage.tables import DeliveryAttempt, JobAttempt

STUDY = "1.2.826.1"
ORIGIN = Origin("DIMSE", "SENDER")


def make_dataset(sop: str = "1", *, study: str = STUDY, series: str = "1", **attributes: Any) -> Dataset:
    """A CT header; the last parts of the UIDs are given, attributes are added or replaced."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = f"{study}.{series}"
    ds.SOPInstanceUID = f"{study}.{series}.{sop}"
    ds.Modality = "CT"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def keep(files_root: Path, content: bytes) -> StoredFile:
    with new_incoming(files_root) as incoming:
        incoming.write(content)
        return incoming.keep()


def attempts_of_job(tx: Transaction, job_id: str) -> Sequence[JobAttempt]:
    """Every try at the job, the first one first."""
    statement = select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.attempt)
    return tx.scalars(statement.execution_options(populate_existing=True)).all()


def attempts_of_delivery(tx: Transaction, delivery_id: str) -> Sequence[DeliveryAttempt]:
    """Every try at the delivery, the first one first."""
    of_delivery = select(DeliveryAttempt).where(DeliveryAttempt.delivery_id == delivery_id)
    statement = of_delivery.order_by(DeliveryAttempt.attempt).execution_options(populate_existing=True)
    return tx.scalars(statement).all()


@dataclass(frozen=True)
class Archive:
    """A database and a folder of files that belong together."""

    db: Database
    files_root: Path

    def record(
        self, ds: Dataset, content: bytes | None = None, *, is_own_result: bool = False
    ) -> InstanceRecord:
        stored = keep(self.files_root, ds.to_json().encode() if content is None else content)
        return record_from_dataset(ds, stored, ORIGIN, is_own_result)

    def enter(self, tx: Transaction, ds: Dataset, content: bytes | None = None) -> IndexResult:
        return index_instance(tx, self.record(ds, content))

    def receive(
        self, ds: Dataset, content: bytes | None = None, *, is_own_result: bool = False
    ) -> IndexResult:
        """Keep the file, then index it in a transaction of its own: as `dicom_node.receive` does."""
        record = self.record(ds, content, is_own_result=is_own_result)
        with self.db.transaction() as tx:
            return index_instance(tx, record)

    def job(self, query: str = "Outline the lesion.", **changes: Any) -> str:
        """Schedule a job on the first series of the study, which is made when it is not there."""
        self.receive(make_dataset())
        with self.db.transaction() as tx:
            return self.job_in(tx, query, **changes)

    @staticmethod
    def job_in(tx: Transaction, query: str, **changes: Any) -> str:
        """Schedule a job on the first series of a study that is there already."""
        request = JobRequest(STUDY, 1, f"{STUDY}.1", "rule", "sim4seg-s", query, **changes)
        job_id = create_job(tx, request)
        assert job_id is not None
        return job_id
