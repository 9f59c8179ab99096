"""Receiving beside three peers in the same run: same files, same sender, interleaved rounds, medians.

The sender is DCMTK's storescu with TCP_NODELAY (it leaves Nagle's algorithm on: 44 ms an instance), from the
page cache; it shares the machine with the receivers, and what it takes stands beside what they take. What a
success means is stated in every row. The row of the node without its guarantees says what they cost: the same
door on a C library whose fsync does nothing.

What a server has written is emptied before the next one comes, and removed only when all is over: emptied
files give their memory back, which every later server gets alike, while removed ones make it slow for minutes
to create new ones (ext4 without a journal passes over the inodes of removed files one by one).
"""

import http.client
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import func, insert, select

from dicom_node.bench.orthanc import PeerMissing
from dicom_node.bench.servers import (
    MAX_PDU,
    Running,
    Server,
    cpu_seconds,
    node,
    orthanc,
    peak_mb,
    pynetdicom,
    storescp,
)
from storage.database import Database, upgrade
from storage.tables import Instance, Series, Study

LARGE_SIDE, SMALL_SIDE = 512, 120  # pixels: 0.5 MB and 30 KB
SHARES: Final = 4
STUDY, SERIES, INSTANCE = "2.25.7000000000", "2.25.7100000000", "2.25.7200000000"  # templates, one length
BOUNDARY: Final = "0f5e2a6c4b7d49f1a3c8e6d2b1907a54"  # of a multipart body, as long as clients make them
FILLED: Final = 100_000  # instances that are in the index already
UNSAFE: Final = "node, unsafe"  # the row without guarantees
PEERS: Final = ("orthanc", "pynetdicom", "storescp")
TITLES: Final = (
    f"{'CASE':<12}{'SERVER':<16}{'PER S':>9}{'MIN':>9}{'MAX':>9}{'MB/S':>8}"
    f"{'CPU MS':>8}{'SENDER':>8}{'PEAK MB':>9}  SUCCESS MEANS"
)
WORK_FOLDER: Final = ".cache"  # below the folder it is started in: /tmp may be no disk


@dataclass(frozen=True)
class Scale:
    """How much is sent, and how often; what is 0 is left out."""

    large: int
    small: int
    stow: int
    rounds: int
    associations: tuple[int, ...] = (1, 4)  # at once: 1, or one for each of SHARES


FULL: Final = Scale(large=1000, small=5000, stow=100, rounds=5)
QUICK: Final = Scale(large=100, small=300, stow=50, rounds=3)


@dataclass(frozen=True)
class Case:
    """One kind of sending to all of `servers`."""

    name: str
    instances: int
    megabytes: float
    servers: Sequence[Server]
    send: Callable[[Running], None]


@dataclass(frozen=True)
class Measured:
    """One round of one case on one server."""

    per_s: float
    cpu_ms: float  # of the server, for one instance
    sender_ms: float  # of storescu; of what is sent from this process nothing
    peak_mb: float


def bench_ingest(
    *, is_quick: bool, is_alone: bool = False, scale: Scale | None = None
) -> tuple[str, dict[str, Any]]:
    """Run every case on every server; returns a table, and the figures.

    `is_alone`: this node only, with and without its guarantees.

    Raises
    ------
    PeerMissing
        If one of the programs to compare with is not installed.
    """
    scale = scale or (QUICK if is_quick else FULL)
    Path(WORK_FOLDER).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=WORK_FOLDER) as name:
        folder = Path(name).absolute()
        cases = _cases(folder, scale, is_alone=is_alone)
        floors = _floors(folder)
        results: dict[tuple[str, str], list[Measured]] = {}
        for number in range(scale.rounds):
            for case in cases:
                for server in case.servers[:: -1 if number % 2 else 1]:  # nobody is always the first
                    run = folder / f"{number} {case.name} {server.name}".replace(" ", "-")
                    results.setdefault((case.name, server.name), []).append(_measure(run, case, server))
    return _table(cases, results, floors), _figures(cases, results, floors, is_quick=is_quick)


