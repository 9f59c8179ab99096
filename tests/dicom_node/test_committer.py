"""Group commit: who waits is committed together, and nobody fails for the fault of another."""

import threading
import time

import pytest

from dicom_node.committer import Committer, Entry
from storage.errors import DatabaseRefused, StorageFull
from storage.files import DiskFiles
from storage.index import IndexResult, find_instance
from storage.part10 import new_incoming
from storage.records import Origin, record_from_dataset
from tests.dicom_node.dimse.instances import make_image, part10


class Batches(DiskFiles):
    """A store that tells how many files were kept at once, and waits at the first time."""

    def __init__(self, root):
        super().__init__(root)
        self.sizes = []
        self.may_go_on = threading.Event()

    def keep_all(self, incoming, *, is_journaled=False):
        self.sizes.append(len(incoming))
        if len(self.sizes) == 1:
            assert self.may_go_on.wait(30)
        return super().keep_all(incoming, is_journaled=is_journaled)


@pytest.fixture
def files(files_root):
    return Batches(files_root)


@pytest.fixture
def commit_many(files, files_root, database):
    """A function that commits `count` instances at once; gives results or errors by their UID."""
    committer, outcomes, threads = Committer(database, files), {}, []

    def commit(image):
        with new_incoming(files_root) as incoming:
            incoming.write(part10(image))
            record = record_from_dataset(image, incoming.seal(), Origin("DIMSE", "TEST"))
            entry = Entry(incoming, record)
            committer.commit([entry])
            outcomes[str(image.SOPInstanceUID)] = entry.result or entry.error

    def run(images):
        for image in images:
            threads.append(threading.Thread(target=commit, args=(image,)))
            threads[-1].start()
        deadline = time.monotonic() + 30
        while len(committer._waiting) < len(images) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        files.may_go_on.set()
        for thread in threads:
            thread.join()
        return outcomes

    return run


def test_who_waits_is_committed_together(commit_many, files, database):
    images = [make_image() for _ in range(9)]
    outcomes = commit_many(images)
    assert set(outcomes.values()) == {IndexResult.NEW}
    assert files.sizes == [1, 8]
    with database.reading() as tx:
        assert all(find_instance(tx, str(image.SOPInstanceUID)) for image in images)


def test_one_that_the_database_refuses_fails_alone(commit_many, monkeypatch):
    images = [make_image() for _ in range(5)]
    bad = str(images[2].SOPInstanceUID)
    from dicom_node import committer

    index = committer.index_instances

    def refuse_one(tx, records):
        if any(record.sop_instance_uid == bad for record in records):
            raise DatabaseRefused("this one")
        return index(tx, records)

    monkeypatch.setattr(committer, "index_instances", refuse_one)
    outcomes = commit_many(images)
    assert isinstance(outcomes.pop(bad), DatabaseRefused)
    assert set(outcomes.values()) == {IndexResult.NEW}


def test_a_full_disk_fails_all_and_the_next_ones_go_on(commit_many, files, monkeypatch):
    def full(_incoming, **_options):
        files.sizes.append(0)
        assert files.may_go_on.wait(30)
        raise StorageFull("no room")

    monkeypatch.setattr(files, "keep_all", full)
    outcomes = commit_many([make_image() for _ in range(4)])
    assert {type(outcome) for outcome in outcomes.values()} == {StorageFull}
    monkeypatch.undo()
    files.may_go_on.set()
    assert IndexResult.NEW in commit_many([make_image()]).values()
