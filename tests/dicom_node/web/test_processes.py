"""`dicom-node web` as processes: several answer at one port; a killed one comes back; all end together."""

import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.flow.nodes import write_config as write_sections

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


def write_config(folder, database_url, port, **more):
    sections = {"http": {"port": port, "processes": 2}, "storage": {"database_url": database_url}}
    for name, values in more.items():
        sections[name] = {**sections.get(name, {}), **values}
    return write_sections(folder / "node.toml", sections)


def command_of(what, home, config):
    return [sys.executable, "-m", "dicom_node", what, "--home", str(home), "--config", str(config)]


@pytest.fixture
def web(tmp_path, database_url, free_port):
    port = free_port()
    command = command_of("web", tmp_path, write_config(tmp_path, database_url, port))
    process = subprocess.Popen([*command, "--parent", str(os.getpid())], cwd=REPOSITORY)
    address = f"http://127.0.0.1:{port}/health/live"
    try:
        until(lambda: answers(address), "the web server")
        yield process, address
    finally:
        process.kill()
        process.wait()


def answers(address, verify=True):
    try:
        return httpx.get(address, timeout=30, verify=verify).status_code == 200
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


def test_https_and_nothing_else(tmp_path, database_url, free_port):
    port, authority = free_port(), Authority(tmp_path / "pki", "hospital")
    pair = authority.sign("node")
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    config = write_config(tmp_path, database_url, port, http={"tls": True}, tls=tls)
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    process = subprocess.Popen(command_of("web", tmp_path, config), cwd=REPOSITORY)
    try:
        address = f"https://127.0.0.1:{port}/dicom-web/studies"
        until(lambda: answers(address, trust), "the web server")
        assert httpx.get(address, verify=trust).json() == []
        for wrong, verify in ((address.replace("https", "http"), trust), (address, True)):
            with pytest.raises(httpx.TransportError):
                httpx.get(wrong, verify=verify, timeout=30)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("command", ["web", "serve"])
def test_without_its_certificate_nothing_is_answered(tmp_path, database_url, free_port, command):
    config = write_config(
        tmp_path,
        database_url,
        free_port(),
        http={"tls": True},
        dimse={"port": free_port()},
        tls={"certificate": "/nowhere.pem"},
    )
    run = command_of(command, tmp_path, config)
    ended = subprocess.run(
        run, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=GENEROUS_S
    )
    assert ended.returncode != 0
    assert "tls.certificate: /nowhere.pem is not there or cannot be read" in ended.stderr
    assert "Traceback" not in ended.stderr
