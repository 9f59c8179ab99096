"""A database that is killed, hangs, is slow, or loses its answer: refused aloud, never lost, never twice."""

import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from dicom_node.completion import complete_studies
from dicom_node.settings import load_settings
from storage.database import Database
from storage.tables import Instance, Job, Study
from tests.faults.load import Broken, Instances, StoreConnection, store_sender
from tests.faults.nodes import AE_TITLE, Doors, running_doors, until
from tests.faults.power_cut import data_set_digest
from tests.faults.proxy import Proxy
from tests.faults.stages import DurablePostgres, running_postgres
from tests.faults.zygote import Zygote
from tests.flow.nodes import find_free_port
from tests.storage.postgresql_server import memory_folder

REFUSED = 0xA700


@pytest.fixture
def postgres() -> Iterator[tuple[DurablePostgres, int]]:
    """A server of one's own on a TCP port of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="node-pg-", dir=memory_folder()))
    folder.chmod(0o755)
    port = find_free_port()
    try:
        with running_postgres(folder, port) as server:
            yield server, port
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def proxy(postgres: tuple[DurablePostgres, int]) -> Iterator[Proxy]:
    with Proxy(postgres[1]) as made:
        yield made


@pytest.fixture
def doors(tmp_path: Path, proxy: Proxy, zygote: Zygote) -> Iterator[Doors]:
    """A node whose database is behind the proxy."""
    url = f"postgresql://node@127.0.0.1:{proxy.port}/node?sslmode=disable&gssencmode=disable"
    with running_doors(tmp_path, zygote, storage={"database_url": url, "database_answer_s": 3.0}) as running:
        yield running


def database_of(doors: Doors) -> Database:
    return Database(load_settings(doors.home, doors.config).storage.database_url)


def promised_is_kept(doors: Doors) -> None:
    database = database_of(doors)
    with database.reading() as tx:
        rows = {row[0]: row[1] for row in tx.execute(select(Instance.sop_instance_uid, Instance.path))}
    database.close()
    for uid, digest in doors.ledger.acknowledged.items():
        assert data_set_digest((doors.home / "files" / rows[uid]).read_bytes()) == digest


def test_a_database_killed_in_the_middle_of_commits(doors: Doors, postgres: tuple[DurablePostgres, int]):
    server, chance = postgres[0], random.Random(7)
    for crash in range(6):
        senders = [
            store_sender(doors.dimse_port, AE_TITLE, Instances(100 * crash + number), doors.ledger)
            for number in range(4)
        ]
        before = doors.ledger.count
        until(lambda before=before: doors.ledger.count >= before + 15, "instances")
        time.sleep(chance.uniform(0, 0.05))
        server.kill()
        doors.echo()
        server.start()
        # The node finds its way back by itself, and says yes again.
        until(lambda: doors.store() == 0x0000, "the database to be used again")
        for sender in senders:
            sender.join()
    promised_is_kept(doors)
    assert set(doors.ledger.refused) <= {REFUSED}


def test_a_commit_whose_answer_is_lost(doors: Doors, proxy: Proxy):
    assert doors.store() == 0x0000
    for _ in range(5):
        uid, data_set = doors.make()
        proxy.lose_next_answer_to(b"COMMIT")
        assert doors.store((uid, data_set)) in {0x0000, REFUSED}
        assert doors.store((uid, data_set)) == 0x0000, "sent again it is the same instance"
    assert proxy.lost == 5
    settings, database = load_settings(doors.home, doors.config), database_of(doors)
    with database.transaction() as tx:
        assert tx.scalar(select(func.count()).select_from(Instance)) == 6
        assert tx.scalar(select(func.count()).select_from(Study)) == 1
        tx.query(Study).update({Study.last_received_at: 0.0})
    jobs = complete_studies(database, settings)
    assert complete_studies(database, settings) == []
    with database.reading() as tx:
        assert tx.scalar(select(func.count()).select_from(Job)) == len(jobs)
    database.close()
    promised_is_kept(doors)


def test_a_database_that_hangs_is_refused_in_time_and_blocks_no_echo(
    doors: Doors, postgres: tuple[DurablePostgres, int]
):
    assert doors.store() == 0x0000
    assert doors.get("/health/live")[0] == 200, "the web server has opened the database too"
    answers: list[int] = []

    def send() -> None:
        connection = StoreConnection(doors.dimse_port, AE_TITLE, "SCANNER", timeout_s=120)
        try:
            answers.append(connection.store(*doors.make()))
        except Broken:
            answers.append(-1)
        finally:
            connection.close()

    postgres[0].signal(signal.SIGSTOP)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        while sender.is_alive():
            doors.echo()
            assert doors.get("/health/live")[0] == 200
            sender.join(timeout=1)
    finally:
        postgres[0].signal(signal.SIGCONT)
        sender.join()
    assert answers == [REFUSED]
    until(lambda: doors.store() == 0x0000, "the database to be used again")
    promised_is_kept(doors)


def test_a_slow_database_is_only_slow(doors: Doors, proxy: Proxy):
    proxy.delay_s = 0.1
    assert [doors.store() for _ in range(3)] == [0x0000] * 3
    doors.echo()
    promised_is_kept(doors)
