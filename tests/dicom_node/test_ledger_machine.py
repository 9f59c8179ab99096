"""Store, duplicate, conflict, abort, late, reject, kill, query in any order, against a ledger (SEM-14).

Each step goes through the real receiver, index, completion and job table; the model is a ledger of a few
sets. Kills are the state that they leave: a part of a file, a file without its row, a claim without end.
"""

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import Comprehensive3DSRStorage, CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import func, select, update

from dicom_node.announced import Announced
from dicom_node.completion import complete_studies
from dicom_node.errors import ConflictingInstance
from dicom_node.intake import ReceiveLimits
from dicom_node.pressure import Pressure
from dicom_node.product import MANUFACTURER
from dicom_node.receive import Receiver
from dicom_node.recovery import Recovery
from dicom_node.settings import NodeSettings, load_settings
from storage.database import Database, upgrade
from storage.errors import LeaseLost
from storage.files import DiskFiles
from storage.index import (
    IndexResult,
    Origin,
    find_instance,
    find_study,
    instances_of_series,
    request_completion,
)
from storage.jobs import ClaimedJob, claim_next_job, complete_job
from storage.notes import KEY_OBJECT_SELECTION
from storage.tables import Conflict, Instance, Job, Study
from storage.versions import current_results, inputs_of, remember_inputs, same_result, supersede

STEPS = int(os.environ.get("MACHINE_STEPS", "10000"))
STEPS_OF_ONE = 100
ROOT = "1.2.826.0.1.3680043.10.999.7"
STUDIES, SERIES = range(3), range(2)
ORIGIN = Origin("DIMSE", "SCANNER")
UNDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
done_steps: Counter[str] = Counter()


class Killed(Exception):
    """The process that worked on a transaction is gone."""


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def image_template() -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{ROOT}.99999.9.99999"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.99999", f"{ROOT}.99999.8"
    ds.PatientName, ds.PatientID, ds.Modality, ds.StudyDate = "Ledger^Test", "L1", "CT", "20260101"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 16, 16, 15
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.PixelData = b"\xaa\xbb"
    ds["PixelData"].VR = "OW"
    return encoded(ds)


TEMPLATE = image_template()


def image(uid: str, pixels: bytes) -> bytes:
    """An encoded data set; UIDs of the template's lengths, so that they can be put in their places."""
    series, study = uid.rpartition(".")[0], uid.rpartition(".")[0].rpartition(".")[0]
    content = TEMPLATE.replace(f"{ROOT}.99999.9.99999".encode(), uid.encode())
    content = content.replace(f"{ROOT}.99999.8".encode(), series.encode())
    return content.replace(f"{ROOT}.99999".encode(), study.encode()).replace(b"\xaa\xbb", pixels)


def rejection_note(rejected: str, uid: str) -> Dataset:
    series = rejected.rpartition(".")[0]
    study = series.rpartition(".")[0]
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = KEY_OBJECT_SELECTION, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, uid.rpartition(".")[0]
    ds.PatientName, ds.PatientID, ds.Modality = "Ledger^Test", "L1", "KO"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "113001", "DCM", "Rejected"
    ds.ConceptNameCodeSequence = [title]
    named, of_series, of_study = Dataset(), Dataset(), Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = CTImageStorage, rejected
    of_series.SeriesInstanceUID, of_series.ReferencedSOPSequence = series, [named]
    of_study.StudyInstanceUID, of_study.ReferencedSeriesSequence = study, [of_series]
    ds.CurrentRequestedProcedureEvidenceSequence = [of_study]
    return ds


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=UNDER))
    (folder / "node.toml").write_text(
        "[completion]\nquiet_period_s = 3600\n[[routes]]\nname = 'all'\nmodel = 'm'\nquery = 'q'\n"
        "modality = ['CT']\n"
    )
    upgrade(f"sqlite:///{folder}/node.sqlite")
    LedgerMachine.database = Database(f"sqlite:///{folder}/node.sqlite")
    yield folder
    LedgerMachine.database.close()
    shutil.rmtree(folder)


