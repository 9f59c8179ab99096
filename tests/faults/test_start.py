"""A start that is killed again and again: recovery has no state of its own that could break."""

import random
import time
from pathlib import Path

from sqlalchemy import select

from storage.database import Database
from storage.files import DiskFiles
from storage.tables import Instance
from tests.faults.load import part10
from tests.faults.nodes import running_doors, until
from tests.faults.zygote import Zygote

KILLS = 12


def test_a_start_killed_at_any_moment_loses_nothing_and_ends_its_recovery(tmp_path: Path, zygote: Zygote):
    chance = random.Random(11)
    with running_doors(tmp_path, zygote) as doors:
        assert [doors.store() for _ in range(5)] == [0x0000] * 5
        zygote.kill_all()
        orphan, data_set = doors.make()
        with DiskFiles(doors.home / "files").new_incoming() as incoming:
            incoming.write(part10(orphan, data_set))
            incoming.keep()
        for _ in range(KILLS):
            for command in ("scp", "web", "sweep"):
                zygote.spawn(doors.log, *doors.words(command))
            time.sleep(chance.uniform(0, 1))
            zygote.kill_all()
        doors.start("scp", "web", "sweep")
        database = Database(f"sqlite:///{doors.home / 'node.sqlite'}")

        def known() -> set[str]:
            with database.reading() as tx:
                return set(tx.scalars(select(Instance.sop_instance_uid)))

        until(lambda: orphan in known(), "the file without a row to be entered")
        assert known() == {*doors.ledger.acknowledged, orphan}
        assert doors.store() == 0x0000
        assert zygote.run(doors.log, *doors.words("fsck")) == 0
        database.close()
