"""The backup that deploy/README.md tells of, taken while instances come in, is sound when it is restored."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from storage.database import Database
from storage.files import DiskFiles
from storage.fsck import check
from storage.tables import Instance
from tests.faults.load import Instances, store_sender, stow_sender
from tests.faults.nodes import AE_TITLE, running_doors, until
from tests.faults.power_cut import data_set_digest
from tests.faults.zygote import Zygote


def back_up(home: Path, folder: Path) -> None:
    """The index first, then the files: what a row of the copy names is there when they are copied."""
    folder.mkdir()
    with (
        closing(sqlite3.connect(home / "node.sqlite")) as source,
        closing(sqlite3.connect(folder / "node.sqlite")) as target,
    ):
        source.backup(target, pages=16)
    shutil.copytree(home / "files" / "objects", folder / "files" / "objects")


def test_a_backup_taken_while_instances_come_in_is_sound(tmp_path: Path, zygote: Zygote):
    with running_doors(tmp_path, zygote) as doors:
        ledger = doors.ledger
        senders = [store_sender(doors.dimse_port, AE_TITLE, Instances(seed), ledger) for seed in range(4)]
        senders.append(stow_sender(doors.http_port, Instances(9), ledger))
        until(lambda: ledger.count >= 40, "instances")
        promised = dict(ledger.acknowledged)
        back_up(doors.home, tmp_path / "restored")
        copied = ledger.count
        until(lambda: ledger.count > copied, "instances after the backup")
        for sender in senders:
            sender.join()
    files = DiskFiles(tmp_path / "restored" / "files")
    database = Database(f"sqlite:///{tmp_path / 'restored' / 'node.sqlite'}")
    report = check(database, files)
    with database.reading() as tx:
        rows = {row[0]: row[1] for row in tx.execute(select(Instance.sop_instance_uid, Instance.path))}
    database.close()
    assert report.is_sound
    assert set(promised) <= set(rows)
    for uid, digest in promised.items():
        with files.open(rows[uid]) as file:
            assert data_set_digest(file.read()) == digest
    # What came between the two steps is a file without a row, and finds its way into the restored index.
    words = ("fsck", "--repair", "--home", str(tmp_path / "restored"))
    assert zygote.run(tmp_path / "fsck.out", *words) == 0
