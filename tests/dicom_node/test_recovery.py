"""A lost index is made anew from the files; single files without a row find their way back or aside."""

import json
import os
import time
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from sqlalchemy import select, update

from dicom_node import recovery
from dicom_node.__main__ import main
from dicom_node.rebuild import Rebuild
from dicom_node.recovery import Fate, OrphanCollector, Recovery, mark_all_complete
from dicom_node.supervisor import only_node_of
from storage import journal
from storage.database import Database
from storage.errors import IndexNotEmpty
from storage.files import DiskFiles, FileStore, StoredObject
from storage.index import find_instance, index_instance, quiet_studies
from storage.journal import Journal
from storage.journal_format import Record
from storage.part10 import StoredFile
from storage.records import Origin, record_from_dataset
from storage.retention import purge_study
from storage.s3 import S3Files
from storage.tables import Conflict, Instance, Series, Study
from tests.dicom_node.dimse.instances import make_data_set, make_image, part10


@pytest.fixture(params=["disk", "s3"])
def files(request: pytest.FixtureRequest, files_root: Path) -> FileStore:
    if request.param == "disk":
        return DiskFiles(files_root)
    return S3Files(files_root, request.getfixturevalue("bucket"))


@pytest.fixture
def disk(files_root: Path) -> DiskFiles:
    return DiskFiles(files_root)


def keep(files: FileStore, content: bytes) -> StoredFile:
    with files.new_incoming() as incoming:
        incoming.write(content)
        return incoming.keep()


def found(files: FileStore, stored: StoredFile) -> StoredObject:
    there = files.find(stored.path)
    assert there is not None
    return there


def enter(database: Database, dataset: Dataset, stored: StoredFile) -> None:
    with database.transaction() as tx:
        index_instance(tx, record_from_dataset(dataset, stored, Origin("DIMSE", "SCANNER")))


def make_result() -> Dataset:
    return make_data_set(Modality="SEG", Manufacturer="sim4seg-node")


def change(files_root: Path, stored: StoredFile, content: bytes) -> None:
    (files_root / stored.path).write_bytes(content)