def _cases(folder: Path, scale: Scale, *, is_alone: bool) -> list[Case]:
    empty = folder / "empty.sqlite"
    upgrade(f"sqlite:///{empty}")
    both = [node(empty), node(empty, UNSAFE, is_durable=False)]
    on_web = [node(empty, command="web"), node(empty, UNSAFE, is_durable=False, command="web")]
    filled = [] if is_alone else [node(_filled(folder, empty), "node, 100000")]
    peers = [] if is_alone else [storescp(), pynetdicom(), orthanc()]
    large_mb = write_series(folder / "large", scale.large, LARGE_SIDE) / 1e6
    small_mb = write_series(folder / "small", scale.small, SMALL_SIDE) / 1e6
    stow = _multipart(sorted((folder / "large").rglob("*.dcm"))[: scale.stow])
    cases = [
        Case(f"{name} x {count}", instances, megabytes, servers, partial(send, folder / name, count))
        for name, instances, megabytes, servers in (
            ("large", scale.large, large_mb, [*both, *filled, *peers]),
            ("small", scale.small, small_mb, [*both, *peers]),
        )
        for count in scale.associations
    ]
    cases.append(Case("STOW-RS", scale.stow, len(stow) / 1e6, [*on_web, *peers[2:]], partial(_post, stow)))
    return [case for case in cases if case.instances]


def _filled(folder: Path, empty: Path) -> Path:
    filled = folder / "filled.sqlite"
    shutil.copyfile(empty, filled)
    fill_index(f"sqlite:///{filled}", FILLED)
    return filled


def _measure(folder: Path, case: Case, server: Server) -> Measured:
    folder.mkdir()
    try:
        with server.run(folder) as running:
            cpu, sender = cpu_seconds(running.pid), _ended_children_s()
            began = time.perf_counter()
            case.send(running)
            seconds = time.perf_counter() - began
            each_ms = 1e3 / case.instances
            measured = Measured(
                per_s=case.instances / seconds,
                cpu_ms=(cpu_seconds(running.pid) - cpu) * each_ms,
                sender_ms=(_ended_children_s() - sender) * each_ms,
                peak_mb=peak_mb(running.pid),
            )
        _require_all(folder, case)
        return measured
    finally:
        _empty(folder)
        os.sync()  # what one server leaves to be written does not slow the next one


