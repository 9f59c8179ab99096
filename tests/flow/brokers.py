"""Redis and RabbitMQ for the flow tests, each really started; both can be ended and started again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.flow.nodes import find_free_port, is_listening, until

RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # not the wrapper, which changes to another user


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
    """Redis without a memory beyond its process."""
    port = port or find_free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    assert shutil.which("redis-server"), "redis-server is not installed: scripts/system_packages.sh"
    log = folder / "redis.log"
    with process(["redis-server", *options, "--save", "", "--appendonly", "no"], log):
        until(lambda: b"Ready to accept" in log.read_bytes(), "Redis")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def rabbitmq(folder: Path, port: int | None = None) -> Iterator[str]:
    """RabbitMQ on loopback only, with a port mapper of its own, so that nothing stays behind."""
    assert Path(RABBITMQ).exists(), "rabbitmq-server is not installed: scripts/system_packages.sh"
    port, mapper = port or find_free_port(), find_free_port()
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
