"""Rows against files: everything that can be wrong is found, and nothing else."""

import os
from pathlib import Path

import pytest

from storage import fsck
from storage.files import DiskFiles
from storage.fsck import check
from storage.index import find_instance, index_instance
from tests.storage.builders import Archive, keep, make_dataset


def path_of(archive: Archive, sop: str) -> Path:
    with archive.db.reading() as tx:
        instance = find_instance(tx, make_dataset(sop).SOPInstanceUID)
    assert instance is not None
    return archive.files_root / instance.path


def relative(archive: Archive, path: Path) -> str:
    return path.relative_to(archive.files_root).as_posix()


def test_an_empty_archive_is_sound(archive: Archive):
    report = check(archive.db, DiskFiles(archive.files_root))
    assert (report.instances, report.is_sound) == (0, True)


def test_what_was_received_is_sound(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsck, "_BATCH", 2)
    for sop in range(5):
        archive.receive(make_dataset(str(sop)))
    report = check(archive.db, DiskFiles(archive.files_root))
    assert report.instances == 5
    assert report.is_sound
    assert (report.missing, report.digest_mismatch, report.orphans) == ([], [], [])


def test_a_missing_file_is_found(archive: Archive):
    archive.receive(make_dataset("1"))
    archive.receive(make_dataset("2"))
    lost = path_of(archive, "1")
    lost.unlink()
    report = check(archive.db, DiskFiles(archive.files_root))
    assert report.missing == [relative(archive, lost)]
    assert not report.is_sound


@pytest.mark.parametrize("content", [b"", b"x", b"first, and more"])
def test_changed_content_is_found(archive: Archive, content: bytes):
    archive.receive(make_dataset("1"), b"first")
    changed = path_of(archive, "1")
    changed.write_bytes(content)
    report = check(archive.db, DiskFiles(archive.files_root))
    assert report.digest_mismatch == [relative(archive, changed)]
    assert not report.is_sound


def test_a_file_that_no_row_refers_to_is_only_waste(archive: Archive):
    archive.receive(make_dataset("1"))
    stored = keep(archive.files_root, b"written, but never indexed")
    stranger = archive.files_root / "objects" / "README"
    stranger.write_text("not ours")
    report = check(archive.db, DiskFiles(archive.files_root))
    assert report.orphans == sorted(["objects/README", stored.path])
    assert report.is_sound


def test_quarantined_content_is_no_orphan_and_is_checked_too(archive: Archive):
    archive.receive(make_dataset("1"), b"first")
    archive.receive(make_dataset("1"), b"second")
    report = check(archive.db, DiskFiles(archive.files_root))
    assert (report.orphans, report.is_sound) == ([], True)
    (second,) = [path for path in archive.files_root.rglob("*.dcm") if path.read_bytes() == b"second"]
    second.unlink()
    assert check(archive.db, DiskFiles(archive.files_root)).missing == [relative(archive, second)]


def test_an_incoming_file_is_stale_after_an_hour(archive: Archive):
    archive.receive(make_dataset("1"))
    for name, age_s in (("old", 4000), ("young", 10)):
        path = archive.files_root / "incoming" / f"{name}.part"
        path.write_bytes(b"half")
        written_at = path.stat().st_mtime - age_s
        os.utime(path, (written_at, written_at))
    assert check(archive.db, DiskFiles(archive.files_root)).stale_incoming == ["incoming/old.part"]


def test_lists_are_bounded_and_counts_are_not(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsck, "_MAX_LISTED", 2)
    for number in range(5):
        keep(archive.files_root, b"orphan %d" % number)
    report = check(archive.db, DiskFiles(archive.files_root))
    assert (len(report.orphans), report.counts["orphans"]) == (2, 5)


def test_a_file_that_the_disk_does_not_give_is_unreadable(archive: Archive):
    archive.receive(make_dataset("1"))
    path = path_of(archive, "1")
    path.unlink()
    path.symlink_to(archive.files_root / "elsewhere")  # opened with O_NOFOLLOW: ELOOP for everybody, root too
    report = check(archive.db, DiskFiles(archive.files_root))
    assert report.unreadable == [relative(archive, path)]
    assert not report.is_sound


def test_a_row_that_comes_while_we_look_makes_no_orphan(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    """The file is there before its row: a look between the two must not call it an orphan."""
    record = archive.record(make_dataset("1"))
    real = fsck.unreferenced

    def look_then_commit(db, batch):
        found = real(db, batch)
        with archive.db.transaction() as tx:
            index_instance(tx, record)
        return found

    monkeypatch.setattr(fsck, "unreferenced", look_then_commit)
    assert check(archive.db, DiskFiles(archive.files_root)).orphans == []


def test_progress_is_told(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsck, "_BATCH", 2)
    for sop in range(5):
        archive.receive(make_dataset(str(sop)))
    told: list[tuple[str, int]] = []
    check(archive.db, DiskFiles(archive.files_root), lambda what, count: told.append((what, count)))
    assert told == [("rows", 2), ("rows", 4), ("files", 2), ("files", 4), ("files", 5)]
