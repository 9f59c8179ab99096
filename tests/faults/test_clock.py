"""A clock that jumps a day ahead and a day back (libfaketime): under the doors, and in the middle of jobs."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from storage.tables import Delivery, DeliveryAttempt, Instance, JobAttempt
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.fake_pacs import fake_pacs
from tests.faults.nodes import running_doors
from tests.faults.zygote import Zygote
from tests.flow.nodes import (
    Node,
    destination,
    find_free_port,
    node_config,
    running_node,
    second_worker,
    until,
)
from tests.stub_engine import write_stub_package


def libfaketime() -> Path:
    import libfaketime as package

    return next(Path(package.__file__).parent.rglob("libfaketime.so.1"))


def faked(clock: Path) -> dict[str, str]:
    """The environment of processes whose time is what `clock` says; waiting takes as long as ever."""
    clock.write_text("+0")
    return {
        "LD_PRELOAD": str(libfaketime()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def test_the_doors_take_instances_whatever_the_clock_says(tmp_path: Path):
    clock = tmp_path / "clock"
    with Zygote(environment=faked(clock)) as zygote, running_doors(tmp_path, zygote) as doors:
        instances = []
        for jump in ("+0", "+1d", "-1d", "+0"):
            clock.write_text(jump)
            instances.append(doors.make())
            assert doors.store(instances[-1]) == 0x0000, jump
            doors.echo()
        assert [doors.store(instance) for instance in instances] == [0x0000] * 4, "all known already"
        assert zygote.run(doors.log, *doors.words("fsck")) == 0


@pytest.mark.timeout(600)
def test_a_clock_that_jumps_while_jobs_run_costs_one_attempt_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPS-03: a day ahead, a day back, and one more, each in the middle of a job."""
    port, clock = find_free_port(), tmp_path / "clock"
    config = node_config(
        find_free_port,
        write_stub_package(tmp_path / "models"),
        destinations=[destination(port, "PACS")],
        inference={"test_mode": True},
        jobs={"lease_s": 3.0, "first_retry_s": 0.2, "max_retry_s": 0.5, "max_attempts": 3},
        routes=[{"name": "slow", "model": "sim4seg-s", "query": "stub sleep 3", "target": "lesion"}],
    )
    with fake_pacs(port) as pacs:
        for name, value in faked(clock).items():
            monkeypatch.setenv(name, value)
        with running_node(tmp_path / "node", config) as node, second_worker(node):
            for number, jump in enumerate(("+1d", "+0", "-1d"), start=1):
                image = make_ultrasound(make_ellipse((60, 81), (30, 40), (9, 9 + number)))
                (sent,) = node.send(write_datasets(tmp_path / jump, [image]))
                assert sent.status == 0x0000
                until(lambda: any(job["state"] == "IN PROGRESS" for job in node.jobs()), "the job to start")
                clock.write_text(jump)
                jobs = node.wait_for_jobs(number)
                assert [(job["state"], job["outcome"]) for job in jobs] == [("COMPLETED", "RESULT")] * number
                until(lambda number=number: len(pacs.kept) == 2 * number, "SEG and SR at the PACS")
                assert oldest_job_s(node) >= 0
            assert all(job["attempts"] <= 2 for job in jobs), "no storm: a jump ends each lease once"
            assert all(len(digests) == 1 for digests in pacs.kept.values()), "sent again it is the same"
            assert own_results(node) == set(pacs.kept)
            until(lambda: None not in durations(node), "the last delivery to be entered")
            assert min(seconds for seconds in durations(node) if seconds is not None) >= 0


def oldest_job_s(node: Node) -> float:
    families = text_string_to_metric_families(node.get("/metrics")[1].decode())
    (family,) = (each for each in families if each.name == "dicom_node_oldest_queued_job_age_seconds")
    return float(family.samples[0].value)


def own_results(node: Node) -> set[str]:
    with node.database.reading() as tx:
        return set(tx.scalars(select(Instance.sop_instance_uid).where(Instance.origin_kind == "OWN RESULT")))


def durations(node: Node) -> list[float | None]:
    """Seconds of all jobs, their attempts, deliveries and their attempts; None = not over."""
    spans = (
        (JobAttempt.started_at, JobAttempt.ended_at),
        (DeliveryAttempt.started_at, DeliveryAttempt.ended_at),
        (Delivery.queued_at, Delivery.delivered_at),
    )
    with node.database.reading() as tx:
        found = [seconds for begin, end in spans for seconds in tx.scalars(select(end - begin))]
    jobs = [job["finished_at"] - job["started_at"] for job in node.jobs()]
    assert len(jobs) == 3
    assert len(found) >= 3 + 6 + 6
    return found + jobs
