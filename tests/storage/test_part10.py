"""Part 10 files: durable in the right order, refused when the disk refuses, read back only from here."""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.errors import InstanceMissing, NotDurable, PathRefused, StorageFull, StorageUnavailable
from storage.files import DiskFiles
from storage.part10 import absolute, discard_stale, keep_all, new_incoming, open_file, stale_incoming
from tests.storage.builders import keep

CONTENT = b"\0" * 128 + b"DICM and a data set"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OBJECT = f"objects/{SHA256[:2]}/{SHA256}.dcm"
EARLIER_OBJECT = f"objects/{SHA256[:2]}/{SHA256[2:4]}/{SHA256}.dcm"


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, files_root: Path) -> list[tuple[str, str]]:
    """What is fsynced and renamed, in order, relative to files_root."""
    recorded: list[tuple[str, str]] = []
    fsync, rename, mkdir = os.fsync, os.rename, os.mkdir

    def relative(path: Any) -> str:
        name = Path(path).relative_to(files_root).as_posix()
        return "a .part file" if name.endswith(".part") else name

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        recorded.append(("fsync", relative(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def record_rename(source: Any, target: Any) -> None:
        rename(source, target)
        recorded.append(("rename", relative(target)))

    def record_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        mkdir(path, *arguments, **options)
        recorded.append(("mkdir", relative(path)))

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    monkeypatch.setattr(os, "mkdir", record_mkdir)
    return recorded


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, when: Callable[[Any], bool]
) -> list[Any]:
    """Let os.`name` fail with `number` when its first argument is so; returns those arguments."""
    original = getattr(os, name)
    failed: list[Any] = []

    def call(first: Any, *arguments: Any, **options: Any) -> Any:
        if when(first):
            failed.append(first)
            raise OSError(number, os.strerror(number), "a secret path")
        return original(first, *arguments, **options)

    monkeypatch.setattr(os, name, call)
    return failed


def is_part(descriptor: int) -> bool:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".part")


def test_a_kept_file_lies_at_its_content_address(files_root: Path):
    with new_incoming(files_root) as incoming:
        incoming.write(CONTENT[:100])
        incoming.write(memoryview(CONTENT)[100:])
        assert incoming.size_bytes == len(CONTENT)
        stored = incoming.keep()
    assert (stored.path, stored.sha256, stored.size_bytes) == (OBJECT, SHA256, len(CONTENT))
    assert files_below(files_root) == [OBJECT]
    with open_file(files_root, stored.path) as file:
        assert file.read() == CONTENT


def test_only_this_user_may_read_files_and_folders(files_root: Path):
    path = absolute(files_root, keep(files_root, CONTENT).path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in list(path.parents)[:2]} == {0o700}


def test_the_order_survives_a_power_cut_at_any_point(files_root: Path, calls: list[tuple[str, str]]):
    keep(files_root, CONTENT)
    folder = f"objects/{SHA256[:2]}"
    assert calls == [
        ("mkdir", "incoming"),
        ("fsync", "."),
        ("fsync", "a .part file"),
        ("mkdir", "objects"),
        ("fsync", "."),
        *(("mkdir", f"objects/{number:02x}") for number in range(256)),
        ("fsync", "objects"),
        ("rename", OBJECT),
        ("fsync", folder),
    ]


def test_files_kept_together_share_the_fsync_of_their_folder(files_root: Path, calls: list[tuple[str, str]]):
    contents = [
        content
        for number in range(2000)
        if is_beside(content := CONTENT + bytes([number % 256, number >> 8]))
    ]
    assert len(contents) > 1
    keep(files_root, CONTENT)
    calls.clear()
    incoming = [new_incoming(files_root) for _ in contents]
    for each, content in zip(incoming, contents, strict=True):
        each.write(content)
    stored = keep_all(files_root, incoming)
    assert [absolute(files_root, each.path).read_bytes() for each in stored] == contents
    kinds = [kind for kind, _name in calls]
    assert kinds == ["fsync"] * len(contents) + ["rename"] * len(contents) + ["fsync"]
    assert calls[-1] == ("fsync", f"objects/{SHA256[:2]}")


def is_beside(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest()[:2] == SHA256[:2]


def test_one_of_several_that_cannot_be_kept_takes_none_with_it_by_halves(
    files_root: Path, monkeypatch: pytest.MonkeyPatch
):
    incoming = [new_incoming(files_root) for _ in range(3)]
    for number, each in enumerate(incoming):
        each.write(CONTENT + bytes([number]))
    failing(monkeypatch, "fsync", errno.EIO, is_part)
    with pytest.raises(NotDurable):
        keep_all(files_root, incoming)
    assert files_below(files_root) == []


def test_a_file_of_an_earlier_version_is_found_one_folder_deeper(files_root: Path):
    path = absolute(files_root, EARLIER_OBJECT)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with open_file(files_root, EARLIER_OBJECT) as file:
        assert file.read() == CONTENT
    (found,) = DiskFiles(files_root).walk()
    assert found.path == EARLIER_OBJECT


def test_known_folders_are_not_fsynced_again(files_root: Path, calls: list[tuple[str, str]]):
    keep(files_root, CONTENT)
    calls.clear()
    keep(files_root, CONTENT)
    folder = str(Path(OBJECT).parent)
    assert calls == [("fsync", "a .part file"), ("rename", OBJECT), ("fsync", folder)]


def test_a_missing_root_is_made_durable_as_well(tmp_path: Path):
    root = tmp_path / "home" / "files"
    keep(root, CONTENT)
    assert files_below(root) == [OBJECT]


@pytest.mark.parametrize("is_broken", [False, True])
def test_what_is_not_kept_is_gone(files_root: Path, is_broken: bool):
    def receive() -> None:
        with new_incoming(files_root) as incoming:
            incoming.write(CONTENT)
            if is_broken:
                raise ConnectionResetError

    if is_broken:
        with pytest.raises(ConnectionResetError):
            receive()
    else:
        receive()
    assert files_below(files_root) == []


def test_a_reader_sees_what_arrived_so_far(files_root: Path):
    with new_incoming(files_root) as incoming:
        incoming.write(CONTENT)
        with incoming.reader() as file:
            assert file.read() == CONTENT
        incoming.write(b"more")
        assert incoming.keep().sha256 == hashlib.sha256(CONTENT + b"more").hexdigest()


def test_the_same_content_from_several_threads_is_one_file(files_root: Path):
    barrier = threading.Barrier(8)
    paths: list[str] = []

    def receive() -> None:
        barrier.wait()
        paths.append(keep(files_root, CONTENT).path)

    threads = [threading.Thread(target=receive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [OBJECT] * 8
    assert files_below(files_root) == [OBJECT]


def test_a_full_disk_is_storage_full_and_leaves_nothing(files_root: Path, monkeypatch: pytest.MonkeyPatch):
    open_descriptor = os.open

    def open_full(path: Any, flags: int, *arguments: Any) -> int:
        is_incoming = str(path).endswith(".part")
        return (
            open_descriptor("/dev/full", os.O_WRONLY)
            if is_incoming
            else open_descriptor(path, flags, *arguments)
        )

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(StorageFull, match="free disk space"), new_incoming(files_root) as incoming:
        incoming.write(bytes(10 * 2**20))  # more than any buffer
    with pytest.raises(StorageFull):
        keep(files_root, CONTENT)  # fits the buffer: only keeping it finds out
    assert files_below(files_root) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["rename", "mkdir"])
def test_no_room_for_a_name_is_storage_full(
    files_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
):
    with new_incoming(files_root) as incoming:
        incoming.write(CONTENT)
        assert failing(monkeypatch, name, number, lambda _: True) == []
        with pytest.raises(StorageFull):
            incoming.keep()
    assert files_below(files_root) == []


def test_no_room_found_by_fsync_is_storage_full(files_root: Path, monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, "fsync", errno.EDQUOT, is_part)
    with pytest.raises(StorageFull):
        keep(files_root, CONTENT)
    assert files_below(files_root) == []


def test_an_fsync_error_is_never_tried_again(files_root: Path, monkeypatch: pytest.MonkeyPatch):
    failed = failing(monkeypatch, "fsync", errno.EIO, is_part)
    with pytest.raises(NotDurable, match="EIO") as caught:
        keep(files_root, CONTENT)
    assert len(failed) == 1
    assert "secret" not in str(caught.value)
    assert files_below(files_root) == []


def test_a_folder_that_cannot_be_fsynced_keeps_nothing_for_sure(
    files_root: Path, monkeypatch: pytest.MonkeyPatch
):
    keep(files_root, CONTENT)  # the folders are there
    failed = failing(monkeypatch, "fsync", errno.EIO, lambda descriptor: not is_part(descriptor))
    with pytest.raises(NotDurable):
        keep(files_root, CONTENT)
    assert len(failed) == 1


def test_a_disk_that_refuses_is_unavailable(files_root: Path, monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, "open", errno.EROFS, lambda path: str(path).endswith(".part"))
    with pytest.raises(StorageUnavailable, match="EROFS") as caught, new_incoming(files_root) as incoming:
        incoming.write_out()
    assert not isinstance(caught.value, StorageFull)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../files/secret",
        "objects/../../etc/passwd",
        f"objects/aa/bb/{SHA256}.dcm",  # not where its digest belongs
        f"/{OBJECT}",
        f"{OBJECT}\n",
        f"{OBJECT}/..",
        f"x/{OBJECT}",
        OBJECT.replace("objects", "incoming"),
        OBJECT.upper(),
        OBJECT.replace(SHA256, "1.2.840.10008"),
    ],
)
def test_only_paths_that_were_handed_out_are_opened(files_root: Path, path: str):
    with pytest.raises(PathRefused):
        absolute(files_root, path)
    with pytest.raises(PathRefused):
        open_file(files_root, path)


def test_a_link_in_place_of_a_file_is_not_followed(files_root: Path):
    secret = files_root / "secret"
    secret.write_text("secret")
    path = absolute(files_root, keep(files_root, CONTENT).path)
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(StorageUnavailable, match="ELOOP"):
        open_file(files_root, OBJECT)


def test_a_missing_file_says_what_to_run(files_root: Path):
    with pytest.raises(InstanceMissing, match="dicom-node fsck"):
        open_file(files_root, OBJECT)


def test_what_a_killed_process_left_is_discarded_and_nothing_else(files_root: Path):
    keep(files_root, CONTENT)
    left = files_root / "incoming" / "left.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    with new_incoming(files_root) as incoming:
        incoming.write(CONTENT)
        assert stale_incoming(files_root, 60) == [left]
        assert discard_stale(files_root, 60) == 1
        incoming.keep()
    assert files_below(files_root) == [OBJECT]


def test_discarding_before_anything_arrived_finds_nothing(tmp_path: Path):
    assert discard_stale(tmp_path / "files", 0) == 0
