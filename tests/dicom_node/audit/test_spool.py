"""The chain on disk: many writers, killed writers, full disks, and every way in which somebody changes it."""

import os
import re
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dicom_node.audit.record import GENESIS
from dicom_node.audit.spool import Mark, Spool, SpoolBusy
from dicom_node.audit.verify import verify
from tests.conftest import REPOSITORY
from tests.dicom_node.audit.disks import files_end_at

WRITER = """
import sys
from pathlib import Path
from dicom_node.audit.spool import Spool
spool, name, count = Spool(Path(sys.argv[1]), 2000), sys.argv[2], int(sys.argv[3])
for number in range(count):
    print(spool.append([f"{name} {number}"]), flush=True)
"""


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "audit", 2000)


def messages(spool, after=None):
    return [record.message for _, record in spool.records(after)]


def writer(spool, name, count):
    command = [sys.executable, "-c", WRITER, str(spool.folder), name, str(count)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def findings(spool):
    return verify(spool).findings


def lines(spool, number=0):
    return spool.segments()[number].read_bytes().splitlines(keepends=True)


def put(spool, content, number=0):
    spool.segments()[number].write_bytes(b"".join(content))


def test_records_come_back_in_order_in_files_of_one_size(spool):
    written = [f"message {number} ä" for number in range(60)]
    for message in written:
        spool.append([message])
    assert messages(spool) == written
    assert len(spool.segments()) > 3
    assert all(path.stat().st_size <= 2000 for path in spool.segments())
    assert [record.number for _, record in spool.records()] == list(range(1, 61))
    assert next(record for _, record in spool.records()).previous == GENESIS
    assert verify(spool).records == 60
    assert findings(spool) == ()


def test_nobody_else_may_read_them(spool):
    for _ in range(30):
        spool.append(["m" * 100])
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()} == {0o600}


def test_several_records_go_in_together(spool):
    assert spool.append(["a", "b", "c"]) == 3
    assert messages(spool, spool.head()) == []
    assert messages(spool) == ["a", "b", "c"]


def test_processes_and_threads_write_one_chain(spool):
    processes = [writer(spool, f"p{number}", 40) for number in range(3)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: spool.append([f"t {number}"]), range(80)))
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = messages(spool)
    assert len(found) == 200
    for name in ("p0", "p1", "p2"):
        assert [text for text in found if text.startswith(name)] == [f"{name} {n}" for n in range(40)]
    assert findings(spool) == ()


def test_a_killed_writer_loses_no_record_that_it_was_told_of(spool):
    for turn in range(5):
        with writer(spool, f"k{turn}", 100_000) as process:
            told = [int(process.stdout.readline()) for _ in range(7 + turn)]
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        numbers = {record.number for _, record in spool.records()}
        assert set(told) <= numbers
    last = spool.append(["after"])
    assert [record.number for _, record in spool.records()] == list(range(1, last + 1))
    assert findings(spool) == ()


def test_what_a_killed_writer_left_half_is_cut_off(spool):
    spool.append(["one"])
    with spool.segments()[0].open("ab") as file:
        file.write(b'{"number":2,"prev')
    assert messages(spool) == ["one"]
    spool.append(["two"])
    assert messages(spool) == ["one", "two"]
    assert findings(spool) == ()


def test_what_a_killed_writer_wrote_without_saying_so_is_taken_in(spool):
    spool.append(["one"])
    before = (spool.folder / "head").read_bytes()
    spool.append(["two", "three"])
    (spool.folder / "head").write_bytes(before)
    spool.append(["four"])
    assert messages(spool) == ["one", "two", "three", "four"]
    assert findings(spool) == ()


def test_a_writer_killed_at_the_beginning_of_a_file(spool):
    while len(spool.segments()) < 2:
        before = (spool.folder / "head").read_bytes() if spool.segments() else b""
        spool.append(["m" * 200])
    (spool.folder / "head").write_bytes(before)
    last = spool.append(["after"])
    assert [record.number for _, record in spool.records()] == list(range(1, last + 1))
    assert findings(spool) == ()


@pytest.mark.parametrize("content", [None, b"", b"\0" * 107, b"nonsense\n"])
def test_a_lost_head_is_found_again(spool, content):
    spool.append(["one"])
    head = spool.folder / "head"
    head.unlink() if content is None else head.write_bytes(content)
    spool.append(["two"])
    assert messages(spool) == ["one", "two"]
    assert findings(spool) == ()