def _ended_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _empty(folder: Path) -> None:
    """Give back the disk and the memory of every file below `folder`; they stay until all is measured."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)


def _require_all(folder: Path, case: Case) -> None:
    """Of this node: every instance is in the index."""
    database_file = folder / "home" / "node.sqlite"
    if not database_file.exists():
        return
    database = Database(f"sqlite:///{database_file}")
    with database.reading() as tx:
        count = tx.scalar(select(func.count()).select_from(Instance)) or 0
    database.close()
    if count % FILLED != case.instances:
        raise PeerMissing(f"the node holds {count} instances after {case.name}")


def write_series(folder: Path, count: int, side: int) -> int:
    """Write `count` synthetic CT slices, 100 a series, into SHARES folders; returns their bytes."""
    template = _template(side)
    total = 0
    for number in range(count):
        share = folder / str(number * SHARES // count)
        share.mkdir(parents=True, exist_ok=True)
        content = template
        for stem, value in ((STUDY, number // 1000), (SERIES, number // 100), (INSTANCE, number)):
            content = content.replace(stem.encode(), f"{stem[:7]}{value + side:08d}".encode())
        (share / f"{number:06d}.dcm").write_bytes(content)
        total += len(content)
    return total


def send(folder: Path, associations: int, to: Running) -> None:
    """Send every file of `folder` on so many associations at once; raises PeerMissing if one is refused."""
    shares = sorted(folder.iterdir())
    parts = [shares] if associations == 1 else [[share] for share in shares]
    program = shutil.which("storescu")
    if program is None:
        raise PeerMissing("storescu is not installed: run scripts/system_packages.sh")
    command = [
        program,
        "-xe",
        "--max-pdu",
        str(MAX_PDU),
        "-aec",
        to.ae_title,
        "+sd",
        "127.0.0.1",
        str(to.port),
    ]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    senders = [
        subprocess.Popen([*command, *map(str, part)], env=environment, stdout=subprocess.DEVNULL)
        for part in parts
    ]
    statuses = [sender.wait() for sender in senders]
    if any(statuses):
        raise PeerMissing(f"storescu failed: {statuses}")


def _post(body: bytes, to: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", to.http_port or 0, timeout=600)
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    connection.request("POST", "/dicom-web/studies", body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != http.client.OK:
        raise PeerMissing(f"STOW-RS was answered with {answer.status}")


def _multipart(paths: Sequence[Path]) -> bytes:
    mark = f"--{BOUNDARY}".encode()
    head = mark + b"\r\nContent-Type: application/dicom\r\n\r\n"
    parts = [head + path.read_bytes() + b"\r\n" for path in paths]
    return b"".join([*parts, mark, b"--\r\n"])


def _template(side: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, INSTANCE
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260101", "120000", "BENCH"
    dataset.Modality, dataset.Manufacturer, dataset.StudyDescription = "CT", "Synthetic", "Benchmark"
    dataset.PatientName, dataset.PatientID = "Bench^Synthetic", "BENCH-1"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.SliceThickness, dataset.KVP, dataset.PatientPosition = "1", "120", "HFS"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.FrameOfReferenceUID = STUDY
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = side
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    pixels = np.random.default_rng(1).integers(0, 4096, (side, side), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def fill_index(url: str, count: int) -> None:
    """Enter `count` instances, 100 a series and 1,000 a study, as rows only."""
    database = Database(url)
    studies = [_study_row(number) for number in range(-(-count // 1000))]
    series = [_series_row(number) for number in range(-(-count // 100))]
    with database.transaction() as tx:
        tx.execute(insert(Study), studies)
        tx.execute(insert(Series), series)
        for start in range(0, count, 10_000):
            tx.execute(insert(Instance), [_instance_row(start + each) for each in range(10_000)])
    database.close()


def _study_row(number: int) -> dict[str, Any]:
    texts = (
        "patient_name", "patient_name_folded", "patient_birth_date", "patient_sex", "study_time",
        "accession_number", "study_description", "study_id", "referring_physician_name",
        "referring_physician_name_folded",
    )  # fmt: skip
    return dict.fromkeys(texts, "") | {
        "study_instance_uid": f"2.25.8.{number}", "patient_id": f"HELD-{number}", "study_date": "20250101",
        "version": 1, "created_at": 0.0, "last_received_at": 0.0, "completed_at": 1.0,
    }  # fmt: skip


def _series_row(number: int) -> dict[str, Any]:
    return {
        "series_instance_uid": f"2.25.81.{number}", "study_instance_uid": f"2.25.8.{number // 10}",
        "modality": "CT", "series_number": number % 10, "series_description": "", "body_part_examined": "",
        "series_date": "", "series_time": "", "laterality": "", "is_own_result": False,
    }  # fmt: skip


def _instance_row(number: int) -> dict[str, Any]:
    sha256 = f"{number * 2654435761 % 2**32:08x}" * 8  # spread as digests are
    return {
        "sop_instance_uid": f"2.25.82.{number}", "series_instance_uid": f"2.25.81.{number // 100}",
        "study_instance_uid": f"2.25.8.{number // 1000}", "sop_class_uid": CTImageStorage,
        "transfer_syntax_uid": ExplicitVRLittleEndian, "instance_number": number % 100, "rows": 512,
        "columns": 512, "number_of_frames": None, "sha256": sha256, "size_bytes": 527_000,
        "path": f"objects/{sha256[:2]}/{sha256}.dcm", "origin_kind": "IMPORT", "origin_detail": "bench",
        "received_at": 0.0, "patient_id": "",
    }  # fmt: skip


def _floors(folder: Path) -> dict[str, float]:
    """What the machine gives: fsyncs of 4 KB a second, bytes through a socket; and how busy it is before."""
    load = os.getloadavg()[0]
    count = 200
    with (folder / "floor").open("wb") as file:
        began = time.perf_counter()
        for _ in range(count):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        fsyncs = count / (time.perf_counter() - began)
    rates = {"fsyncs_per_s": round(fsyncs), "socket_mb_per_s": round(_socket_rate())}
    return {**rates, "load_before": round(load, 2)}


def _socket_rate() -> float:
    listening = socket.create_server(("127.0.0.1", 0))
    block, blocks = bytes(MAX_PDU), 4000

    def give() -> None:
        with socket.create_connection(listening.getsockname()) as giving:
            for _ in range(blocks):
                giving.sendall(block)

    thread = threading.Thread(target=give)
    thread.start()
    taking, _address = listening.accept()
    buffer, total = bytearray(MAX_PDU * 2), 0
    began = time.perf_counter()
    while count := taking.recv_into(buffer):
        total += count
    seconds = time.perf_counter() - began
    thread.join()
    taking.close()
    listening.close()
    return total / seconds / 1e6


def _median(results: Sequence[Measured], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in results))


def _table(
    cases: Sequence[Case], results: dict[tuple[str, str], list[Measured]], floors: dict[str, float]
) -> str:
    lines = [TITLES]
    for case in cases:
        for server in case.servers:
            rounds = results[case.name, server.name]
            rates = [each.per_s for each in rounds]
            rate = statistics.median(rates)
            lines.append(
                f"{case.name:<12}{server.name:<16}{rate:>9.1f}{min(rates):>9.1f}{max(rates):>9.1f}"
                f"{rate * case.megabytes / case.instances:>8.1f}{_median(rounds, 'cpu_ms'):>8.2f}"
                f"{_median(rounds, 'sender_ms'):>8.2f}"
                f"{_median(rounds, 'peak_mb'):>9.1f}  {server.durability}"
            )
    floor = f"{floors['fsyncs_per_s']} fsyncs of 4 KB a second, {floors['socket_mb_per_s']} MB/s by loopback"
    cost = ", ".join(f"{name} {ratio:.3f}" for name, ratio in _cost(cases, results).items())
    told = f"Rate with guarantees on to off ({UNSAFE}): {cost}."
    machine = f"{os.cpu_count()} cores, load {floors['load_before']} before"
    return "\n".join([*lines, told, f"Floors of this machine: {floor}; {machine}."])


def _cost(cases: Sequence[Case], results: dict[tuple[str, str], list[Measured]]) -> dict[str, float]:
    """How many times the rate without guarantees the one with them is: the median of the rounds' ratios."""
    return {case.name: _paired(results[case.name, "node"], results[case.name, UNSAFE]) for case in cases}


