"""DICOMweb beside Orthanc in the same run: searches, metadata and frames, by wrk, interleaved, medians.

Both hold the same instances, on the same disk, each with its own defaults of durability (both fsync). The
client shares the machine with them. Server CPU seconds and peak memory stand beside each rate.
"""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.bench.orthanc import PeerMissing, free_port, running_orthanc
from dicom_node.services import open_receiver
from dicom_node.settings import load_settings
from storage.database import Database, upgrade
from storage.index import Origin

CONNECTIONS: Final = 16
SIDE: Final = 512  # pixels
ROOT: Final = "2.25.1000"  # of the UIDs of the bench
JSON: Final = "application/dicom+json"
FRAMES: Final = "multipart/related; type=application/octet-stream; transfer-syntax=*"
ADDRESSES: Final = 1000  # different ones that a case goes through
TITLES: Final = (
    f"{'CASE':<26}{'SERVER':<10}{'PER S':>9}{'P50 MS':>9}{'P99 MS':>9}{'CPU S':>8}{'PEAK MB':>9}{'BAD':>5}"
)
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
WRK_SCRIPT: Final = """
local paths = {}
for line in io.lines(os.getenv("BENCH_PATHS")) do paths[#paths + 1] = line end
local position = 0
function init(args) math.randomseed(os.time()); position = math.random(#paths) end
function request()
  position = position % #paths + 1
  return wrk.format("GET", paths[position], { ["Accept"] = os.getenv("BENCH_ACCEPT") })
end
function done(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"requests": %d, "us": %d, "bytes": %d, "bad": %d, "p50": %d, "p99": %d}\\n',
    summary.requests, summary.duration, summary.bytes, bad,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Scale:
    """How much is held, and for how long each case runs."""

    studies: int
    instances: int  # of the one large series
    seconds: int
    rounds: int


FULL: Final = Scale(studies=10_000, instances=1000, seconds=5, rounds=5)
QUICK: Final = Scale(studies=1000, instances=200, seconds=1, rounds=5)


@dataclass(frozen=True)
class Case:
    """One kind of request."""

    name: str
    accept: str
    paths: Sequence[str]
    is_single: bool = False  # one connection, seconds of one answer, instead of requests a second
    bound: str = ""  # what bounds it


@dataclass(frozen=True)
class Server:
    """One of the two."""

    name: str
    port: int
    pids: Callable[[], list[int]]


@dataclass(frozen=True)
class Measured:
    """One round of one case at one server."""

    rate: float  # requests a second
    p50_ms: float
    p99_ms: float
    cpu_s: float
    peak_mb: float
    bad: int


def bench_dicomweb(*, is_quick: bool) -> tuple[str, dict[str, Any]]:
    """Measure both servers; gives a table for people and the figures for machines."""
    if shutil.which("wrk") is None:
        raise PeerMissing("wrk is not installed: run scripts/system_packages.sh")
    scale = QUICK if is_quick else FULL
    with tempfile.TemporaryDirectory(prefix="dicom-node-bench-") as name:
        folder = Path(name)
        with _our_server(folder / "ours", scale) as ours, running_orthanc(folder / "orthanc") as orthanc:
            _fill_orthanc(orthanc.http_port, scale)
            servers = [ours, Server("orthanc", orthanc.http_port, lambda: [orthanc.pid])]
            found = _measure(servers, _cases(scale), scale, folder)
    return _table(found, scale), _figures(found, scale)


def instances_of(scale: Scale) -> Iterator[bytes]:
    """The Part 10 files that both servers get: small studies, then one large series."""
    small = np.zeros((8, 8), np.uint16)
    for number in range(scale.studies):
        yield _file(f"{ROOT}.1.{number}", 1, small, patient=number)
    noise = np.random.default_rng(1).integers(0, 4096, (SIDE, SIDE), np.uint16)
    for number in range(scale.instances):
        yield _file(f"{ROOT}.2", number + 1, noise, patient=scale.studies)


def _file(study: str, number: int, pixels: "np.ndarray[Any, np.dtype[np.uint16]]", patient: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{study}.1.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.1"
    dataset.PatientName, dataset.PatientID = f"Bench^{patient}", f"P{patient}"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    day = 20200101 + patient % 28 + 100 * (patient // 28 % 12) + 10000 * (patient // 336 % 6)
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = str(day), "101500", f"A{patient}"
    dataset.StudyDescription, dataset.ReferringPhysicianName = "Chest", "Doe^Jane"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, number
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.FrameOfReferenceUID = [0.7, 0.7], 1, f"{study}.9"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@contextmanager
def _our_server(home: Path, scale: Scale) -> Iterator[Server]:
    home.mkdir()
    config, port = home / "node.toml", free_port()
    config.write_text(f"[http]\nport = {port}\n[limits]\nmin_free_mb = 1\n", encoding="utf-8")
    settings = load_settings(home, config)
    upgrade(settings.storage.database_url)
    database = Database(settings.storage.database_url)
    receiver = open_receiver(settings, database)
    for content in instances_of(scale):
        receiver.receive_part10([content], Origin("IMPORT", "bench"))
    database.close()
    command = [sys.executable, "-m", "dicom_node", "web", "--home", str(home), "--config", str(config)]
    with (home / "web.txt").open("wb") as log:
        process = subprocess.Popen([*command, "--parent", str(os.getpid())], stdout=log, stderr=log)
        try:
            _wait_for(port, process)
            yield Server("ours", port, lambda: [process.pid, *_children(process.pid)])
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 120
    while True:
        try:
            if _get(port, "/health/live", "*/*")[0] == http.client.OK:
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise PeerMissing("our web server did not start") from None
            time.sleep(0.1)


def _get(port: int, path: str, accept: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _fill_orthanc(port: int, scale: Scale) -> None:
    def upload(content: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("POST", "/instances", content)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != http.client.OK:
            raise PeerMissing(f"Orthanc did not take an instance ({answer.status})")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, instances_of(scale)))


def _cases(scale: Scale) -> list[Case]:
    step = max(scale.studies // ADDRESSES, 1)
    numbers = range(0, scale.studies, step)
    series = f"/dicom-web/studies/{ROOT}.2/series/{ROOT}.2.1"
    python = "processor time of Python for each request: routing, one SQL statement, JSON"
    return [
        Case("QIDO study list, 101", JSON, ["/dicom-web/studies?limit=101&offset=0"], bound=python),
        Case(
            "QIDO study of a patient",
            JSON,
            [f"/dicom-web/studies?PatientID=P{n}" for n in numbers],
            bound=python,
        ),
        Case(
            "QIDO series of a study",
            JSON,
            [f"/dicom-web/studies/{ROOT}.1.{n}/series" for n in numbers],
            bound=python,
        ),
        Case(
            "metadata of a series",
            JSON,
            [f"{series}/metadata"],
            is_single=True,
            bound="one file read, one write",
        ),
        Case(
            "frames 512x512",
            FRAMES,
            [f"{series}/instances/{ROOT}.2.1.{n + 1}/frames/1" for n in range(scale.instances)],
            bound="copies of 0.5 MB: page cache to Python, Python to socket, loopback",
        ),
    ]


def _measure(
    servers: Sequence[Server], cases: Sequence[Case], scale: Scale, folder: Path
) -> dict[str, dict[str, list[Measured]]]:
    """Case -> server -> rounds; the servers take turns within every round, after one that is not counted."""
    found: dict[str, dict[str, list[Measured]]] = {}
    for case in cases:
        of_case = found.setdefault(case.name, {server.name: [] for server in servers})
        for number in range(scale.rounds + 1):
            for server in servers:
                measured = _round(server, case, scale, folder)
                if number:
                    of_case[server.name].append(measured)
    return found


def _round(server: Server, case: Case, scale: Scale, folder: Path) -> Measured:
    before = _cpu_s(server.pids())
    rate, p50, p99, bad = _single(server, case) if case.is_single else _wrk(server, case, scale, folder)
    pids = server.pids()
    return Measured(rate, p50, p99, _cpu_s(pids) - before, sum(map(_peak_mb, pids)), bad)


def _single(server: Server, case: Case) -> tuple[float, float, float, int]:
    seconds, bad = [], 0
    for _ in range(3):
        started = time.perf_counter()
        status, _body = _get(server.port, case.paths[0], case.accept)
        seconds.append(time.perf_counter() - started)
        bad += status != http.client.OK
    median = statistics.median(seconds)
    return 1 / median, median * 1000, max(seconds) * 1000, bad


def _wrk(server: Server, case: Case, scale: Scale, folder: Path) -> tuple[float, float, float, int]:
    paths, script = folder / "paths.txt", folder / "case.lua"
    paths.write_text("\n".join(case.paths) + "\n", encoding="ascii")
    script.write_text(WRK_SCRIPT, encoding="ascii")
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{scale.seconds}s", "--timeout", "60s", "-s", str(script),
         f"http://127.0.0.1:{server.port}"],
        env={**os.environ, "BENCH_PATHS": str(paths), "BENCH_ACCEPT": case.accept},
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout.strip().splitlines()[-1])
    rate = result["requests"] / (result["us"] / 1e6)
    return rate, result["p50"] / 1000, result["p99"] / 1000, result["bad"]


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text(encoding="ascii").split()] if path.exists() else []


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / CLOCK_TICKS


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def _ratio(servers: dict[str, list[Measured]]) -> float:
    """Ours to Orthanc's; nothing can be said when one of them answered nothing in time."""
    ours, peer = (_median(servers[name], "rate") for name in ("ours", "orthanc"))
    return ours / peer if peer else float("nan")


