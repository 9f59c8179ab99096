"""A job runs through Redis and through RabbitMQ, each really started."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dicom_node.demo_pacs import open_pacs
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.flow.nodes import destination, find_free_port, is_listening, node_config, running_node, until

RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # not the wrapper, which changes to another user
LOOPBACK = "inet_dist_use_interface {127,0,0,1}"


@contextmanager
def process(arguments: list[str], log: Path, **environment: str) -> Iterator[None]:
    """A server of a test; ended with the block."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            arguments, stdout=output, stderr=output, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            yield
        finally:
            started.terminate()
            try:
                started.wait(timeout=30)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


@contextmanager
def redis(folder: Path, port: int | None = None) -> Iterator[str]:
    port = port or find_free_port()
    options = [
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    assert shutil.which("redis-server"), "redis-server is not installed: scripts/system_packages.sh"
    log = folder / "redis.log"
    with process(["redis-server", *options], log):
        until(lambda: b"Ready to accept" in log.read_bytes(), "Redis")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """RabbitMQ on loopback only, with a port mapper of its own, so that nothing stays behind."""
    assert Path(RABBITMQ).exists(), "rabbitmq-server is not installed: scripts/system_packages.sh"
    port, mapper = find_free_port(), find_free_port()
    config = folder / "rabbitmq.conf"
    config.write_text(f"listeners.tcp.local = 127.0.0.1:{port}\nlog.console = true\n", encoding="ascii")
    plugins = folder / "enabled_plugins"
    plugins.write_text("[].\n", encoding="ascii")
    environment = {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": f"sim4seg{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(find_free_port()),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none"
        ),
    }
    log = folder / "rabbitmq.log"
    with process(["epmd", "-address", "127.0.0.1", "-port", str(mapper)], folder / "epmd.log"):
        until(lambda: is_listening(mapper), "RabbitMQ's port mapper")
        with process([RABBITMQ], log, **environment):
            until(lambda: b"completed with" in log.read_bytes(), "RabbitMQ", 150)
            yield f"amqp://guest:guest@127.0.0.1:{port}//"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", [redis, rabbitmq])
def test_a_job_runs_through(broker: object, tmp_path: Path, tiny_models: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    port = find_free_port()
    with broker(folder) as url, open_pacs(tmp_path / "pacs", port) as pacs:
        config = node_config(
            find_free_port, tiny_models, broker={"url": url}, destinations=[destination(port)]
        )
        with running_node(tmp_path / "node", config) as node:
            node.send(write_datasets(tmp_path / "in", [make_ultrasound()]))
            (job,) = node.wait_for_jobs(1)
            assert job["state"] == "COMPLETED"
            until(lambda: len(pacs.arrivals()) == 2, "SEG and SR at the PACS")
            assert not (node.home / "broker").exists()
            assert "guest:guest" not in node.logs()


def test_a_broker_that_dies_and_forgets_everything(tmp_path: Path, tiny_models: Path) -> None:
    port = find_free_port()
    config = node_config(find_free_port, tiny_models, broker={"url": f"redis://127.0.0.1:{port}/0"})
    first, second = make_ultrasound(), make_ultrasound(make_ellipse((60, 81), (30, 40), (9, 9)))
    with ExitStack() as later:
        with redis(tmp_path, port):
            node = later.enter_context(running_node(tmp_path / "node", config))
            node.send(write_datasets(tmp_path / "first", [first]))
            node.wait_for_jobs(1)
        node.send(write_datasets(tmp_path / "second", [second]))
        until(lambda: len(node.jobs()) == 2, "the job of the second study")
        assert [job["state"] for job in node.jobs()] == ["SCHEDULED", "COMPLETED"]
        with redis(tmp_path, port):
            assert {job["state"] for job in node.wait_for_jobs(2)} == {"COMPLETED"}
