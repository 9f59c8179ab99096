"""An image that comes at any moment of an analysis is in the inputs of some version."""

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_node.standing import standing_of
from storage.database import Database
from storage.index import (
    index_instance,
    record_from_dataset,
)
from storage.jobs import ClaimedJob, complete_job
from storage.part10 import StoredFile
from storage.versions import supersede
from tests.ward import SCANNER, Ward, stack, uids

TRIALS = int(os.environ.get("RACE_TRIALS", "300"))  # 1,000 and more: RACE_TRIALS=1000, by `make soak`


@pytest.fixture
def quick_ward(tmp_path: Path, migrated_database: Path) -> Iterator[Ward]:
    """A ward whose database is in memory: this is about order, not about the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        shutil.copy(migrated_database, Path(folder) / "node.sqlite")
        database = Database(f"sqlite:///{folder}/node.sqlite")
        yield Ward(database, tmp_path)
        database.close()


class Races:
    """Studies whose second image comes at some moment of the first one's analysis."""

    def __init__(self, ward: Ward) -> None:
        self.ward = ward
        self.images = stack(2)
        self.job: ClaimedJob | None = None

    def trial(self, moment: int) -> set[str]:
        """One study; gives what the versions that were published have seen."""
        study, series = generate_uid(), generate_uid()
        for dataset in self.images:
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
            dataset.SOPInstanceUID = generate_uid()
        steps = (self._complete, self._look, self._store)
        self.published: set[str] = set()
        self._receive(self.images[0])
        for number, step in enumerate(steps):
            if moment == number:
                self._receive(self.images[1])
            step()
        if moment == len(steps):
            self._receive(self.images[1])
        if self._complete():
            self._look()
            self._store()
        return self.published

    def _receive(self, dataset: Dataset) -> None:
        digest = hashlib.sha256(dataset.SOPInstanceUID.encode()).hexdigest()
        record = record_from_dataset(dataset, StoredFile(f"objects/{digest}.dcm", digest, 1), SCANNER)
        with self.ward.database.transaction() as tx:
            index_instance(tx, record)

    def _complete(self) -> list[str]:
        return self.ward.complete()

    def _look(self) -> None:
        self.job = self.ward.claim()
        if self.job is not None:
            with self.ward.database.reading() as tx:
                self.standing = standing_of(tx, self.job, [self.job.series_instance_uid], "0.0.1")

    def _store(self) -> None:
        if self.job is None:
            return
        job, standing = self.job, self.standing
        with self.ward.database.transaction() as tx:
            supersede(tx, job, standing.inputs, standing.predecessors, [])
            complete_job(tx, job.job_id, job.fence, "RESULT", {}, model_version="0.0.1")
        self.published |= set(standing.inputs.sop_instance_uids)


@pytest.mark.timeout(1500)
def test_every_image_is_in_some_published_version_whenever_it_comes(quick_ward: Ward) -> None:
    races, chance = Races(quick_ward), random.Random(13)
    moments = [chance.randrange(4) for _ in range(TRIALS)]
    assert set(moments) == {0, 1, 2, 3}
    for moment in moments:
        assert races.trial(moment) == uids(*races.images), moment
