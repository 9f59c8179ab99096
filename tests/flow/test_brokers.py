"""Redis and RabbitMQ that restart, hang, forget, repeat themselves or are hostile; each really started."""

import base64
import json
import os
import pickle
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from redis import Redis

from dicom_node.tasks import DELIVER_QUEUE, RUN_QUEUE, WakeUps, build_app
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.fake_pacs import fake_pacs
from tests.flow.brokers import rabbitmq, redis
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

RESTARTS = int(os.environ.get("BROKER_RESTARTS", "3"))  # `make soak` makes 20
SLEEP_S, TIMEOUT_S = 10, 4
# What a worker imports first: Redis shall give a message again that is not answered in TIMEOUT_S.
IMPATIENT = f"""
import os, sys
from pathlib import Path
if "worker" in sys.orig_argv:
    from kombu.transport.redis import Channel
    Channel.visibility_timeout = {TIMEOUT_S}
    Path(__file__).with_name(f"worker-{{os.getpid()}}").touch()
"""


def hurt(port: int) -> None:
    """Messages that no process of ours sends: code, an unknown task, foreign arguments, one that is giant."""
    client = Redis(port=port)
    headers = {"task": "run", "id": "1", "lang": "py", "root_id": "1", "parent_id": None, "group": None}
    properties = {
        "correlation_id": "1",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "run"},
    }
    properties |= {"priority": 0, "body_encoding": "base64", "delivery_tag": "1"}
    code = base64.b64encode(pickle.dumps(subprocess.Popen)).decode()
    plain = base64.b64encode(b'[["a"], {"b": 1}, {}]').decode()
    for tag, (content_type, task, body) in enumerate(
        [
            ("application/x-python-serialize", "run", code),
            ("application/json", "os.system", plain),
            ("application/json", "run", plain),
            ("application/json", "run", base64.b64encode(b"{" * 100).decode()),
            ("application/json", "run", base64.b64encode(b'["' + b"x" * 5_000_000 + b'"]').decode()),
        ]
    ):
        message = {
            "body": body,
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": {**headers, "task": task},
            "properties": {**properties, "delivery_tag": f"hostile-{tag}"},
        }
        client.lpush("run", json.dumps(message))
    client.close()


def test_hostile_and_doubled_messages_run_nothing_and_stop_nobody(tmp_path: Path, tiny_models: Path) -> None:
    """JOB-07, JOB-15."""
    port = find_free_port()
    config = node_config(find_free_port, tiny_models, broker={"url": f"redis://127.0.0.1:{port}/0"})
    with redis(tmp_path, port), running_node(tmp_path / "node", config) as node:
        worker = node.pid("worker-run")
        hurt(port)
        wake_ups = WakeUps(build_app(node.settings))
        node.send(write_datasets(tmp_path / "in", [make_ultrasound()]))
        for _ in range(10):
            wake_ups.run_jobs()
        (job,) = node.wait_for_jobs(1)
        assert (job["state"], job["attempts"]) == ("COMPLETED", 1)
        assert node.pid("worker-run") == worker


def test_a_broker_that_dies_and_forgets_everything(tmp_path: Path, tiny_models: Path) -> None:
    """JOB-03: without it, jobs run as well; once it is back, with nothing of before, all goes on."""
    port = find_free_port()
    config = node_config(find_free_port, tiny_models, broker={"url": f"redis://127.0.0.1:{port}/0"})
    images = [make_ultrasound(make_ellipse((60, 81), (30, 40), (size, 9))) for size in (9, 11, 13)]
    with ExitStack() as later:
        with redis(tmp_path, port):
            node = later.enter_context(running_node(tmp_path / "node", config))
            node.send(write_datasets(tmp_path / "first", images[:1]))
            node.wait_for_jobs(1)
        node.send(write_datasets(tmp_path / "second", images[1:2]))
        node.wait_for_jobs(2)
        with redis(tmp_path, port):
            node.send(write_datasets(tmp_path / "third", images[2:]))
            assert {job["state"] for job in node.wait_for_jobs(3)} == {"COMPLETED"}


def test_a_broker_that_hangs_delays_no_door(tmp_path: Path, tiny_models: Path) -> None:
    """JOB-04: SIGSTOP; images are taken, jobs run, and after SIGCONT all goes on."""
    port = find_free_port()
    config = node_config(find_free_port, tiny_models, broker={"url": f"redis://127.0.0.1:{port}/0"})
    images = [make_ultrasound(make_ellipse((60, 81), (30, 40), (size, 9))) for size in (10, 12)]
    with redis(tmp_path, port), running_node(tmp_path / "node", config) as node:
        client = Redis(port=port)
        pid = client.info("server")["process_id"]
        client.close()
        os.kill(pid, signal.SIGSTOP)
        try:
            (sent,) = node.send(write_datasets(tmp_path / "first", images[:1]))
            assert sent.status == 0x0000
            node.wait_for_jobs(1)
        finally:
            os.kill(pid, signal.SIGCONT)
        node.send(write_datasets(tmp_path / "second", images[1:]))
        assert {job["state"] for job in node.wait_for_jobs(2)} == {"COMPLETED"}


