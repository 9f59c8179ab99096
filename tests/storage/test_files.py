"""Stores of files: the same promises whatever they are made of."""

import os
from pathlib import Path

import pytest

from storage.errors import InstanceMissing, PathRefused
from storage.files import DiskFiles, FileStore
from storage.part10 import StoredFile
from storage.s3 import S3Files


@pytest.fixture(params=["disk", "s3"])
def files(request: pytest.FixtureRequest, files_root: Path) -> FileStore:
    if request.param == "disk":
        return DiskFiles(files_root)
    return S3Files(files_root, request.getfixturevalue("bucket"))


def keep(files: FileStore, content: bytes) -> StoredFile:
    with files.new_incoming() as incoming:
        incoming.write(content)
        return incoming.keep()


def test_what_is_kept_is_read_at_any_place(files: FileStore):
    stored = keep(files, bytes(range(256)) * 1000)
    assert stored.size_bytes == 256_000
    with files.open(stored.path) as file:
        assert file.read(3) == b"\0\1\2"
        assert file.seek(255_999) == 255_999
        assert file.read() == b"\xff"
        assert file.read(1) == b""
        file.seek(-256, os.SEEK_END)
        assert file.read(2) == b"\0\1"
        assert file.tell() == 255_746


def test_a_local_copy_lasts_as_long_as_the_block(files: FileStore):
    stored = keep(files, b"content")
    with files.local(stored.path) as path:
        assert path.read_bytes() == b"content"
    with files.open(stored.path) as file:
        assert file.read() == b"content"


def test_keeping_twice_is_keeping_once(files: FileStore):
    assert keep(files, b"same") == keep(files, b"same")
    assert len(list(files.walk())) == 1


def test_walk_finds_everything_in_the_order_of_paths(files: FileStore):
    stored = sorted(keep(files, b"%d" % number).path for number in range(40))
    found = list(files.walk())
    assert [one.path for one in found] == stored
    assert {one.size_bytes for one in found} == {1, 2}
    assert files.find(stored[0]) == found[0]


def test_an_empty_store(files: FileStore):
    assert list(files.walk()) == []


def test_what_is_not_there(files: FileStore):
    path = keep(files, b"content").path
    files.delete(path)
    files.delete(path)
    assert not files.exists(path)
    assert files.find(path) is None
    with pytest.raises(InstanceMissing):
        files.open(path)
    with pytest.raises(InstanceMissing), files.local(path):
        pass
    assert list(files.walk()) == []


@pytest.mark.parametrize("path", ["../secret", "objects/../x", "/etc/passwd", "incoming/a.part", ""])
def test_a_path_that_was_not_handed_out_is_refused(files: FileStore, path: str):
    for use in (files.open, files.exists, files.find, files.delete, files.set_aside):
        with pytest.raises(PathRefused):
            use(path)
    with pytest.raises(PathRefused), files.local(path):
        pass


def test_what_is_set_aside_is_kept_and_no_longer_found(files: FileStore):
    path = keep(files, b"content").path
    first = files.set_aside(path)
    assert not files.exists(path)
    assert keep(files, b"content").path == path
    second = files.set_aside(path)
    assert first != second
    assert {one.split("/")[0] for one in (first, second)} == {"set-aside"}
    assert list(files.walk()) == []


def test_what_is_ruled_about_a_file_lasts_as_long_as_the_file(files: FileStore):
    stored = [keep(files, content).path for content in (b"one", b"two")]
    files.add_ruling(stored[0], "1 first\n")
    files.add_ruling(stored[0], "2 second\n")
    assert [files.ruling(path) for path in stored] == ["1 first\n2 second\n", ""]
    assert dict(files.rulings()) == {Path(stored[0]).stem: "1 first\n2 second\n"}
    assert sorted(found.path for found in files.walk()) == sorted(stored)
    files.delete(stored[0])
    assert list(files.rulings()) == []


def test_nothing_incoming_is_left(files: FileStore):
    keep(files, b"kept")
    with files.new_incoming() as incoming:
        incoming.write(b"dropped")
    assert list(files.spool.rglob("*.part")) == []
