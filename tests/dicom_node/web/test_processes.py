"""`dicom-node web` as processes: several answer at one port; a killed one comes back; all end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
GENEROUS_S = 120


def until(condition, what):
    deadline = time.monotonic() + GENEROUS_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def children_of(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(word) for word in path.read_text().split()} if path.exists() else set()


def is_gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def web(tmp_path, database_url, free_port):
    port = free_port()
    config = tmp_path / "node.toml"
    config.write_text(
        f'[http]\nport = {port}\nprocesses = 2\n[storage]\ndatabase_url = "{database_url}"\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "dicom_node", "web", "--home", str(tmp_path), "--config", str(config)]
    process = subprocess.Popen([*command, "--parent", str(os.getpid())], cwd=REPOSITORY)
    address = f"http://127.0.0.1:{port}/health/live"
    try:
        until(lambda: answers(address), "the web server")
        yield process, address
    finally:
        process.kill()
        process.wait()


def answers(address):
    try:
        return httpx.get(address, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def test_processes(web):
    process, address = web
    first = until(lambda: len(found := children_of(process.pid)) == 2 and found, "two processes")
    killed = min(first)
    os.kill(killed, signal.SIGKILL)
    second = until(
        lambda: len(found := children_of(process.pid) - {killed}) == 2 and found,
        "the killed one to come back",
    )
    assert answers(address)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=GENEROUS_S) == 0
    until(lambda: all(is_gone(pid) for pid in second), "all to end")


def test_all_end_when_the_first_is_killed(web):
    process, _address = web
    children = until(lambda: len(found := children_of(process.pid)) == 2 and found, "two processes")
    process.kill()
    process.wait()
    until(lambda: all(is_gone(pid) for pid in children), "all to end")