def consumers(url: str) -> int:
    """How many workers wait for messages at this broker."""
    if url.startswith("redis"):
        with Redis.from_url(url) as client:
            return sum(each["cmd"] == "brpop" for each in client.client_list())
    with Connection(url) as connection, connection.channel() as channel:
        try:
            declared = [channel.queue_declare(queue, passive=True) for queue in (RUN_QUEUE, DELIVER_QUEUE)]
        except connection.channel_errors:  # no worker has made its queue yet
            return 0
        return sum(each.consumer_count for each in declared)


@pytest.mark.timeout(3600 if RESTARTS > 3 else 600)
@pytest.mark.parametrize(("broker", "restarts"), [(redis, RESTARTS), (rabbitmq, max(RESTARTS // 3, 1))])
def test_workers_consume_again_after_every_restart_of_the_broker(
    broker: Any, restarts: int, tmp_path: Path, tiny_models: Path
) -> None:
    """JOB-05: what Celery is known for is a worker that stays connected and takes no more messages."""
    folder, port = tmp_path / "broker", find_free_port()
    folder.mkdir()
    shape = (60, 81), (30, 40)
    with ExitStack() as later:
        node: Node | None = None
        for start in range(restarts + 1):
            with broker(folder, port) as url:
                if node is None:
                    config = node_config(find_free_port, tiny_models, broker={"url": url})
                    node = later.enter_context(running_node(tmp_path / "node", config))
                worker = node.pid("worker-run")
                until(lambda url=url: consumers(url) == 2, "both workers to wait for messages", 120)
                image = make_ultrasound(make_ellipse(*shape, (9 + start % 10, 9 + start // 10)))
                node.send(write_datasets(tmp_path / f"sent-{start}", [image]))
                assert {job["state"] for job in node.wait_for_jobs(start + 1)} == {"COMPLETED"}
                assert node.pid("worker-run") == worker


@pytest.mark.timeout(600)
def test_a_task_longer_than_the_visibility_timeout_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JOB-06: neither the broker, nor ten more messages, nor the lease's end give it to a second worker."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(IMPATIENT)
    monkeypatch.setenv("PYTHONPATH", str(hook))
    port, pacs_port = find_free_port(), find_free_port()
    config = node_config(
        find_free_port,
        write_stub_package(tmp_path / "models"),
        broker={"url": f"redis://127.0.0.1:{port}/0"},
        destinations=[destination(pacs_port, "PACS")],
        inference={"test_mode": True},
        jobs={"lease_s": float(TIMEOUT_S)},
        delivery={"lease_s": 60.0},
        routes=[{"name": "slow", "model": "sim4seg-s", "query": f"stub sleep {SLEEP_S}", "target": "lesion"}],
    )
    with (
        redis(tmp_path, port) as url,
        fake_pacs(pacs_port) as pacs,
        running_node(tmp_path / "node", config) as node,
        second_worker(node),
        Redis.from_url(url) as client,
    ):
        until(lambda: consumers(url) == 3, "the second worker", 120)
        assert len(list(hook.glob("worker-*"))) >= 3, "the workers have the short timeout"
        node.send(write_datasets(tmp_path / "in", [make_ultrasound()]))
        until(lambda: any(job["state"] == "IN PROGRESS" for job in node.jobs()), "the job to start")
        wake_ups = WakeUps(build_app(node.settings))
        for _ in range(10):
            wake_ups.run_jobs()
        until(lambda: client.llen(RUN_QUEUE) == 0 == client.hlen("unacked"), "every message to be answered")
        assert any(job["state"] == "IN PROGRESS" for job in node.jobs()), "nothing waits for the job's end"
        (job,) = node.wait_for_jobs(1)
        assert job["finished_at"] - job["started_at"] > 2 * TIMEOUT_S
        assert (job["state"], job["outcome"], job["attempts"], job["fence"]) == ("COMPLETED", "RESULT", 1, 1)
        until(lambda: len(pacs.kept) == 2, "SEG and SR at the PACS")
        until(lambda: not client.llen(DELIVER_QUEUE), "the deliveries' messages to be answered")
        assert sorted(pacs.times.values()) == [1, 1]