def age(files_root: Path, stored: StoredFile, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(files_root / stored.path, (then, then))


def test_a_lost_index_is_made_anew(database: Database, files: FileStore):
    sent = [make_image(), make_image(syntax=DeflatedExplicitVRLittleEndian), make_data_set(), make_result()]
    kept = {str(one.SOPInstanceUID): keep(files, part10(one)) for one in sent}
    fates = Rebuild(database, files).run(lambda *_: None)
    assert fates == {Fate.INDEXED: 4}
    with database.reading() as tx:
        rows = tx.scalars(select(Instance)).all()
        ours = tx.scalars(select(Series.series_instance_uid).where(Series.is_own_result)).all()
        studies = tx.scalars(select(Study)).all()
    assert {row.sop_instance_uid: (row.path, row.sha256, row.size_bytes) for row in rows} == {
        uid: (stored.path, stored.sha256, stored.size_bytes) for uid, stored in kept.items()
    }
    assert ours == [sent[3].SeriesInstanceUID]
    assert {study.patient_name for study in studies} == {"Müller^Ännchen"}


def test_a_rebuilt_study_is_analysed_again_unless_told_otherwise(database: Database, disk: DiskFiles):
    keep(disk, part10(make_image()))
    Rebuild(database, disk).run(lambda *_: None)
    with database.transaction() as tx:
        assert len(quiet_studies(tx, 0)) == 1
    assert mark_all_complete(database) == 1
    with database.transaction() as tx:
        assert quiet_studies(tx, 0) == []


def test_an_index_with_instances_is_not_made_anew(database: Database, disk: DiskFiles):
    image = make_image()
    enter(database, image, keep(disk, part10(image)))
    with pytest.raises(IndexNotEmpty, match="fsck --repair"):
        Rebuild(database, disk).run(lambda *_: None)


@pytest.mark.parametrize("is_first_older", [True, False])
def test_the_older_of_two_contents_is_the_instance(
    database: Database, disk: DiskFiles, files_root: Path, is_first_older: bool
):
    image = make_image()
    contents = [part10(image)]
    image.PatientComments = "other content"
    contents.append(part10(image))
    kept = sorted((keep(disk, content) for content in contents), key=lambda stored: stored.path)
    older, younger = kept if is_first_older else reversed(kept)
    age(files_root, older, 100)
    assert Rebuild(database, disk).run(lambda *_: None) == {Fate.INDEXED: 1, Fate.QUARANTINED: 1}
    with database.reading() as tx:
        instance = find_instance(tx, str(image.SOPInstanceUID))
        assert instance is not None
        assert instance.path == older.path
        assert tx.scalars(select(Conflict.path)).all() == [younger.path]


@pytest.mark.parametrize("content", [b"", b"not DICOM", bytes(128) + b"DICM" + bytes(40)])
def test_what_cannot_be_read_is_set_aside_and_not_deleted(
    database: Database, files: FileStore, content: bytes
):
    stored = keep(files, content)
    assert Rebuild(database, files).run(lambda *_: None) == {Fate.SET_ASIDE: 1}
    assert not files.exists(stored.path)


def test_a_file_with_other_bytes_than_its_name_says_is_set_aside(
    database: Database, disk: DiskFiles, files_root: Path
):
    stored = keep(disk, part10(make_image()))
    change(files_root, stored, part10(make_image()))
    assert Rebuild(database, disk).run(lambda *_: None) == {Fate.SET_ASIDE: 1}
    assert len(list((files_root / "set-aside").iterdir())) == 1


def test_an_orphan_is_entered_as_if_it_had_just_come(database: Database, files: FileStore):
    image = make_image()
    stored = keep(files, part10(image))
    assert Recovery(database, files).adopt(found(files, stored)) is Fate.INDEXED
    with database.reading() as tx:
        row = find_instance(tx, str(image.SOPInstanceUID))
    assert row is not None
    assert (row.path, row.origin_kind) == (stored.path, "IMPORT")


def test_an_orphan_with_a_known_uid_goes_to_quarantine(database: Database, disk: DiskFiles):
    image = make_image()
    enter(database, image, keep(disk, part10(image)))
    image.PatientComments = "other content"
    assert Recovery(database, disk).adopt(found(disk, keep(disk, part10(image)))) is Fate.QUARANTINED


def test_a_second_copy_goes_only_when_the_first_is_whole(
    database: Database, disk: DiskFiles, files_root: Path
):
    image = make_image()
    stored = keep(disk, part10(image))
    enter(database, image, stored)
    digest = stored.sha256
    copy = f"objects/{digest[:2]}/{digest[2:4]}/{digest}.dcm"  # where earlier versions put it
    (files_root / copy).parent.mkdir()
    (files_root / copy).write_bytes(part10(image))
    original = (files_root / stored.path).read_bytes()
    for content, is_left in ((b"damaged", True), (original, False)):
        (files_root / stored.path).write_bytes(content)
        there = disk.find(copy)
        assert there is not None
        assert Recovery(database, disk).adopt(there) is Fate.DUPLICATE
        assert disk.exists(copy) is is_left


def test_a_result_that_no_job_claims_is_left_for_an_hour_then_set_aside(
    database: Database, disk: DiskFiles, files_root: Path
):
    stored = keep(disk, part10(make_result()))
    assert Recovery(database, disk).adopt(found(disk, stored)) is Fate.LEFT
    age(files_root, stored, 2 * recovery.FORSAKEN_AFTER_S)
    assert Recovery(database, disk).adopt(found(disk, stored)) is Fate.SET_ASIDE
    with database.reading() as tx:
        assert tx.scalars(select(Instance)).all() == []


def test_the_collector_looks_at_a_few_files_each_time(
    database: Database, disk: DiskFiles, files_root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recovery, "LOOK_AT_ONCE", 2)
    for _ in range(5):
        age(files_root, keep(disk, part10(make_image())), 10)
    collector = OrphanCollector(database, disk, every_s=3600)
    steps = [collector.step()[Fate.INDEXED] for _ in range(5)]
    assert steps == [2, 2, 1, 0, 0]
    age(files_root, keep(disk, part10(make_image())), 10)
    assert collector.step() == {}, "it rests until the next round"


def test_the_collector_leaves_a_file_whose_row_may_be_on_its_way(database: Database, disk: DiskFiles):
    collector = OrphanCollector(database, disk, every_s=0)
    for _ in range(3):
        keep(disk, part10(make_image()))
        assert collector.step() == {}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(words)
    return status, capsys.readouterr().out


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = tmp_path / "node"
    disk = DiskFiles(home / "files")
    image = make_image()
    stored = keep(disk, part10(image))
    status, out = run(capsys, "rebuild-index", "--json", "--home", str(home))
    assert (status, json.loads(out)["instances"], json.loads(out)["indexed"]) == (0, 1, 1)
    assert run(capsys, "rebuild-index", "--home", str(home))[0] == 1

    orphan = keep(disk, part10(make_image()))
    change(home / "files", stored, b"damaged")
    status, out = run(capsys, "fsck", "--home", str(home))
    assert status == 1
    assert stored.path in out
    assert orphan.path in out
    assert disk.exists(stored.path), "a check changes nothing"

    status, out = run(capsys, "fsck", "--repair", "--json", "--home", str(home))
    assert status == 1, "a changed file is not mended, only out of the way"
    assert json.loads(out)["repaired"] == {"changed file set aside": 1, "file without a row indexed": 1}
    keep(disk, part10(image))  # as the next sending does
    status, out = run(capsys, "fsck", "--json", "--home", str(home))
    assert (status, json.loads(out)["is_sound"], json.loads(out)["instances"]) == (0, True, 2)


@pytest.mark.parametrize("command", [("fsck", "--repair"), ("rebuild-index",)])
def test_mending_needs_the_node_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
):
    assert main(("migrate", "--home", str(tmp_path))) == 0
    with only_node_of(tmp_path):
        assert main((*command, "--home", str(tmp_path))) == 2
    assert "already runs" in capsys.readouterr().err


