"""A node in this process without its door: what comes in, completion, one worker, and what is shown."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from sqlalchemy import select, update

from dicom_node.completion import complete_studies
from dicom_node.forms.form import Recipient
from dicom_node.frames import FrameLimits
from dicom_node.intake import ReceiveLimits
from dicom_node.notes import IdentityRules
from dicom_node.pipeline import Services, run_job
from dicom_node.pressure import Pressure
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from storage.database import Database
from storage.files import DiskFiles
from storage.index import (
    Origin,
    SearchQuery,
    find_study,
    search_instances,
)
from storage.jobs import ClaimedJob, claim_job, due_jobs
from storage.tables import Instance, Job, Study
from tests import builders

SCANNER, PACS, VIEWER = Origin("DIMSE", "SCANNER"), Origin("DIMSE", "PACS"), Origin("STOW-RS", "viewer")
MASK = builders.make_ellipse((40, 48), (20, 24), (8, 10))
KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
TITLES = ["113001", "113037", "113038", "113039"]


class Ward:
    """A node in this process: what comes in, the sweep's completion, and one worker."""

    def __init__(self, database: Database, home: Path, corrections_from: Sequence[str] = ()) -> None:
        files = DiskFiles(home / "files")
        rules = IdentityRules(corrections_from=frozenset(corrections_from))
        pressure = Pressure(home, home / "files", soft_bytes=0, hard_bytes=0)
        self.database = database
        self.receiver = Receiver(database, files, ReceiveLimits(), pressure, identity=rules)
        self.settings = NodeSettings(home=home, routes=(builders.route(modality=("MR",)),))
        stub = builders.MaskPredictor()
        self.services = Services(
            database, self.receiver, files, lambda _name: stub, FrameLimits(), (Recipient("PACS"),)
        )

    def receive(self, *datasets: Dataset, origin: Origin = SCANNER) -> None:
        for dataset in datasets:
            self.receiver.receive_part10([builders.part10(dataset)], origin)

    def complete(self) -> list[str]:
        with self.database.transaction() as tx:
            older = update(Study).values(last_received_at=Study.last_received_at - 3600)
            tx.execute(older.where(Study.completed_at.is_(None)))
        return complete_studies(self.database, self.settings)

    def claim(self) -> ClaimedJob | None:
        with self.database.transaction() as tx:
            due = due_jobs(tx)
            return claim_job(tx, due[0], "worker", 60.0, 3) if due else None

    def work(self) -> None:
        """Complete what is quiet and run all jobs."""
        self.complete()
        while (job := self.claim()) is not None:
            run_job(job, self.services)

    def study(self, dataset: Dataset) -> Study:
        with self.database.reading() as tx:
            found = find_study(tx, str(dataset.StudyInstanceUID))
        assert found is not None
        return found

    def results(self, dataset: Dataset, *, retired_as: str | None = None) -> dict[str, Instance]:
        """Our results by modality; the current ones unless another mark is asked for."""
        with self.database.reading() as tx:
            rows = tx.scalars(
                select(Instance)
                .where(Instance.study_instance_uid == str(dataset.StudyInstanceUID))
                .where(Instance.origin_kind == "OWN RESULT")
                .order_by(Instance.received_at)
            ).all()
        kept = [row for row in rows if row.retired_as == retired_as]
        return {"SEG" if row.number_of_frames else "SR": row for row in kept}

    def read(self, instance: Instance) -> Dataset:
        with self.services.files.open(instance.path) as file:
            return dcmread(file)

    def found(self, dataset: Dataset, **filters: str) -> set[str]:
        """SOP Instance UIDs that a search of the study gives."""
        asked = {"StudyInstanceUID": str(dataset.StudyInstanceUID), **filters}
        with self.database.reading() as tx:
            return {match.instance.sop_instance_uid for match in search_instances(tx, SearchQuery(asked))}

    def jobs(self) -> list[Job]:
        with self.database.reading() as tx:
            return list(tx.scalars(select(Job).order_by(Job.created_at)))


def stack(count: int = 4, study: str | None = None) -> list[Dataset]:
    """A series of its own, in a study of its own unless one is given."""
    images = builders.make_stack([MASK] * count)
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    for dataset in images:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = frame
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return images


def corrected(images: Sequence[Dataset], patient_id: str = "RIGHT-1") -> list[Dataset]:
    """The same images under another patient."""
    again = [deepcopy(dataset) for dataset in images]
    for dataset in again:
        dataset.PatientID, dataset.PatientName = patient_id, "Right^Patient"
    return again


def uids(*datasets: Dataset) -> set[str]:
    return {str(dataset.SOPInstanceUID) for dataset in datasets}


def derived(source: Dataset, sop_class: str, modality: str, **attributes: object) -> Dataset:
    """An object of somebody else in the study of `source`."""
    made = Dataset()
    made.file_meta = deepcopy(source.file_meta)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SeriesInstanceUID = generate_uid()
    made.StudyInstanceUID, made.Modality = source.StudyInstanceUID, modality
    made.PatientID, made.PatientName = source.PatientID, source.PatientName
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def coded(code: str, scheme: str = "DCM") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, "meaning"
    return item


def rejection_note(code: str, *rejected: Dataset, study: str | None = None) -> Dataset:
    """An IOCM rejection note: a Key Object Selection with this title."""
    evidence = Dataset()
    evidence.StudyInstanceUID = study or rejected[0].StudyInstanceUID
    series = Dataset()
    series.SeriesInstanceUID = rejected[0].SeriesInstanceUID
    series.ReferencedSOPSequence = []
    for dataset in rejected:
        item = Dataset()
        item.ReferencedSOPClassUID = dataset.SOPClassUID
        item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        series.ReferencedSOPSequence.append(item)
    evidence.ReferencedSeriesSequence = [series]
    return derived(
        rejected[0],
        KEY_OBJECT,
        "KO",
        ConceptNameCodeSequence=[coded(code)],
        CurrentRequestedProcedureEvidenceSequence=[evidence],
    )