class LedgerMachine(RuleBasedStateMachine):
    """The node's rows and files on one side, `self.*` sets on the other."""

    home: Path
    settings: NodeSettings
    database: Database  # one file for all examples
    examples = 0

    @initialize()
    def begin(self) -> None:
        LedgerMachine.examples += 1
        self.base = 10000 + 10 * LedgerMachine.examples
        self.folder = Path(tempfile.mkdtemp(dir=self.home))
        self.files = DiskFiles(self.folder / "files")
        self.count = 10000
        self.kept: dict[str, tuple[int, int, bytes]] = {}  # SOP UID -> study, series, data set
        self.rejected: set[str] = set()
        self.conflicts: set[tuple[str, bytes]] = set()
        self.changed: set[int] = set()  # studies that changed since their completion
        self.answered: dict[tuple[int, int], frozenset[str]] = {}
        self.restart()

    def study_uid(self, study: int) -> str:
        return f"{ROOT}.{self.base + study}"

    def series_uid(self, study: int, series: int) -> str:
        return f"{ROOT}.{self.base + study}.{series}"

    def restart(self, *, is_whole: bool = True) -> None:
        """What a new process does; not whole: what it does with the disk, since all else takes long."""
        if is_whole:
            LedgerMachine.database.close()
            LedgerMachine.database = Database(f"sqlite:///{self.home}/node.sqlite")
            pressure = Pressure(self.folder, self.folder, soft_bytes=0, hard_bytes=0)
            self.receiver = Receiver(self.database, self.files, ReceiveLimits(), pressure)
        recovery = Recovery(self.database, self.files)
        with self.database.reading() as tx:
            ours = Instance.study_instance_uid.in_([self.study_uid(study) for study in STUDIES])
            known = {*tx.scalars(select(Instance.path).where(ours)), *tx.scalars(select(Conflict.path))}
        for orphan in [each for each in self.files.walk() if each.path not in known]:
            recovery.adopt(orphan)

    def next_uid(self, study: int, series: int) -> str:
        self.count += 1
        return f"{self.series_uid(study, series)}.{self.count}"

    def receive(self, content: bytes, uid: str, sop_class: str = CTImageStorage) -> IndexResult:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return self.receiver.receive_data_set(content, meta, ORIGIN).result

    def shown(self, study: int, series: int) -> frozenset[str]:
        """What the ledger says that a query gives."""
        return frozenset(
            uid
            for uid, (of_study, of_series, _) in self.kept.items()
            if (of_study, of_series) == (study, series) and uid not in self.rejected
        )

    def pick(self, number: int) -> tuple[str, tuple[int, int, bytes]]:
        uid = sorted(self.kept)[number % len(self.kept)]
        return uid, self.kept[uid]

    # --- what happens -----------------------------------------------------------------------------

    @rule(
        study=st.sampled_from(STUDIES),
        series=st.sampled_from(SERIES),
        pixels=st.binary(min_size=2, max_size=2),
    )
    def store(self, study: int, series: int, pixels: bytes) -> None:
        done_steps["store"] += 1
        uid = self.next_uid(study, series)
        content = image(uid, pixels)
        assert self.receive(content, uid) is IndexResult.NEW
        self.kept[uid] = (study, series, content)
        self.changed.add(study)
        self.check_state_of(study)

    @precondition(lambda self: self.kept)
    @rule(number=st.integers(0, 1000))
    def late(self, number: int) -> None:
        """One more image of a series whose study may be complete and answered already."""
        done_steps["late"] += 1
        _, (study, series, _) = self.pick(number)
        self.store(study=study, series=series, pixels=b"\1\2")

    @precondition(lambda self: self.kept)
    @rule(number=st.integers(0, 1000))
    def duplicate(self, number: int) -> None:
        done_steps["duplicate"] += 1
        uid, (study, _, content) = self.pick(number)
        assert self.receive(content, uid) is IndexResult.DUPLICATE
        self.check_state_of(study)

    @precondition(lambda self: self.kept)
    @rule(number=st.integers(0, 1000), pixels=st.binary(min_size=2, max_size=2))
    def conflict(self, number: int, pixels: bytes) -> None:
        done_steps["conflict"] += 1
        uid, (study, _, content) = self.pick(number)
        other = image(uid, pixels)
        if other == content:
            return
        with pytest.raises(ConflictingInstance):
            self.receive(other, uid)
        self.conflicts.add((uid, other))
        with self.database.reading() as tx:
            ours = Conflict.sop_instance_uid.in_(list(self.kept))
            assert tx.scalar(select(func.count()).select_from(Conflict).where(ours)) == len(self.conflicts)
        self.check_state_of(study)

    @rule(study=st.sampled_from(STUDIES), share=st.floats(0, 1))
    def abort(self, study: int, share: float) -> None:
        """The sender goes away in the middle of an instance."""
        done_steps["abort"] += 1
        uid = self.next_uid(study, 0)
        content = image(uid, b"\3\4")
        announced = Announced(CTImageStorage, uid, ExplicitVRLittleEndian, ORIGIN)
        with self.receiver.begin(announced) as intake:
            intake.write(content[: int(share * len(content))])
        with self.database.reading() as tx:
            assert find_instance(tx, uid) is None
        assert list((self.folder / "files" / "incoming").glob("*")) == []

    @precondition(lambda self: set(self.kept) - self.rejected)
    @rule(number=st.integers(0, 1000))
    def reject(self, number: int) -> None:
        done_steps["reject"] += 1
        candidates = sorted(set(self.kept) - self.rejected)
        rejected = candidates[number % len(candidates)]
        study, _, _ = self.kept[rejected]
        uid = self.next_uid(study, 7)
        note = rejection_note(rejected, uid)
        assert self.receive(encoded(note), uid, KEY_OBJECT_SELECTION) is IndexResult.NEW
        self.rejected.add(rejected)
        self.changed.add(study)
        with self.database.reading() as tx:
            assert find_instance(tx, rejected) is None

    @rule(study=st.sampled_from(STUDIES), has_name=st.booleans())
    def kill_receiver(self, study: int, has_name: bool) -> None:
        """SIGKILL between the bytes and the name, or between the name and the row; then a new start."""
        done_steps["kill_receiver"] += 1
        uid = self.next_uid(study, 1)
        content = image(uid, b"\5\6")
        announced = Announced(CTImageStorage, uid, ExplicitVRLittleEndian, ORIGIN)
        if has_name:
            with self.receiver.begin(announced) as intake:
                intake.write(content)
                intake.check()
                intake.keep()
            self.kept[uid] = (study, 1, content)  # nobody was promised it; its bytes are whole, so it is kept
            self.changed.add(study)
        else:
            (self.folder / "files" / "incoming").mkdir(parents=True, exist_ok=True)
            part = self.folder / "files" / "incoming" / f"{hashlib.md5(uid.encode()).hexdigest()}.part"
            part.write_bytes(content[:100])
        self.restart(is_whole=False)
        for part in (self.folder / "files" / "incoming").glob("*.part"):
            part.unlink()  # the sweep does it after a day
        with self.database.reading() as tx:
            assert (find_instance(tx, uid) is not None) is has_name

    @rule()
    def complete(self) -> None:
        done_steps["complete"] += 1
        with self.database.transaction() as tx:
            for study in self.changed:
                request_completion(tx, self.study_uid(study), "ledger")
        complete_studies(self.database, self.settings)
        with self.database.reading() as tx:
            for study in self.changed:
                row = find_study(tx, self.study_uid(study))
                assert row is not None
                assert row.completed_at is not None
        self.changed.clear()

    @rule(way=st.sampled_from(["finish", "finish", "finish", "die first", "die late", "zombie"]))
    def work(self, way: str) -> None:
        """All due jobs; the first one in a way of its own."""
        done_steps[f"work: {way}"] += 1
        while (job := self.claim()) is not None:
            if way in {"die first", "die late", "zombie"}:
                zombie = job
                if way == "die late":
                    self.publish(job, is_killed=True)
                self.expire(job)
                job = self.claim()
                assert job is not None
                assert (job.job_id, job.fence) == (zombie.job_id, zombie.fence + 1)
                self.publish(job)
                with pytest.raises(LeaseLost):
                    self.publish(zombie)
            else:
                self.publish(job)
            way = "finish"
        self.check_answers()

    @precondition(lambda self: self.kept)
    @rule()
    def query(self) -> None:
        """Everything that is shown, byte for byte."""
        done_steps["query"] += 1
        for study in STUDIES:
            for series in SERIES:
                with self.database.reading() as tx:
                    rows = instances_of_series(tx, self.series_uid(study, series))
                    assert {row.sop_instance_uid for row in rows} == self.shown(study, series)
                for row in rows[-2:]:
                    with self.files.open(row.path) as file:
                        assert file.read().endswith(self.kept[row.sop_instance_uid][2])

    @rule(die=st.integers(0, 5))
    def restart_all(self, die: int) -> None:
        done_steps["restart"] += 1
        self.restart(is_whole=die == 0)

    # --- helpers ----------------------------------------------------------------------------------

    def claim(self) -> ClaimedJob | None:
        with self.database.transaction() as tx:
            return claim_next_job(tx, "worker", 1800.0, 100_000)

    def expire(self, job: ClaimedJob) -> None:
        with self.database.transaction() as tx:
            tx.execute(update(Job).where(Job.job_id == job.job_id).values(lease_expires_at=0.0))

    def publish(self, job: ClaimedJob, *, is_killed: bool = False) -> None:
        """What run_job does once the model has spoken, with a small report in place of SEG and SR."""
        with self.database.reading() as tx:
            inputs = inputs_of(instances_of_series(tx, job.series_instance_uid))
            predecessors = current_results(tx, job)
            earlier = same_result(tx, job, inputs, "1")
        outcome = "RESULT" if inputs.sop_instance_uids else "NO FINDING"  # every image may be rejected
        try:
            with self.database.transaction() as tx:
                if earlier is None and inputs.sop_instance_uids:
                    words = [inputs.key, *(each.sop_instance_uid for each in predecessors)]
                    report = own_report(job, hashlib.sha256(" ".join(words).encode()).hexdigest())
                    stored = self.receiver.receive_own_results(tx, [report], job.job_id)
                    supersede(tx, job, inputs, predecessors, stored)
                else:
                    remember_inputs(tx, job, inputs)
                complete_job(tx, job.job_id, job.fence, outcome, {}, model_version="1")
                if is_killed:
                    raise Killed
        except Killed:
            return
        study, series = map(int, job.series_instance_uid.split(".")[-2:])
        self.answered[study - self.base, series] = frozenset(inputs.sop_instance_uids)

    def check_state_of(self, study: int) -> None:
        with self.database.reading() as tx:
            row = tx.get(Study, self.study_uid(study))
        assert row is not None
        assert (row.completed_at is None) is (study in self.changed)

    def check_answers(self) -> None:
        """Once no job is open: the current result of each complete series saw exactly what is shown."""
        with self.database.reading() as tx:
            open_jobs = (
                select(func.count()).select_from(Job).where(Job.state.in_(["SCHEDULED", "IN PROGRESS"]))
            )
            assert tx.scalar(open_jobs) == 0
            ours = Job.study_instance_uid.in_([self.study_uid(study) for study in STUDIES])
            current = tx.execute(
                select(Job.series_instance_uid, func.count())
                .join(Instance, Instance.origin_detail == Job.job_id)
                .where(ours, Instance.origin_kind == "OWN RESULT", Instance.retired_as.is_(None))
                .group_by(Job.series_instance_uid)
            )
            results = {row[0]: row[1] for row in current}
        assert set(results.values()) <= {1}
        for study in set(STUDIES) - self.changed:
            for series in SERIES:
                shown = self.shown(study, series)
                if shown:
                    assert self.answered.get((study, series)) == shown
                    assert results.get(self.series_uid(study, series)) == 1

    def teardown(self) -> None:
        if not hasattr(self, "kept"):
            return
        for study in STUDIES:
            for series in SERIES:
                with self.database.reading() as tx:
                    rows = instances_of_series(tx, self.series_uid(study, series))
                assert {row.sop_instance_uid for row in rows} == self.shown(study, series)
                for row in rows:
                    with self.files.open(row.path) as file:
                        assert hashlib.sha256(file.read()).hexdigest() == row.sha256
        with self.database.transaction() as tx:  # what is left to do is not the next example's
            tx.execute(update(Job).where(Job.state != "COMPLETED").values(state="CANCELED"))
        shutil.rmtree(self.folder)


def own_report(job: ClaimedJob, digest: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = Comprehensive3DSRStorage, f"2.25.{int(digest[:30], 16)}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = job.study_instance_uid, f"2.25.{int(digest[30:60], 16)}"
    ds.PatientName, ds.PatientID, ds.Modality = "Ledger^Test", "L1", "SR"
    ds.Manufacturer = MANUFACTURER
    return ds


@pytest.mark.timeout(900)
def test_nothing_diverges_from_the_ledger(home: Path) -> None:
    def machine() -> Any:
        made = LedgerMachine()
        made.home, made.settings = home, load_settings(home)
        return made

    examples = STEPS // STEPS_OF_ONE
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples + examples // 4,
            stateful_step_count=STEPS_OF_ONE,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(done_steps, done_steps.total())
    assert done_steps.total() >= STEPS
