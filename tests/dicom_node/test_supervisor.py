import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.settings import load_settings
from dicom_node.stopped import STOPPED, state_of
from dicom_node.supervisor import CannotServe, Supervisor, node_commands, only_node_of, require_free_ports

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
DEAF = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
)


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def pid_of(home: Path, name: str) -> int:
    path = home / "run" / f"{name}.pid"
    text = path.read_text() if path.exists() else ""
    return int(text) if text else 0


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def supervised(home: Path, **commands: tuple[str, ...]) -> Iterator[Supervisor]:
    for folder in ("run", "logs"):
        (home / folder).mkdir(parents=True)
    supervisor = Supervisor(home, commands)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(timeout=40)
    assert not thread.is_alive()


def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path, sleeper=SLEEPER):
        until(lambda: pid_of(tmp_path, "sleeper"))
        first = pid_of(tmp_path, "sleeper")
        os.kill(first, signal.SIGKILL)
        until(lambda: pid_of(tmp_path, "sleeper") not in {0, first})
        second = pid_of(tmp_path, "sleeper")
        assert is_alive(second)
    assert not is_alive(second)
    assert not (tmp_path / "run" / "sleeper.pid").exists()


def test_a_process_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.supervisor.LOOK_S", 0.05)
    monkeypatch.setattr("dicom_node.stopped.WAKE_AFTER_S", 0.3)
    with supervised(tmp_path, sleeper=SLEEPER):
        until(lambda: pid_of(tmp_path, "sleeper"))
        pid = pid_of(tmp_path, "sleeper")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state_of(pid) == STOPPED)
        until(lambda: state_of(pid) == "S")
        assert pid_of(tmp_path, "sleeper") == pid


def test_a_process_that_always_dies_is_started_less_and_less_often(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "broken.out"
    broken = (sys.executable, "-c", "import sys; print('started'); sys.exit(3)")
    with supervised(tmp_path, broken=broken):
        until(lambda: log.exists() and log.read_text().count("started") >= 3)
        time.sleep(1.0)
        assert log.read_text().count("started") <= 5


def test_what_cannot_be_started_now_is_started_later_and_ends_nobody_else(tmp_path: Path) -> None:
    """No room for its log; none for its pid file, which people read and the node does not need."""
    with supervised(tmp_path, sleeper=SLEEPER, other=SLEEPER):
        until(lambda: pid_of(tmp_path, "sleeper") and pid_of(tmp_path, "other"))
        other, first = pid_of(tmp_path, "other"), pid_of(tmp_path, "sleeper")
        for folder in ("logs", "run"):
            (tmp_path / folder).rename(tmp_path / f"{folder}.gone")
        (tmp_path / "logs").touch()
        os.kill(first, signal.SIGKILL)
        time.sleep(1.0)
        assert is_alive(other)
        (tmp_path / "logs").unlink()  # the folder is made anew
        time.sleep(1.0)
        (tmp_path / "run.gone").rename(tmp_path / "run")
        started = [pid for pid in children_of(os.getpid()) if pid not in {first, other}]
        assert len(started) == 1
        assert is_alive(other)


def children_of(pid: int) -> list[int]:
    """Its sleepers that run."""
    command = ["pgrep", "-P", str(pid), "-f", "time.sleep"]
    return [int(line) for line in subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout.split()]


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.supervisor.GRACE_S", 0.3)
    log = tmp_path / "logs" / "deaf.out"
    with supervised(tmp_path, deaf=DEAF):
        until(lambda: log.exists() and "deaf" in log.read_text())
        pid = pid_of(tmp_path, "deaf")
    assert not is_alive(pid)


DEAF_CHILD = """
import signal, sys, time
from dicom_node import supervisor
supervisor.LOOK_S = supervisor.ORPHAN_S = 0.05
signal.signal(signal.SIGTERM, signal.SIG_IGN)
supervisor.end_with_parent(int(sys.argv[1]))
print("deaf", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
words = [sys.executable, "-c", sys.argv[1], str(os.getpid())]
child = subprocess.Popen(words, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_one_that_ignores_the_death_of_its_supervisor_kills_itself() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, DEAF_CHILD], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    until(lambda: not is_alive(child))


def test_every_process_of_the_node_has_its_command(tmp_path: Path) -> None:
    commands = node_commands(load_settings(tmp_path), tmp_path / "node.toml")
    assert list(commands) == ["scp", "web", "sweep", "worker-run", "worker-deliver"]
    assert commands["worker-run"][3:5] == ("worker", "run")
    assert all(str(tmp_path / "node.toml") in command for command in commands.values())


def test_a_second_node_on_the_same_home_is_refused(tmp_path: Path) -> None:
    with only_node_of(tmp_path), pytest.raises(CannotServe, match="another node"), only_node_of(tmp_path):
        pass
    with only_node_of(tmp_path):
        assert (tmp_path / "run" / "serve.pid").read_text() == f"{os.getpid()}\n"


def test_a_taken_port_is_named(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOM_NODE_DIMSE__PORT", str(free_port()))
    monkeypatch.setenv("DICOM_NODE_HTTP__PORT", str(port := free_port()))
    settings = load_settings(tmp_path)
    require_free_ports(settings)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(CannotServe, match=rf"http.port: .*:{port} is taken"),
    ):
        require_free_ports(settings)
