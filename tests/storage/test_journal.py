"""The journal: durable by a flush of its own, and made into files again after the death of its process."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from storage import durable, journal
from storage.errors import NotDurable
from storage.journal import Journal
from storage.journal_format import JOURNAL, MAX_RECORDS, Record
from storage.journal_recovery import left_behind
from storage.part10 import IncomingFile, absolute, new_incoming, own_pages

NOTE = {"kind": "DIMSE", "detail": "SCANNER"}


def coming(files_root: Path, content: bytes) -> IncomingFile:
    incoming = new_incoming(files_root)
    incoming.write(content)
    return incoming


def record(incoming: IncomingFile) -> Record:
    assert incoming.pages is not None
    return Record(incoming.complete(), NOTE, incoming.pages)


def write(files_root: Path, held: Journal, *contents: bytes) -> None:
    """Write to the journal, and nowhere else."""
    incoming = [coming(files_root, content) for content in contents]
    with held.batch([record(each) for each in incoming]) as is_durable:
        assert is_durable
    for each in incoming:
        each.discard()


def die(held: Journal) -> Path:
    """What is left of a journal whose process was killed."""
    held._settle = lambda: None
    held._closer()
    return held._path


@pytest.fixture
def quiet(monkeypatch):
    """Nothing is emptied because of the time that passes."""
    monkeypatch.setattr(journal, "IDLE_S", 3600)


@pytest.fixture
def held(files_root, tmp_path, quiet):
    held = Journal(files_root, tmp_path)
    yield held
    held._settler = None
    held.close()


def test_nothing_is_said_before_the_flush(files_root, held, monkeypatch):
    told = []
    pwritev, fdatasync = os.pwritev, os.fdatasync
    monkeypatch.setattr(os, "pwritev", lambda *words: told.append("write") or pwritev(*words))
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: told.append("flush") or fdatasync(descriptor))
    with held.batch([record(coming(files_root, b"one")), record(coming(files_root, b"two"))]):
        told.append("answer")
    assert told == ["write", "flush", "answer"]


def test_what_a_dead_process_left_is_made_again_in_its_order(files_root, held):
    contents = [bytes([number]) * (5000 * number + 1) for number in range(4)]
    write(files_root, held, *contents[:3])
    write(files_root, held, contents[3])
    die(held)
    with left_behind(files_root) as left:
        assert [absolute(files_root, each.stored.path).read_bytes() for each in left] == contents
        assert {tuple(each.note.items()) for each in left} == {tuple(NOTE.items())}
    with left_behind(files_root) as left:
        assert left == []
    assert not list((files_root / JOURNAL).glob("*.journal"))


def test_a_part_of_a_file_under_its_name_is_replaced(files_root, held):
    write(files_root, held, b"whole")
    incoming = coming(files_root, b"whole")
    target = absolute(files_root, incoming.complete().path)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"who")
    incoming.discard()
    die(held)
    with left_behind(files_root):
        assert target.read_bytes() == b"whole"


def test_a_torn_record_and_what_follows_it_count_for_nothing(files_root, held):
    write(files_root, held, b"first")
    write(files_root, held, b"second")
    write(files_root, held, b"third")
    path = die(held)
    with path.open("r+b") as file:
        file.seek(3 * 4096)  # the second's content
        file.write(b"sECOND")
    with left_behind(files_root) as left:
        assert [absolute(files_root, each.stored.path).read_bytes() for each in left] == [b"first"]


def test_nobody_touches_the_journal_of_a_living_process(files_root, held):
    write(files_root, held, b"alive")
    with left_behind(files_root) as left:
        assert left == []
    assert held._path.exists()


@pytest.mark.parametrize(("index", "syncs"), [(None, 1), (Path("/dev/shm"), 2)], ids=["one disk", "two"])
def test_a_segment_is_forgotten_only_after_everything_was_synced(
    files_root, tmp_path, monkeypatch, index, syncs
):
    monkeypatch.setattr(journal, "IDLE_S", 3600)
    told, held = [], Journal(files_root, index or tmp_path)
    sync, pwrite = durable.FileSystem.sync, os.pwrite
    monkeypatch.setattr(durable.FileSystem, "sync", lambda self: told.append("sync") or sync(self))
    monkeypatch.setattr(os, "pwrite", lambda *words: told.append("forget") or pwrite(*words))
    long = bytes(1 << 20)
    for _ in range(3):  # each batch nearly fills a segment
        write(files_root, held, *[long] * MAX_RECORDS)
    assert held._is_empty[1 - held._segment].wait(30)
    once = [*["sync"] * syncs, "forget"]
    assert told
    assert told == once * (len(told) // len(once))
    held.close()


def test_a_rest_leaves_nothing_to_be_made_again(files_root, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "IDLE_S", 0.01)
    held = Journal(files_root, tmp_path)
    write(files_root, held, b"one")
    settler = held._settler
    assert settler is not None
    settler.join(30)
    write(files_root, held, b"two")  # and it goes on afterwards
    held.close()
    assert not list((files_root / JOURNAL).glob("*.journal"))


def test_after_a_flush_that_failed_nothing_is_taken_any_more(files_root, held, monkeypatch):
    def fail(_descriptor):
        raise OSError(errno.EIO, "no")

    write(files_root, held, b"good")
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(NotDurable):
        write(files_root, held, b"bad")
    monkeypatch.undo()
    with pytest.raises(NotDurable):
        write(files_root, held, b"good again")


def test_what_cannot_be_synced_is_not_forgotten(files_root, held, monkeypatch):
    def fail(_self):
        raise NotDurable

    write(files_root, held, b"kept")
    monkeypatch.setattr(durable.FileSystem, "sync", fail)
    held._empty(held._segment)
    with pytest.raises(NotDurable):
        write(files_root, held, b"more")
    die(held)
    monkeypatch.undo()
    with left_behind(files_root) as left:
        assert len(left) == 1


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_without_room_for_a_journal_the_caller_does_without(files_root, tmp_path, monkeypatch, why):
    def fail(*_words):
        raise OSError(why, "no")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with Journal(files_root, tmp_path).batch([record(coming(files_root, b"one"))]) as is_durable:
        assert not is_durable
    assert not list((files_root / JOURNAL).glob("*.journal"))


def test_memory_of_a_block_is_not_shared_with_a_forked_child():
    pages = own_pages(4096)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            pages[:5] = b"child"
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(pages[:5]) == bytes(5)
