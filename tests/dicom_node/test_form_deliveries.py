"""From a job to the outbox: every destination is sent what its forms say, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.forms.form import Form, Recipient
from dicom_node.frames import FrameLimits
from dicom_node.pipeline import Services, run_job
from storage.database import Database
from storage.files import DiskFiles
from storage.index import Origin, instances_of_study
from storage.jobs import ClaimedJob, JobRequest, claim_job, create_job
from storage.tables import Instance
from storage.worklist import newest_deliveries, newest_jobs
from tests import builders, formed
from tests.doors import make_receiver

NAMES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG_LABELMAP",
    "1.2.840.10008.5.1.4.1.1.88.34": "SR",
    "1.2.840.10008.5.1.4.1.1.7": "SC",
    "1.2.840.10008.5.1.4.1.1.7.4": "SC",
    "1.2.840.10008.5.1.4.1.1.11.1": "GSPS",
    "1.2.840.10008.5.1.4.1.1.88.59": "KOS",
    "1.2.840.10008.5.1.4.1.1.104.1": "PDF",
}
RECIPIENTS = (
    Recipient("pacs"),
    Recipient("archive", frozenset({Form.SEG_LABELMAP, Form.SR, Form.KOS})),
    Recipient("ward", frozenset({Form.SC, Form.PDF})),
    Recipient("viewer", frozenset({Form.GSPS, Form.SR})),
)


@pytest.fixture
def services(database: Database, files_root: Path) -> Services:
    receiver, stub = make_receiver(database, files_root), builders.MaskPredictor()
    files = DiskFiles(files_root)
    return Services(database, receiver, files, lambda _name: stub, FrameLimits(), RECIPIENTS)


def ran(services: Services, datasets: Sequence[Dataset], version: int = 1) -> ClaimedJob:
    for dataset in datasets:
        services.receiver.receive_part10([builders.part10(dataset)], Origin("IMPORT", "test"))
    uids = str(datasets[0].StudyInstanceUID), str(datasets[0].SeriesInstanceUID)
    with services.database.transaction() as tx:
        job_id = create_job(tx, JobRequest(uids[0], version, uids[1], "rule", "stub", "Outline it."))
        job = claim_job(tx, job_id or "", "worker", 30.0, 3)
    assert job is not None
    run_job(job, services)
    return job


def rows(services: Services, job: ClaimedJob) -> dict[str, Instance]:
    """Our objects of the study by UID, superseded ones too."""
    with services.database.reading() as tx:
        uids = {each.sop_instance_uid for each in newest_deliveries(tx)}
        found = {uid: tx.get(Instance, uid) for uid in uids}
        stored = {row.sop_instance_uid: row for row in instances_of_study(tx, job.study_instance_uid)}
    ours = {uid: row for uid, row in stored.items() if row.origin_kind == "OWN RESULT"}
    return ours | {uid: row for uid, row in found.items() if row is not None}


def queued(services: Services, job: ClaimedJob) -> dict[str, list[str]]:
    """What each destination is to get."""
    ours = rows(services, job)
    with services.database.reading() as tx:
        deliveries = newest_deliveries(tx, job_id=job.job_id)
    got: dict[str, list[str]] = {recipient.name: [] for recipient in services.destinations}
    for each in deliveries:
        got[each.destination].append(NAMES[ours[each.sop_instance_uid].sop_class_uid])
    return {name: sorted(forms) for name, forms in got.items()}


def test_each_destination_is_sent_what_it_asks_for(services: Services) -> None:
    job = ran(services, [builders.make_ultrasound(formed.ellipse())])
    assert queued(services, job) == {
        "pacs": ["SEG", "SR"],
        "archive": ["KOS", "SEG_LABELMAP", "SR"],
        "ward": ["PDF", "SC"],
        "viewer": ["GSPS", "SR"],
    }
    with services.database.reading() as tx:
        reports = [
            (each.destination, each.sop_instance_uid)
            for each in newest_deliveries(tx, job_id=job.job_id)
            if NAMES[rows(services, job)[each.sop_instance_uid].sop_class_uid] == "SR"
        ]
    assert len({uid for _, uid in reports}) == len(reports) == 3  # each refers to another SEG, or to none


def test_what_nobody_asks_for_is_not_made(services: Services) -> None:
    job = ran(replace(services, destinations=()), [builders.make_ultrasound(formed.ellipse())])
    assert sorted(NAMES[row.sop_class_uid] for row in rows(services, job).values()) == ["SEG", "SR"]


def test_without_an_outline_there_is_one_report_for_all_who_take_one(services: Services) -> None:
    job = ran(services, [builders.make_ultrasound(np.zeros(formed.SIZE, bool))])
    assert queued(services, job) == {
        "pacs": ["SR"],
        "archive": ["SR"],
        "ward": ["PDF", "SC"],
        "viewer": ["SR"],
    }
    assert len(rows(services, job)) == 3


def test_that_there_is_no_result_is_told_to_all_who_take_a_report(services: Services) -> None:
    dataset = builders.make_ultrasound()
    del dataset.PixelData
    job = ran(services, [dataset])
    assert queued(services, job) == {"pacs": ["SR"], "archive": ["SR"], "ward": [], "viewer": ["SR"]}


def test_a_new_version_supersedes_every_form_of_the_old_one(services: Services) -> None:
    stack = builders.make_stack([formed.ellipse(6), formed.ellipse(9), formed.ellipse(7)])
    first = ran(services, stack[:2])
    before = set(rows(services, first))
    second = ran(services, stack[2:], version=2)
    after = rows(services, second)
    assert before < set(after)
    assert {after[uid].retired_as for uid in before} == {"SUPERSEDED"}
    assert {after[uid].retired_as for uid in set(after) - before} == {None}
    assert len(after) == 2 * len(before)


def test_the_same_again_makes_nothing_new(services: Services) -> None:
    source = builders.make_ultrasound(formed.ellipse())
    first = ran(services, [source])
    before = set(rows(services, first))
    again = ran(services, [source], version=2)
    assert set(rows(services, again)) == before
    assert queued(services, again) == {recipient.name: [] for recipient in RECIPIENTS}
    with services.database.reading() as tx:
        assert {job.state for job in newest_jobs(tx)} == {"COMPLETED"}
