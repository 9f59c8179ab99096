"""The receivers that a benchmark compares: this node, DCMTK's storescp, a minimal pynetdicom SCP, Orthanc.

Each is started anew for every measurement, on loopback, with TCP_NODELAY, in a new folder of one disk, and
measured once it answers.
"""

import http.client
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from dicom_node.bench.orthanc import PeerMissing, free_port, loopback_environment, running_orthanc

MAX_PDU: Final = 131072
NODE_AE: Final = "SIM4SEG"
PEER_AE: Final = "BENCH"
START_S: Final = 120.0
RECEIVING_PROCESSES: Final = 2  # that a node has at most, unless told otherwise
ECHOES: Final = 5  # on each association, so that they are open at the same time
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
# A node without its guarantees, which no setting gives: file, folder and commit are never waited for. Only a
# benchmark puts this between the node and the C library.
NO_FSYNC: Final = """
#define _GNU_SOURCE
#include <sys/types.h>
int fsync(int fd) { return 0; }
int fdatasync(int fd) { return 0; }
int syncfs(int fd) { return 0; }
"""
NO_FSYNC_NAME: Final = "bench_no_fsync"
MINIMAL_SCP: Final = """
import sys
from pathlib import Path
from pynetdicom import AE, AllStoragePresentationContexts, evt
folder, port = Path(sys.argv[1]), int(sys.argv[2])
def store(event):
    name = str(event.request.AffectedSOPInstanceUID)
    (folder / name).write_bytes(event.encoded_dataset())
    return 0x0000
ae = AE("BENCH")
ae.supported_contexts = AllStoragePresentationContexts
ae.add_supported_context("1.2.840.10008.1.1")
ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])
"""


@dataclass(frozen=True)
class Running:
    """A receiver that runs: where, and as which process."""

    port: int
    ae_title: str
    pid: int
    http_port: int | None = None


@dataclass(frozen=True)
class Server:
    """A receiver to measure, and what its success means."""

    name: str
    durability: str
    run: Callable[[Path], AbstractContextManager[Running]]


def storescp() -> Server:
    """DCMTK's storage SCP."""
    return Server("storescp", "no fsync, no index", _running_storescp)


def pynetdicom() -> Server:
    """A storage SCP in a dozen lines of pynetdicom."""
    return Server("pynetdicom", "no fsync, no index", _running_pynetdicom)


def orthanc() -> Server:
    """Orthanc as it comes."""
    return Server("orthanc", "file fsynced, indexed", _running_orthanc)


def node(template: Path, name: str = "node", *, is_durable: bool = True, command: str = "scp") -> Server:
    """The listener (or web server) of this node on a home that begins with the database `template`."""

    @contextmanager
    def run(folder: Path) -> Iterator[Running]:
        with _running_node(folder, template, is_durable=is_durable, command=command) as running:
            yield running

    durability = "file, name and index fsynced" if is_durable else "indexed, nothing fsynced"
    return Server(name, durability, run)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    return sum(_ticks(each) for each in _family(pid)) / CLOCK_TICKS


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process and its children, in MB; pages they share count for each."""
    return sum(_status_kb(each, "VmHWM") for each in _family(pid)) * 1024 / 1e6


@contextmanager
def _running_node(folder: Path, template: Path, *, is_durable: bool, command: str) -> Iterator[Running]:
    home = folder / "home"
    home.mkdir(parents=True)
    shutil.copyfile(template, home / "node.sqlite")
    port, http_port = free_port(), free_port()
    environment = {
        **os.environ,
        "DICOM_NODE_DIMSE__PORT": str(port),
        "DICOM_NODE_HTTP__PORT": str(http_port),
        "DICOM_NODE_LIMITS__MIN_FREE_MB": "1",
        "DICOM_NODE_LIMITS__LOW_FREE_MB": "1",
    }
    if not is_durable:
        environment["LD_PRELOAD"] = str(_shim(folder, NO_FSYNC_NAME, NO_FSYNC))
    arguments = [sys.executable, "-m", "dicom_node", command, "--home", str(home)]
    answers = partial(_echoes, port, NODE_AE) if command == "scp" else partial(_lives, http_port)
    with _process(folder, arguments, environment, answers) as pid:
        if is_durable is _is_shimmed(pid):
            raise PeerMissing("the C library without fsync is not where it should be: no comparison")
        yield Running(port, NODE_AE, pid, http_port)


@contextmanager
def _running_storescp(folder: Path) -> Iterator[Running]:
    files, port = folder / "received", free_port()
    files.mkdir(parents=True)
    arguments = [_program("storescp"), "--max-pdu", str(MAX_PDU), "-od", str(files), str(port)]
    with _process(folder, arguments, loopback_environment(folder), partial(_echoes, port, PEER_AE)) as pid:
        yield Running(port, PEER_AE, pid)


@contextmanager
def _running_pynetdicom(folder: Path) -> Iterator[Running]:
    files, port = folder / "received", free_port()
    files.mkdir(parents=True)
    arguments = [sys.executable, "-c", MINIMAL_SCP, str(files), str(port)]
    with _process(folder, arguments, dict(os.environ), partial(_echoes, port, PEER_AE)) as pid:
        yield Running(port, PEER_AE, pid)


@contextmanager
def _running_orthanc(folder: Path) -> Iterator[Running]:
    with running_orthanc(folder) as found:
        yield Running(found.dicom_port, "ORTHANC", found.pid, found.http_port)


@contextmanager
def _process(
    folder: Path, arguments: list[str], environment: dict[str, str], answers: Callable[[], bool]
) -> Iterator[int]:
    """Run a server; it is measured from when it answers, not from when its port is open."""
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, cwd=_code_folder())
    try:
        end = time.monotonic() + START_S
        while not answers():
            if process.poll() is not None or time.monotonic() > end:
                raise PeerMissing(f"{Path(arguments[0]).name} did not start; see {folder}/output.log")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _echoes(port: int, ae_title: str) -> bool:
    """Whether C-ECHO is answered, on as many associations at once as a node has processes."""
    command = [_program("echoscu"), "-aec", ae_title, "--repeat", str(ECHOES), "127.0.0.1", str(port)]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    asking = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        for _ in range(RECEIVING_PROCESSES)
    ]
    statuses = [each.wait() for each in asking]
    return not any(statuses)


def _lives(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5) as answer:
            return bool(answer.status == http.client.OK)
    except OSError:
        return False


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise PeerMissing(f"{name} is not installed: run scripts/system_packages.sh")
    return found


def _shim(folder: Path, name: str, source: str) -> Path:
    compiler = _program("cc")
    code, library = folder / f"{name}.c", folder / f"{name}.so"
    code.write_text(source, encoding="ascii")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(code)], check=True)
    return library


def _is_shimmed(pid: int) -> bool:
    return NO_FSYNC_NAME in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def _code_folder() -> Path:
    return Path(__file__).resolve().parents[2]


def _family(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        try:
            text = Path(f"/proc/{each}/task/{each}/children").read_text(encoding="ascii")
        except OSError:
            continue
        found += [int(child) for child in text.split()]
    return found


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _status_kb(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