def _median(rounds: Sequence[Measured], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in rounds))


def _table(found: dict[str, dict[str, list[Measured]]], scale: Scale) -> str:
    lines = [
        f"DICOMweb, {scale.studies} studies, a series of {scale.instances} CT {SIDE}x{SIDE};",
        f"{CONNECTIONS} connections; medians of {scale.rounds} interleaved rounds;",
        f"{os.cpu_count()} cores, client included.",
        "Both servers fsync what they store; nothing is stored while this is measured.",
        TITLES,
    ]
    for case, servers in found.items():
        for name, rounds in servers.items():
            cells = [_median(rounds, cell) for cell in ("rate", "p50_ms", "p99_ms", "cpu_s", "peak_mb")]
            bad = sum(each.bad for each in rounds)
            lines.append(
                f"{case:<26}{name:<10}{cells[0]:>9.1f}{cells[1]:>9.1f}{cells[2]:>9.1f}{cells[3]:>8.2f}"
                f"{cells[4]:>9.0f}{bad:>5}"
            )
        lines.append(f"{'':<26}{'ratio':<10}{_ratio(servers):>9.2f}")
    lines += [f"Bound of {case.name}: {case.bound}." for case in _cases(scale)]
    return "\n".join(lines)


def _figures(found: dict[str, dict[str, list[Measured]]], scale: Scale) -> dict[str, Any]:
    cases = {
        case: {
            name: {
                "per_s": round(_median(rounds, "rate"), 2),
                "p50_ms": round(_median(rounds, "p50_ms"), 2),
                "p99_ms": round(_median(rounds, "p99_ms"), 2),
                "cpu_s": round(_median(rounds, "cpu_s"), 2),
                "peak_mb": round(_median(rounds, "peak_mb")),
                "bad": sum(each.bad for each in rounds),
            }
            for name, rounds in servers.items()
        }
        for case, servers in found.items()
    }
    ratios = {case: round(_ratio(servers), 2) for case, servers in found.items()}
    return {
        "bench": "dicomweb",
        "studies": scale.studies,
        "instances": scale.instances,
        "rounds": scale.rounds,
        "connections": CONNECTIONS,
        "cores": os.cpu_count(),
        "cases": cases,
        "ratios": {"orthanc": ratios},
    }
