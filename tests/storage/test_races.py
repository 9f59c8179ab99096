"""Several threads and processes at once: one wins, nothing is lost, nobody is told to go away."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import func, select

from storage.database import Transaction
from storage.deliveries import claim_delivery, queue_delivery
from storage.index import IndexResult, index_instance
from storage.jobs import JobRequest, create_job
from storage.tables import Conflict, Instance, JobAttempt, Study
from tests.storage.builders import STUDY, Archive, make_dataset

PROCESSES = 2
THREADS = 3


def run_together(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in `count` threads that start at the same moment; an error in one is an error here."""
    barrier = threading.Barrier(count)
    errors: list[Exception] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_of_many_threads_and_processes_exactly_one_claims_each_job(
    archive: Archive, storage_url: str, repository: Path
):
    job_ids = [archive.job(f"query {number}") for number in range(8)]
    won = claims_of_processes(storage_url, job_ids, repository)
    assert sorted(won) == sorted(f"{job_id}:1:1" for job_id in job_ids)
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(JobAttempt)) == len(job_ids)


def claims_of_processes(url: str, job_ids: Sequence[str], repository: Path) -> list[str]:
    command = [sys.executable, "-m", "tests.storage.claimers", url, str(THREADS)]
    claimers = [
        subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for claimer in claimers:
        assert claimer.stdout is not None
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write(" ".join(job_ids) + "\n")
        claimer.stdin.flush()
    won: list[str] = []
    for claimer in claimers:
        output, _ = claimer.communicate(timeout=60)
        assert claimer.returncode == 0
        won += output.split()
    return won


def test_one_delivery_is_claimed_by_one_thread(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        delivery_id = queue_delivery(tx, make_dataset().SOPInstanceUID, "PACS", None)
    assert delivery_id is not None
    claims: list[object] = []

    def claim(number: int) -> None:
        with archive.db.transaction() as tx:
            claims.append(claim_delivery(tx, delivery_id, f"worker {number}", 60))

    run_together(6, claim)
    assert len([claimed for claimed in claims if claimed is not None]) == 1


def test_the_same_instance_from_eight_associations_is_one_row(archive: Archive):
    results: list[IndexResult] = []

    def receive(_number: int) -> None:
        results.extend(archive.receive(make_dataset()) for _ in range(5))

    run_together(8, receive)
    assert Counter(results) == {IndexResult.NEW: 1, IndexResult.DUPLICATE: 39}
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Instance)) == 1
        assert tx.scalar(select(func.count()).select_from(Conflict)) == 0
    assert len(list(archive.files_root.rglob("*.dcm"))) == 1


def test_different_content_for_one_uid_from_eight_associations_keeps_one_and_quarantines_seven(
    archive: Archive,
):
    results: list[IndexResult] = []
    run_together(8, lambda number: results.append(archive.receive(make_dataset(), b"content %d" % number)))
    assert Counter(results) == {IndexResult.NEW: 1, IndexResult.CONFLICT: 7}
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Conflict)) == 7


def test_one_uid_in_several_studies_at_once_leaves_one_study(archive: Archive):
    def receive(number: int) -> None:
        ds = make_dataset(study=f"1.2.{number}")
        ds.SOPInstanceUID = "1.2.99"
        archive.receive(ds)

    run_together(4, receive)
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Study)) == 1
        assert tx.scalar(select(func.count()).select_from(Instance)) == 1


def test_one_series_in_several_studies_at_once_stays_in_one(archive: Archive):
    def receive(number: int) -> None:
        ds = make_dataset(study=f"1.2.{number}")
        ds.SeriesInstanceUID = "1.2.99"
        archive.receive(ds)

    run_together(4, receive)
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Study)) == 1
        assert tx.scalar(select(func.count()).select_from(Conflict)) == 3


def test_a_study_that_arrives_on_many_associations_is_whole(archive: Archive):
    def receive(number: int) -> None:
        for sop in range(4):
            archive.receive(make_dataset(f"1{number}{sop}", series=str(number % 2), PatientID="P1"))

    run_together(6, receive)
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Instance)) == 24
        assert tx.scalar(select(Study.version)) == 1


def test_the_same_request_from_many_threads_is_one_job(archive: Archive):
    archive.receive(make_dataset())
    request = JobRequest(STUDY, 1, f"{STUDY}.1", "rule", "sim4seg-s", "query")
    created: list[str | None] = []

    def create(_number: int) -> None:
        with archive.db.transaction() as tx:
            created.append(create_job(tx, request))

    run_together(6, create)
    assert len([job_id for job_id in created if job_id is not None]) == 1


def test_a_whole_study_in_one_transaction_does_not_deadlock_with_another(archive: Archive):
    records = [archive.record(make_dataset(str(sop), PatientID="P1")) for sop in range(6)]

    def enter(tx: Transaction, number: int) -> None:
        for record in records if number % 2 else reversed(records):
            index_instance(tx, record)

    def receive(number: int) -> None:
        with archive.db.transaction() as tx:
            enter(tx, number)

    run_together(4, receive)
    with archive.db.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Instance)) == 6