def write(journal: Journal, disk: DiskFiles, image: Dataset, database: Database | None) -> None:
    """Promise an instance by the journal; with a database, enter it too."""
    with disk.new_incoming() as incoming:
        incoming.write(part10(image))
        assert incoming.pages is not None
        note = {"kind": "DIMSE", "detail": "CT 1"}
        with journal.batch([Record(incoming.complete(), note, incoming.pages)]):
            if database is not None:
                enter(database, image, disk.keep_all([incoming], is_journaled=True)[0])


def kill(journal: Journal) -> None:
    """What the end of its process does to a journal: the lock goes, nothing is emptied any more."""
    journal._closer()


def test_what_a_dead_process_had_in_its_journal_is_entered_as_it_came(database, disk, files_root):
    """Twice: one whose row is there already, and one whose row the power cut took."""
    held, lost = make_image(), make_image()
    written = Journal(files_root, files_root.parent)
    write(written, disk, held, database)
    write(written, disk, lost, None)
    kill(written)
    assert Recovery(database, disk).replay() == 1
    assert Recovery(database, disk).replay() == 0
    with database.reading() as tx:
        rows = {row.sop_instance_uid: row for row in tx.scalars(select(Instance))}
    assert rows[held.SOPInstanceUID].origin_detail == "SCANNER"
    row = rows[lost.SOPInstanceUID]
    assert (row.origin_kind, row.origin_detail) == ("DIMSE", "CT 1")
    with disk.open(row.path) as file:
        assert file.read() == part10(lost)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No journal is emptied because of the time that passes."""
    monkeypatch.setattr(journal, "IDLE_S", 3600.0)


def done(database: Database, image: Dataset) -> str:
    """Let the study be one that may go."""
    with database.transaction() as tx:
        tx.execute(update(Study).values(completed_at=1.0, outcome="no rule"))
    return str(image.StudyInstanceUID)


@pytest.mark.usefixtures("quiet")
def test_a_study_does_not_go_while_a_journal_would_bring_it_back(database, disk, files_root):
    image = make_image()
    written = Journal(files_root, files_root.parent)
    write(written, disk, image, database)
    study = done(database, image)
    assert purge_study(database, disk, study) is None
    kill(written)
    assert purge_study(database, disk, study) is None, "the journal of a dead process is the one that is read"
    assert Recovery(database, disk).replay() == 0
    assert purge_study(database, disk, study) is not None
    assert Recovery(database, disk).replay() == 0
    assert not list(disk.walk())


@pytest.mark.usefixtures("quiet")
def test_what_went_after_its_journal_was_emptied_stays_gone(database, disk, files_root):
    """The death of the process finds another instance in the other half."""
    gone, later = make_image(), make_image()
    written = Journal(files_root, files_root.parent)
    write(written, disk, gone, database)
    written._change_segment()
    assert written._is_empty[0].wait(30)
    assert purge_study(database, disk, done(database, gone)) is not None
    write(written, disk, later, None)
    kill(written)
    assert Recovery(database, disk).replay() == 1
    with database.reading() as tx:
        assert list(tx.scalars(select(Instance.sop_instance_uid))) == [later.SOPInstanceUID]
