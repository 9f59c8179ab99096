"""Results that are kept here, and corrections of results: their rows, on both databases."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from storage.corrections import (
    Count,
    Judgement,
    Match,
    OwnObject,
    Verdict,
    correction_counts,
    forget_correction,
    list_corrections,
    own_objects,
    pending_corrections,
    record_judgement,
)
from storage.database import Database
from storage.deliveries import queue_delivery
from storage.files import DiskFiles
from storage.index import Origin, find_instance, index_instance
from storage.jobs import claim_job, complete_job, requeue_job
from storage.questions import (
    deliveries_of_result,
    hold_results,
    is_held,
    put_first,
    send_alike,
    send_repeated,
    send_results,
)
from storage.retention import purge_study
from storage.tables import Correction, Delivery, Job, Study
from tests.storage.builders import STUDY, Archive, make_dataset

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
OURS, CAPTURE, THEIRS = f"{STUDY}.2.1", f"{STUDY}.3.1", f"{STUDY}.4.1"


def answered(archive: Archive, **changes: object) -> str:
    """A job with a SEG and a picture of it, queued for two destinations, as the pipeline leaves them."""
    job_id = archive.job(**changes)
    with archive.db.transaction() as tx:
        job = claim_job(tx, job_id, "worker", 30.0, 3)
        assert job is not None
        for series, sop_class, modality in (("2", SEG, "SEG"), ("3", "1.2.840.10008.5.1.4.1.1.7", "OT")):
            made = make_dataset(series=series, SOPClassUID=sop_class, Modality=modality)
            record = replace(archive.record(made, is_own_result=True), origin=Origin("OWN RESULT", job_id))
            index_instance(tx, record)
            for destination in ("A", "B"):
                queue_delivery(tx, record.sop_instance_uid, destination, job_id)
        hold_results(tx, job_id)
        summary = {"sop_instance_uids": {"seg": OURS, "sr": None}}
        complete_job(tx, job_id, job.fence, "RESULT", summary, model_version="1.0")
    return job_id


def states(db: Database) -> dict[tuple[str, str], str]:
    with db.reading() as tx:
        rows = tx.scalars(select(Delivery)).all()
    return {(row.sop_instance_uid, row.destination): row.state for row in rows}


def test_only_what_is_to_be_kept_is_held_back(archive: Archive) -> None:
    answered(archive)
    assert set(states(archive.db).values()) == {"QUEUED"}


def test_held_results_go_out_once_somebody_asks(archive: Archive) -> None:
    job_id = answered(archive, is_kept_here=True)
    assert set(states(archive.db).values()) == {"WITHDRAWN"}
    with archive.db.transaction() as tx:
        assert all(map(is_held, deliveries_of_result(tx, job_id)))
        assert [send_results(tx, job_id), send_results(tx, job_id)] == [4, 0]
    assert set(states(archive.db).values()) == {"QUEUED"}


def test_what_is_no_longer_current_is_not_sent(archive: Archive) -> None:
    job_id = answered(archive, is_kept_here=True)
    with archive.db.transaction() as tx:
        ours = find_instance(tx, OURS)
        assert ours is not None
        ours.retired_as = "SUPERSEDED"
        assert send_results(tx, job_id) == 2


@pytest.mark.parametrize(("is_kept_here", "sent"), [(False, 4), (True, 0)])
def test_a_job_that_repeats_a_kept_result_decides(archive: Archive, is_kept_here: bool, sent: int) -> None:
    answered(archive, is_kept_here=True)
    with archive.db.transaction() as tx:
        again = archive.job_in(tx, "Another question.", is_kept_here=is_kept_here)
        job = claim_job(tx, again, "worker", 30.0, 3)
        assert job is not None
        complete_job(tx, again, job.fence, "RESULT", {"sop_instance_uids": {"seg": OURS}})
        send_repeated(tx, again)
    assert list(states(archive.db).values()).count("QUEUED") == sent


def test_a_rule_that_asks_the_same_has_it_sent(archive: Archive) -> None:
    answered(archive, is_kept_here=True)
    with archive.db.transaction() as tx:
        send_alike(tx, f"{STUDY}.1", "sim4seg-s", "Something else?")
        assert tx.scalars(select(Delivery.state).distinct()).all() == ["WITHDRAWN"]
        send_alike(tx, f"{STUDY}.1", "sim4seg-s", "Outline the lesion.")
    assert set(states(archive.db).values()) == {"QUEUED"}


def test_asked_again_it_is_still_kept_and_first(archive: Archive) -> None:
    job_id = archive.job(is_kept_here=True)
    with archive.db.transaction() as tx:
        tx.execute(update(Job).values(state="CANCELED", outcome="FAILED"))
    with archive.db.transaction() as tx:
        again = requeue_job(tx, job_id, "somebody")
        put_first(tx, again, 1000)
        put_first(tx, again, 5)
        found = tx.get_one(Job, again, populate_existing=True)
        assert (found.is_kept_here, found.priority) == (True, 1000)


def came(archive: Archive, **changes: object) -> int:
    """A SEG of somebody in the study, and the number under which it waits."""
    archive.receive(make_dataset(**{"series": "4", "SOPClassUID": SEG, "Modality": "SEG", **changes}))
    with archive.db.reading() as tx:
        ((number, _),) = pending_corrections(tx)
    return number


def judgement(ours: OwnObject, verdict: Verdict) -> Judgement:
    return Judgement(verdict, ours, (ours.sop_instance_uid,), Match.CONTENT, "Reader^Rosa", {"lesion": 0.5})


@pytest.mark.parametrize(
    ("verdict", "ours", "picture", "theirs"),
    [
        (Verdict.ACCEPTED, "QUEUED", "QUEUED", None),
        (Verdict.MODIFIED, "WITHDRAWN", "WITHDRAWN", "QUEUED"),
        (Verdict.REJECTED, "WITHDRAWN", "WITHDRAWN", None),
    ],
)
def test_deliveries_follow_the_verdict(
    archive: Archive, verdict: Verdict, ours: str, picture: str, theirs: str | None
) -> None:
    answered(archive)
    number = came(archive)
    with archive.db.transaction() as tx:
        tx.execute(update(Delivery).where(Delivery.destination == "B").values(state="DELIVERED"))
        ((_, row),) = pending_corrections(tx)
        (own,) = own_objects(tx, row)
        assert record_judgement(tx, number, judgement(own, verdict))
        assert not record_judgement(tx, number, judgement(own, verdict))  # another sweep was quicker
    found = states(archive.db)
    assert [found[OURS, "A"], found[CAPTURE, "A"]] == [ours, picture]
    assert [found[OURS, "B"], found[CAPTURE, "B"]] == ["DELIVERED", "DELIVERED"]
    assert [found.get((THEIRS, name)) for name in ("A", "B")] == [theirs, theirs]
    with archive.db.reading() as tx:
        assert correction_counts(tx) == [Count("sim4seg-s", "1.0", verdict, 1)]
        (line,) = list_corrections(tx, limit=5, offset=0)
    assert (line.sender, line.made_by, line.matched_by) == ("SENDER", "Reader^Rosa", "CONTENT")
    assert json.loads(line.dice or "") == {"lesion": 0.5}


def test_only_segs_and_reports_on_studies_with_results_wait(archive: Archive) -> None:
    archive.receive(make_dataset(series="4", SOPClassUID=SEG, Modality="SEG"))
    answered(archive)
    archive.receive(make_dataset("2"))
    with archive.db.transaction() as tx:
        assert not pending_corrections(tx)
    number = came(archive, series="5")
    with archive.db.transaction() as tx:
        forget_correction(tx, number)
        assert not pending_corrections(tx)


def test_a_purge_takes_the_person_with_the_study(archive: Archive) -> None:
    answered(archive)
    number = came(archive)
    with archive.db.transaction() as tx:
        ((_, row),) = pending_corrections(tx)
        record_judgement(tx, number, judgement(own_objects(tx, row)[0], Verdict.ACCEPTED))
        tx.execute(update(Delivery).values(state="DELIVERED"))
        tx.execute(update(Study).values(completed_at=1.0, outcome="1 job"))
    assert purge_study(archive.db, DiskFiles(archive.files_root), STUDY) is not None
    with archive.db.reading() as tx:
        assert tx.scalars(select(Correction)).all() == []
