"""Kill processes in the middle of the work; nothing is lost and nothing is there twice."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from dicom_node.demo_pacs import DemoPacs
from storage.tables import Instance, JobAttempt
from tests.builders import make_ellipse, make_stack, make_ultrasound, write_datasets
from tests.flow.nodes import Node, destination, node_config, running_node, until


def own_results(node: Node) -> list[str]:
    with node.database.reading() as tx:
        return list(tx.scalars(select(Instance.sop_class_uid).where(Instance.origin_kind == "OWN RESULT")))


def kill(node: Node, name: str) -> None:
    os.kill(node.pid(name), signal.SIGKILL)


def is_running(node: Node) -> bool:
    return any(job["state"] == "IN PROGRESS" for job in node.jobs())


def test_a_worker_killed_in_the_middle_of_a_job(
    tmp_path: Path, free_port: Callable[[], int], tiny_models: Path, pacs: DemoPacs, pacs_port: int
) -> None:
    config = node_config(free_port, tiny_models, destinations=[destination(pacs_port)])
    with running_node(tmp_path / "node", config) as node:
        first = node.pid("worker-run")
        slices = make_stack([make_ellipse((64, 64), (30, 32), (10, 9))] * 12)
        node.send(write_datasets(tmp_path / "in", slices))
        until(lambda: is_running(node), "the job to start", pause_s=0.005)
        kill(node, "worker-run")
        assert is_running(node), "the job ended before the worker was killed"
        (job,) = node.wait_for_jobs(1)
        assert node.pid("worker-run") not in {0, first}
        assert (job["state"], job["outcome"], job["attempts"], job["fence"]) == ("COMPLETED", "RESULT", 2, 2)
        until(lambda: len(pacs.arrivals()) == 2, "SEG and SR at the PACS")
        time.sleep(1.5)  # long enough for a second result to show
        assert sorted(arrival.kind for arrival in pacs.arrivals()) == ["SEG", "SR"]
        assert len(own_results(node)) == 2
        with node.database.reading() as tx:
            attempts = tx.scalars(select(JobAttempt).order_by(JobAttempt.attempt)).all()
        assert [attempt.error is None for attempt in attempts] == [False, True]


def test_the_whole_node_killed_and_started_again(
    tmp_path: Path, free_port: Callable[[], int], tiny_models: Path, pacs: DemoPacs, pacs_port: int
) -> None:
    config = node_config(free_port, tiny_models, destinations=[destination(pacs_port)])
    sent = [make_ultrasound(make_ellipse((60, 81), (30, 40), (12, 18 - number))) for number in range(3)]
    with running_node(tmp_path / "node", config) as node:
        statuses = node.send(write_datasets(tmp_path / "in", sent))
        assert [status.status for status in statuses] == [0x0000] * 3
        children = [node.pid(name) for name in ("scp", "web", "sweep", "worker-run", "worker-deliver")]
        until(lambda: is_running(node), "a job to start", pause_s=0.005)
        for pid in (node.process.pid, *children):
            os.kill(pid, signal.SIGKILL)
    with running_node(tmp_path / "node", config) as node:
        jobs = node.wait_for_jobs(3)
        assert {job["state"] for job in jobs} == {"COMPLETED"}
        until(lambda: len(pacs.arrivals()) == 6, "three SEG and three SR at the PACS")
        assert len(own_results(node)) == 6
        assert '"is_sound": true' in node.command("fsck", "--json")
        # A listener and a sweep that die are started again, and the next study goes through.
        before = {name: node.pid(name) for name in ("scp", "sweep", "worker-deliver")}
        for name in before:
            kill(node, name)
        until(lambda: all(node.pid(name) not in {0, pid} for name, pid in before.items()), "new processes")
        until(node.listens, "the listener to be back")
        late = write_datasets(tmp_path / "late", [make_ultrasound(make_ellipse((60, 81), (30, 40), (8, 9)))])
        assert node.send(late)[0].status == 0x0000
        until(lambda: len(pacs.arrivals()) == 8, "the next result at the PACS")


def test_the_processes_end_when_the_supervisor_is_killed(
    tmp_path: Path, free_port: Callable[[], int], tiny_models: Path
) -> None:
    with running_node(tmp_path / "node", node_config(free_port, tiny_models)) as node:
        children = [node.pid(name) for name in ("scp", "web", "sweep", "worker-run", "worker-deliver")]
        node.process.kill()
        until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the ports to be free again"
        )
