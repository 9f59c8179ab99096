"""Mutated PDUs: through the decoders in process, and over connections to a listener in its own processes.

FUZZED_PDUS=10000000 HOSTILE_CONNECTIONS=50000 pytest tests/dicom_node/dimse/test_fuzz.py -s
"""

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dicom_node.bench.servers import peak_mb
from dicom_node.dimse import pdu
from dicom_node.dimse.dimse_command import parse_command
from dicom_node.dimse.inflow import Inflow, InflowLimits, PeerGone
from tests.conftest import REPOSITORY
from tests.dicom_node.dimse import raw_peer
from tests.dicom_node.dimse.raw_peer import associate_rq, data_pdu, echo_rq, echo_status, item, store_rq

FUZZED_PDUS = int(os.environ.get("FUZZED_PDUS", "1000000"))
HOSTILE_CONNECTIONS = int(os.environ.get("HOSTILE_CONNECTIONS", "50000"))
WORKERS = 2
LENGTHS = (0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
SEEDS = (
    associate_rq(),
    associate_rq(user=item(0x54, struct.pack(">H", 3) + b"1.2\x01\x01") + item(0x53, bytes(4))),
    data_pdu(1, 3, echo_rq()),
    data_pdu(3, 3, store_rq("1.2.3.4")) + data_pdu(3, 0, bytes(100)) + data_pdu(3, 2, bytes(40)),
    raw_peer.pdu(5, bytes(4)),
    raw_peer.pdu(7, bytes(4)),
)


class Memory:
    """A connection that brings these bytes and ends."""

    def __init__(self, data):
        self._data = memoryview(data)

    def setblocking(self, _flag):
        pass

    def setsockopt(self, *_arguments):
        pass

    def recv_into(self, buffer):
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def mutate(data, chance):
    """One to four changes: bits, bytes, lengths, pieces cut out or doubled."""
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(mutated) or 1)
        kind = chance.randrange(6)
        if kind == 0 and mutated:
            mutated[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and mutated:
            mutated[place] = chance.randrange(256)
        elif kind == 2:
            mutated[place : place + 4] = struct.pack(
                ">I", chance.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            )
        elif kind == 3:
            del mutated[place : place + chance.randrange(20)]
        elif kind == 4:
            mutated[place:place] = mutated[place : place + chance.randrange(40)]
        else:
            mutated = mutated[: max(1, place)]
    return bytes(mutated)


def decode(data):
    """Everything that reads bytes of a peer; only the typed error may leave it. True = it was refused."""
    try:
        if data[:1] == b"\x01":
            pdu.parse_associate_rq(data)
            return False
        read_messages(data)
    except (pdu.ProtocolError, PeerGone):
        return True
    return False


def read_messages(data):
    inflow, encoded = Inflow(Memory(data), LIMITS, b""), b""
    inflow.begin_message()
    while not isinstance(piece := inflow.fragment(), int):
        if piece.is_command:
            encoded += piece.data
            if piece.is_last:
                parse_command(encoded)
                encoded = b""


LIMITS = InflowLimits(131072, 15.0, 30.0)


def fuzz(arguments):
    seed, count = arguments
    chance = random.Random(seed)
    refused, slowest = 0, 0.0
    for _ in range(count):
        data = mutate(chance.choice(SEEDS), chance)
        began = time.thread_time()
        refused += decode(data)
        slowest = max(slowest, time.thread_time() - began)
    return refused, slowest


def test_a_million_mutated_pdus_raise_nothing_but_the_typed_error(monkeypatch):  # FUZ-01
    monkeypatch.setattr("dicom_node.dimse.inflow.BUFFER_BYTES", 4096)
    began = time.perf_counter()
    tasks = [(seed, FUZZED_PDUS // 20) for seed in range(20)]
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        results = pool.map(fuzz, tasks)
    seconds = time.perf_counter() - began
    refused, slowest = sum(each for each, _ in results), max(each for _, each in results)
    count = FUZZED_PDUS // 20 * 20
    print(
        f"\n{count} mutated PDUs in {seconds:.0f} s: {refused} refused, 0 other errors, "
        f"slowest {slowest * 1e3:.1f} ms of CPU"
    )
    assert refused > count // 4
    assert slowest < 1.0


@pytest.fixture
def node(tmp_path, free_port):
    """`dicom-node scp` in processes of its own; gives its process and port."""
    port = free_port()
    environment = {
        **os.environ,
        "DICOM_NODE_DIMSE__PORT": str(port),
        "DICOM_NODE_DIMSE__MAX_ASSOCIATIONS": "64",
        "DICOM_NODE_DIMSE__ACSE_TIMEOUT_S": "5",
        "DICOM_NODE_DIMSE__PDU_TIMEOUT_S": "5",
        "DICOM_NODE_DIMSE__NETWORK_TIMEOUT_S": "5",
        "DICOM_NODE_LIMITS__MIN_FREE_MB": "1",
        "DICOM_NODE_LIMITS__LOW_FREE_MB": "1",
        "DICOM_NODE_HOME": str(tmp_path / "home"),
    }
    run = [sys.executable, "-m", "dicom_node"]
    subprocess.run([*run, "migrate"], check=True, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [*run, "scp"], env=environment, cwd=REPOSITORY, stdout=output, stderr=output
        )
    deadline = time.monotonic() + 120
    while not is_answering(port):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    yield process, port
    process.terminate()
    assert process.wait(60) == 0


def is_answering(port):
    try:
        return echo_status(port) == 0
    except (OSError, AssertionError):
        return False


def attack(port, address, chance):
    """One hostile connection, in one of four states."""
    state = chance.randrange(4)
    connection = socket.socket()
    connection.settimeout(5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with connection:
        connection.bind((address, 0))
        connection.connect(("127.0.0.1", port))
        if state == 0:
            connection.sendall(mutate(chance.choice(SEEDS), chance))
            return
        connection.sendall(associate_rq())
        if raw_peer.receive_pdu(connection)[0] != raw_peer.ASSOCIATE_AC:
            return
        if state == 1:
            connection.sendall(mutate(chance.choice(SEEDS[2:]), chance))
        elif state == 2:
            connection.sendall(data_pdu(3, 3, store_rq("1.2.3")) + mutate(data_pdu(3, 2, bytes(200)), chance))
        else:
            connection.sendall(raw_peer.pdu(5, bytes(4)) + mutate(chance.choice(SEEDS), chance))


def attack_many(arguments):
    port, number, count = arguments
    chance = random.Random(number)
    for _ in range(count):
        with contextlib.suppress(OSError):
            attack(port, f"127.0.0.{2 + number}", chance)


def test_hostile_connections_leave_c_echo_answered_throughout(node):  # FUZ-02, NET-14
    process, port = node
    before, answered, failed = peak_mb(process.pid), [], []
    is_over = threading.Event()

    def probe():
        while not is_over.is_set():
            began = time.perf_counter()
            (answered if is_answering(port) else failed).append(time.perf_counter() - began)
            is_over.wait(0.1)

    prober = threading.Thread(target=probe)
    prober.start()
    began, attackers = time.perf_counter(), 8
    tasks = [(port, number, HOSTILE_CONNECTIONS // attackers) for number in range(attackers)]
    with multiprocessing.get_context("fork").Pool(attackers) as pool:
        pool.map(attack_many, tasks)
    seconds = time.perf_counter() - began
    is_over.set()
    prober.join()
    grown = peak_mb(process.pid) - before
    print(
        f"\n{HOSTILE_CONNECTIONS} hostile connections in {seconds:.0f} s; "
        f"C-ECHO answered {len(answered)} times, failed {len(failed)}, "
        f"slowest {max(answered):.2f} s; memory grew by {grown:.0f} MB"
    )
    assert failed == []
    assert process.poll() is None
    assert grown < 256
    assert is_answering(port)


def test_without_descriptors_the_door_neither_spins_nor_dies(node):  # RES-06
    process, port = node
    subprocess.run(["prlimit", f"--pid={process.pid}", "--nofile=40"], check=True)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                peer.connect(("127.0.0.1", port))
        before, began = cpu_ticks(process.pid), time.monotonic()
        time.sleep(2)
        used = (cpu_ticks(process.pid) - before) / os.sysconf("SC_CLK_TCK")
        assert used < 0.2 * (time.monotonic() - began) + 0.2
    deadline = time.monotonic() + 30
    while not is_answering(port):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_receiving_process_that_dies_is_replaced_and_gives_its_places_back(node):
    process, port = node
    first = children(process.pid)
    with contextlib.ExitStack() as stack:
        for number in range(8):
            stack.enter_context(raw_peer.associated(port, address=f"127.0.0.{2 + number}"))
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while not is_answering(port) or len(children(process.pid)) < len(first):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert set(first).isdisjoint(children(process.pid))
    with contextlib.ExitStack() as stack:  # none of the 52 places of an address is lost
        for _ in range(52):
            stack.enter_context(raw_peer.associated(port, address="127.0.0.2"))