def _paired(one: Sequence[Measured], other: Sequence[Measured]) -> float:
    ratios = [on.per_s / off.per_s for on, off in zip(one, other, strict=True)]
    return round(statistics.median(ratios), 3)


def _figures(
    cases: Sequence[Case],
    results: dict[tuple[str, str], list[Measured]],
    floors: dict[str, float],
    *,
    is_quick: bool,
) -> dict[str, Any]:
    rates = {key: _median(rounds, "per_s") for key, rounds in results.items()}
    rows = [
        {
            "case": case.name, "server": server.name, "durability": server.durability,
            "instances": case.instances, "per_s": round(rates[case.name, server.name], 1),
            "rounds": [round(each.per_s, 1) for each in results[case.name, server.name]],
            "cpu_ms": round(_median(results[case.name, server.name], "cpu_ms"), 3),
            "sender_ms": round(_median(results[case.name, server.name], "sender_ms"), 3),
            "peak_mb": round(_median(results[case.name, server.name], "peak_mb"), 1),
        }
        for case in cases
        for server in case.servers
    ]  # fmt: skip
    cost = _cost(cases, results)
    figures = {
        "bench": "ingest", "is_quick": is_quick, "rounds": len(next(iter(results.values()))),
        "cores": os.cpu_count(), "machine": platform.machine(), "rows": rows, "floors": floors,
        "guarantees_on_to_off": cost, "guarantees_on_to_off_lowest": min(cost.values()),
    }  # fmt: skip
    return figures if ("large x 1", PEERS[0]) not in rates else figures | _beside_peers(rates)


def _beside_peers(rates: dict[tuple[str, str], float]) -> dict[str, Any]:
    large, small = ("large x 1", "large x 4"), ("small x 1", "small x 4")
    return {
        "ratios": _ratios(rates, large, PEERS),
        "ratios_small": _ratios(rates, small, PEERS),
        "ratios_stow": _ratios(rates, ("STOW-RS",), ("orthanc",)),
        "with_100000_held": _ratio_of(rates, large, "node, 100000", "node"),
    }


def _ratios(
    rates: dict[tuple[str, str], float], cases: Sequence[str], peers: Sequence[str]
) -> dict[str, float]:
    """How many times a peer's rate ours is: the lowest over `cases`."""
    return {peer: _ratio_of(rates, cases, "node", peer) for peer in peers}


def _ratio_of(rates: dict[tuple[str, str], float], cases: Sequence[str], one: str, other: str) -> float:
    return round(min(rates[case, one] / rates[case, other] for case in cases), 3)
