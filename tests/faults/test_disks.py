"""Disks that are full or broken: said aloud, nothing acknowledged is lost, and the node recovers."""

import hashlib
import http.client
import os
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select

from storage.database import Database
from storage.files import DiskFiles
from storage.tables import Instance
from tests.faults.load import Broken
from tests.faults.nodes import Doors, running_doors, until
from tests.faults.power_cut import data_set_digest
from tests.faults.volume import NoVolume, memory_volume
from tests.faults.zygote import Zygote

FULL = 0xA700


@pytest.fixture
def mount() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def memory(mount: ExitStack, point: Path, options: str) -> Path:
    try:
        return mount.enter_context(memory_volume(point, options))
    except NoVolume as reason:
        pytest.skip(f"no volume can be filled here: {reason}")


def promised_is_kept(doors: Doors) -> None:
    """Every acknowledged instance is in the index, and its file has the bytes that were sent."""
    settings = doors.home / "files"
    database = Database(_url(doors))
    with database.reading() as tx:
        rows = {row[0]: row[1] for row in tx.execute(select(Instance.sop_instance_uid, Instance.path))}
    database.close()
    for uid, digest in doors.ledger.acknowledged.items():
        with DiskFiles(settings).open(rows[uid]) as file:
            assert data_set_digest(file.read()) == digest


def _url(doors: Doors) -> str:
    storage = tomllib.loads(doors.config.read_text()).get("storage", {})
    return str(storage.get("database_url", f"sqlite:///{doors.home / 'node.sqlite'}"))


def unfinished(doors: Doors) -> list[Path]:
    return list((doors.home / "files" / "incoming").glob("*.part"))


def store_until(doors: Doors, status: int, limit: int = 400) -> None:
    """Send until an instance is answered with `status`; every other answer is success."""
    for _ in range(limit):
        answer = doors.store()
        if answer == status:
            return
        assert answer == 0x0000, hex(answer)
    pytest.fail(f"{limit} instances were stored and none was answered with 0x{status:04X}")


def test_a_full_disk_of_files(tmp_path: Path, mount: ExitStack, zygote: Zygote):
    memory(mount, tmp_path / "node" / "files", "size=6m")
    with running_doors(tmp_path, zygote) as doors:
        ballast = doors.home / "files" / "ballast"
        ballast.write_bytes(bytes(4 << 20))
        store_until(doors, FULL)
        doors.echo()
        assert doors.get("/health/live")[0] == 200
        assert unfinished(doors) == []
        ballast.unlink()
        until(lambda: doors.store() == 0x0000, "room again")
        promised_is_kept(doors)


def test_a_disk_without_inodes(tmp_path: Path, mount: ExitStack, zygote: Zygote):
    memory(mount, tmp_path / "node" / "files", "size=64m,nr_inodes=120")
    with running_doors(tmp_path, zygote) as doors:
        store_until(doors, FULL)
        doors.echo()
        assert unfinished(doors) == []
        promised_is_kept(doors)


def test_a_full_disk_of_the_index(tmp_path: Path, mount: ExitStack, zygote: Zygote):
    index = memory(mount, tmp_path / "index", "size=4m")
    storage = {"database_url": f"sqlite:///{index / 'node.sqlite'}"}
    with running_doors(tmp_path, zygote, storage=storage) as doors:
        assert doors.store() == 0x0000
        ballast = index / "ballast"
        free = os.statvfs(index)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - (64 << 10)))
        store_until(doors, FULL)
        doors.echo()
        ballast.unlink()
        until(lambda: doors.store() == 0x0000, "room again")
        promised_is_kept(doors)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail; needs a C compiler."""
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    except FileNotFoundError:
        pytest.skip("no gcc: the calls of the disk cannot be made to fail")
    return library


@pytest.fixture
def faulty(tmp_path: Path, shim: Path) -> Iterator[tuple[Doors, Path, Path]]:
    """Doors on a disk that can fail, the file that orders it to, and the list of what failed."""
    control, failed = tmp_path / "control", tmp_path / "failed"
    environment = {
        "LD_PRELOAD": str(shim),
        "FAULT_FOLDER": str(tmp_path / "node" / "files"),
        "FAULT_CONTROL": str(control),
        "FAULT_LOG": str(failed),
    }
    with Zygote(environment=environment) as zygote, running_doors(tmp_path, zygote) as doors:
        yield doors, control, failed


def is_refused(doors: Doors) -> bool:
    try:
        return doors.store() == FULL
    except Broken:
        return True


def test_an_fsync_that_fails_is_never_tried_again_and_the_node_is_not_ready(
    faulty: tuple[Doors, Path, Path],
):
    doors, control, failed = faulty
    assert doors.store() == 0x0000
    instance = doors.make()
    control.write_text("fsync")
    assert doors.store(instance) == FULL
    control.unlink()
    asked = failed.read_text().splitlines()
    assert asked
    assert len(asked) == len(set(asked)), asked  # by one process: another has its own journal
    # The disk says yes again, and is not trusted: refused by status, or with the association.
    # (Another receiving process hears of it a moment later; what it flushes until then is flushed.)
    until(lambda: is_refused(doors), "all processes to refuse")
    assert any("fsync" in problem for problem in doors.problems())
    assert doors.get("/health/live")[0] == 200
    # After a restart, which is what the sentence asks for, the same instance is taken.
    doors.zygote.kill_all()
    for report in (doors.home / "run").glob("readiness-fsync*"):
        report.unlink()  # as `serve` does at its start
    doors.start()
    assert doors.store(instance) == 0x0000
    promised_is_kept(doors)


def test_a_file_that_cannot_be_read_is_one_failure_and_not_the_nodes(faulty: tuple[Doors, Path, Path]):
    doors, control, _ = faulty
    uid, data_set = doors.make()
    assert doors.store((uid, data_set)) == 0x0000
    study = uid.rsplit(".", 1)[0]
    path = f"/dicom-web/studies/{study}/series/{study}.2/instances/{uid}"
    control.write_text("read")
    try:
        status, _ = doors.get(path)
    except http.client.HTTPException:
        status = 0  # an answer that had begun is broken off, never filled up
    assert status != 200
    fsck = doors.zygote.run(doors.log, *doors.words("fsck", "--json"))
    assert fsck == 1, "fsck says that a file is unreadable"
    doors.echo()
    control.unlink()
    status, body = doors.get(path)
    assert (status, data_set_digest(body)) == (200, hashlib.sha256(data_set).hexdigest())
    assert doors.zygote.run(doors.log, *doors.words("fsck")) == 0
    promised_is_kept(doors)
