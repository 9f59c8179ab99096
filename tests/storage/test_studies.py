"""The life of a study: quiet, asked for, complete, its outcome; and what a race does to it."""

import json
import threading
import time
from collections.abc import Sequence

import pytest

from storage.database import Database
from storage.index import find_study
from storage.studies import QuietStudy, mark_complete, quiet_studies, record_outcome, request_completion
from storage.tables import Study
from tests.storage.builders import STUDY, Archive, make_dataset


def quiet(db: Database, quiet_period_s: float) -> Sequence[QuietStudy]:
    with db.transaction() as tx:
        return quiet_studies(tx, quiet_period_s)


def study_row(db: Database) -> Study:
    with db.reading() as tx:
        found = find_study(tx, STUDY)
    assert found is not None
    return found


def test_a_study_is_quiet_only_after_the_quiet_period(archive: Archive):
    archive.receive(make_dataset("1"))
    archive.receive(make_dataset("2"))
    assert quiet(archive.db, 3600) == []
    (found,) = quiet(archive.db, 0)
    assert (found.study_instance_uid, found.version, found.instance_count) == (STUDY, 1, 2)
    assert found.requested_by is None
    assert found.last_received_at == study_row(archive.db).last_received_at
    assert 0 <= found.quiet_for_s < 60


def test_every_new_instance_starts_the_quiet_period_again(archive: Archive):
    archive.receive(make_dataset("1"))
    before = study_row(archive.db).last_received_at
    time.sleep(0.01)
    archive.receive(make_dataset("2"))
    assert study_row(archive.db).last_received_at > before


def test_a_requested_study_need_not_be_quiet(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        request_completion(tx, STUDY, "STOW-RS request")
    (found,) = quiet(archive.db, 3600)
    assert found.requested_by == "STOW-RS request"


def test_an_instance_after_the_request_makes_the_quiet_period_decide(archive: Archive):
    archive.receive(make_dataset("1"))
    with archive.db.transaction() as tx:
        request_completion(tx, STUDY, "STOW-RS request")
    archive.receive(make_dataset("2"))
    assert quiet(archive.db, 3600) == []


def test_a_request_for_a_complete_study_changes_nothing(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        mark_complete(tx, STUDY, 1, {})
        request_completion(tx, STUDY, "an operator")
    assert study_row(archive.db).complete_requested_by is None
    assert quiet(archive.db, 0) == []


def test_own_results_are_not_counted_as_received(archive: Archive):
    archive.receive(make_dataset())
    archive.receive(make_dataset(series="2", Modality="SEG"), is_own_result=True)
    (found,) = quiet(archive.db, 0)
    assert found.instance_count == 1


def test_studies_come_longest_quiet_first_and_in_bounded_number(archive: Archive):
    for number in range(3):
        archive.receive(make_dataset(study=f"1.2.{number}"))
    with archive.db.transaction() as tx:
        found = quiet_studies(tx, 0, limit=2)
    assert [study.study_instance_uid for study in found] == ["1.2.0", "1.2.1"]


def test_a_version_is_completed_once_with_its_evidence(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        assert mark_complete(tx, STUDY, 2, {}) is False
        assert mark_complete(tx, STUDY, 1, {"kind": "quiet period"}) is True
        assert mark_complete(tx, STUDY, 1, {"kind": "again"}) is False
    study = study_row(archive.db)
    assert json.loads(study.evidence or "") == {"kind": "quiet period"}
    assert study.completed_at == pytest.approx(time.time(), abs=5)
    assert quiet(archive.db, 0) == []


def test_an_unknown_study_is_not_completed(db: Database):
    with db.transaction() as tx:
        assert mark_complete(tx, "1.2.3", 1, {}) is False


def test_evidence_that_is_no_longer_true_completes_nothing(archive: Archive):
    archive.receive(make_dataset("1"))
    (found,) = quiet(archive.db, 0)
    archive.receive(make_dataset("2"))
    seen = found.last_received_at
    with archive.db.transaction() as tx:
        assert mark_complete(tx, STUDY, found.version, {}, last_received_at=seen) is False
    (found,) = quiet(archive.db, 0)
    seen = found.last_received_at
    with archive.db.transaction() as tx:
        assert mark_complete(tx, STUDY, found.version, {}, last_received_at=seen) is True


def test_the_outcome_is_a_sentence_of_bounded_length(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        record_outcome(tx, STUDY, "no rule matched " + "x" * 2000)
    assert len(study_row(archive.db).outcome or "") == 1000


def test_an_instance_that_arrives_during_completion_reopens_the_study(archive: Archive):
    """The sweep looks and completes in one transaction; the instance waits for it, then reopens."""
    archive.receive(make_dataset("1"))
    has_looked = threading.Event()

    def arrive() -> None:
        has_looked.wait()
        archive.receive(make_dataset("2"))

    sender = threading.Thread(target=arrive)
    sender.start()
    with archive.db.transaction() as tx:
        (found,) = quiet_studies(tx, 0)
        has_looked.set()
        sender.join(timeout=0.3)
        assert sender.is_alive()
        assert mark_complete(tx, STUDY, found.version, {"instance_count": found.instance_count})
    sender.join()
    study = study_row(archive.db)
    assert (study.version, study.completed_at) == (2, None)


def test_every_instance_is_in_some_completed_version(archive: Archive):
    """A sender and two sweeps race; what the last completed version counted is everything."""
    counted: list[int] = []
    is_sent = threading.Event()

    def sweep() -> None:
        is_last_round = False
        while not is_last_round:
            is_last_round = is_sent.is_set()
            with archive.db.transaction() as tx:
                for found in quiet_studies(tx, 0):
                    assert mark_complete(tx, STUDY, found.version, {})
                    counted.append(found.instance_count)
            time.sleep(0.005)

    sweeps = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in sweeps:
        thread.start()
    for number in range(15):
        archive.receive(make_dataset(str(number)))
    is_sent.set()
    for thread in sweeps:
        thread.join()
    assert max(counted) == 15
    assert counted == sorted(set(counted))
    assert study_row(archive.db).version == len(counted)