def test_a_lock_that_nobody_gives_back_is_not_waited_for(spool, monkeypatch):
    monkeypatch.setattr("dicom_node.audit.spool.LOCK_S", 0.01)
    spool.append(["one"])
    with spool._locked(), pytest.raises(SpoolBusy):
        spool.append(["two"])
    spool.append(["three"])
    assert messages(spool) == ["one", "three"]


def test_a_full_disk_takes_all_of_a_record_or_nothing(spool):
    spool.append(["one"])
    size = spool.segments()[0].stat().st_size
    with files_end_at(size + 50), pytest.raises(OSError, match="File too large"):
        spool.append(["two"])
    assert spool.segments()[0].stat().st_size == size
    spool.append(["three"])
    assert messages(spool) == ["one", "three"]
    assert findings(spool) == ()


def test_an_altered_record_is_named(spool):
    spool.append(["one", "two", "three"])
    content = lines(spool)
    put(spool, [content[0], content[1].replace(b"two", b"2.0"), content[2]])
    assert findings(spool) == ("record 2 is not what record 3 says: altered",)
    put(spool, [*content[:2], content[2].replace(b"three", b"3.000")])
    assert findings(spool) == ("record 3 is not what the head says: altered",)


def test_a_record_that_is_none_any_more_is_named(spool):
    spool.append(["one", "two", "three"])
    content = lines(spool)
    put(spool, [content[0], b"x" + content[1], content[2]])
    name = spool.segments()[0].name
    assert findings(spool) == (
        f"{name}, line 2: is no record: altered", "record 2 is not there: removed",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ([0, 2, 3], "record 2 is not there: removed"),
        ([0, 3], "records 2 to 3 are not there: removed"),
        ([1, 2, 3], "record 1 is not there: removed"),
        ([0, 1], "records 3 to 4 are not there: removed"),
        ([], "records 1 to 4 are not there: removed"),
    ],
)
def test_removed_records_are_named(spool, kept, words):
    spool.append(["one", "two", "three", "four"])
    content = lines(spool)
    put(spool, [content[number] for number in kept])
    assert findings(spool) == (words,)


def test_records_cut_off_at_the_end_stay_missing_when_the_trail_goes_on(spool):
    spool.append(["one", "two", "three"])
    content = lines(spool)
    put(spool, [*content[:2], content[2][:20]])
    spool.append(["four"])
    spool.append(["five"])
    name = spool.segments()[0].name
    assert findings(spool) == (
        f"{name}, line 3: is no record: altered", "record 3 is not there: removed",
    )  # fmt: skip
    assert messages(spool) == ["one", "two", "four", "five"]


def test_reordered_records_are_named(spool):
    spool.append(["one", "two", "three", "four"])
    content = lines(spool)
    put(spool, [content[number] for number in (0, 2, 1, 3)])
    assert findings(spool) == ("record 2 stands behind record 3: reordered",)


def test_a_record_that_stands_there_twice_is_named(spool):
    spool.append(["one", "two"])
    put(spool, [*lines(spool), lines(spool)[0]])
    assert set(findings(spool)) == {
        "record 1 stands behind record 2: reordered", "record 1 is there twice: added",
    }  # fmt: skip


def test_a_removed_file_is_named(spool):
    for _ in range(30):
        spool.append(["m" * 200])
    first, second = (int(path.stem) for path in spool.segments()[1:3])
    spool.segments()[1].unlink()
    assert findings(spool) == (f"records {first} to {second - 1} are not there: removed",)


def test_old_files_go_and_the_chain_is_whole(spool):
    for number in range(30):
        spool.append([f"{number} " + "m" * 200])
    old = spool.segments()[:3]
    for path in old:
        os.utime(path, (1, 1))
    assert spool.remove_before(1000.0, None) == 3
    assert [path.exists() for path in old] == [False] * 3
    assert findings(spool) == ()
    assert messages(spool)[-1].startswith("29 ")
    spool.segments()[0].unlink()
    assert re.fullmatch(r"records \d+ to \d+ are not there: removed", findings(spool)[0])


def test_what_was_not_sent_does_not_go(spool):
    for _ in range(30):
        spool.append(["m" * 200])
    for path in spool.segments():
        os.utime(path, (1, 1))
    assert spool.remove_before(1000.0, Mark()) == 0
    sent = Mark(int(spool.segments()[2].stem))
    assert spool.remove_before(1000.0, sent) == 2
    assert findings(spool) == ()
    assert spool.remove_before(1000.0, spool.head()) > 0
    assert len(spool.segments()) == 1  # the current one stays
    assert findings(spool) == ()
