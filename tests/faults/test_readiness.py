"""The truth table of readiness (OPS-07): each dependency down is named; alive and measured meanwhile."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from dicom_node import readiness
from dicom_node.settings import load_settings
from storage.database import Database
from tests.faults.nodes import Doors, running_doors, until
from tests.faults.stages import DurablePostgres, running_postgres
from tests.faults.volume import NoVolume, memory_volume
from tests.faults.zygote import Zygote
from tests.flow.brokers import redis
from tests.flow.nodes import find_free_port
from tests.storage.postgresql_server import memory_folder
from tests.storage.s3_server import CREDENTIALS, REGION, make_bucket

VOLUME_MB, LOW_MB = 64, 32
CLOSED = {"disk", "fsync"}  # no new association is taken: the disk has no room, or nobody trusts it


class Stores:
    """Everything that a node depends on, each to be taken away for a while."""

    def __init__(self, folder: Path, later: ExitStack) -> None:
        self.folder = folder
        self._later = later
        later.enter_context(memory_volume(folder / "node" / "files", f"size={VOLUME_MB}m"))
        self._redis_port, self._s3_port = find_free_port(), find_free_port()
        self._redis = later.enter_context(ExitStack())
        self._redis.enter_context(redis(folder, self._redis_port))
        self._s3 = later.enter_context(ExitStack())
        self._start_s3()
        self._sockets = Path(tempfile.mkdtemp(prefix="node-pg-", dir=memory_folder()))
        later.callback(shutil.rmtree, self._sockets)
        self._sockets.chmod(0o755)
        self._postgres_port = find_free_port()
        self._postgres: DurablePostgres = later.enter_context(
            running_postgres(self._sockets, self._postgres_port)
        )

    def _start_s3(self) -> None:
        server = ThreadedMotoServer("127.0.0.1", self._s3_port, verbose=False)
        server.start()
        self._s3.callback(server.stop)

    @property
    def sections(self) -> dict[str, dict[str, object]]:
        bucket = make_bucket(f"http://127.0.0.1:{self._s3_port}")
        storage = {
            "database_url": f"postgresql://node@127.0.0.1:{self._postgres_port}/node",
            "database_answer_s": 5.0,
            "s3_bucket": bucket.name,
            "s3_prefix": bucket.prefix,
            "s3_endpoint_url": bucket.endpoint_url,
            "s3_region": bucket.region,
        }
        return {
            "storage": storage,
            "broker": {"url": f"redis://127.0.0.1:{self._redis_port}/0"},
            "limits": {"min_free_mb": 0, "low_free_mb": LOW_MB},
        }

    @contextmanager
    def without_database(self) -> Iterator[None]:
        self._postgres.kill()
        yield
        self._postgres.start()

    @contextmanager
    def without_broker(self) -> Iterator[None]:
        self._redis.close()
        yield
        self._redis.enter_context(redis(self.folder, self._redis_port))

    @contextmanager
    def without_bucket(self) -> Iterator[None]:
        self._s3.close()
        yield
        self._start_s3()

    @contextmanager
    def without_room(self) -> Iterator[None]:
        ballast = self.folder / "node" / "files" / "ballast"
        ballast.write_bytes(bytes((VOLUME_MB - LOW_MB // 2) << 20))
        yield
        ballast.unlink()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with ExitStack() as later, pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}.items():
            environment.setenv(name, value)
        try:
            yield Stores(tmp_path, later)
        except NoVolume as reason:
            pytest.skip(f"no volume can be filled here: {reason}")


@contextmanager
def another_schema(doors: Doors) -> Iterator[None]:
    """The tables of a newer program."""
    database = Database(load_settings(doors.home, doors.config).storage.database_url)
    with database.transaction() as tx:
        (revision,) = tx.execute(text("SELECT version_num FROM alembic_version")).one()
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    yield
    with database.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = :old"), {"old": revision})
    database.close()


@contextmanager
def reported(doors: Doors, process: str) -> Iterator[None]:
    """What a process says of itself: the worker of its model, the listener of its disk or its keys."""
    readiness.report(doors.home, process, f"{process} cannot be used")
    yield
    readiness.report(doors.home, process, None)


def reasons(doors: Doors) -> list[str]:
    status, body = doors.get("/health/ready")
    answer = json.loads(body)
    if status == 200:
        assert answer == {"status": "ready"}
        return []
    assert status == 503
    assert len(answer["problems"]) == len(answer["reasons"])
    return list(answer["reasons"])


def measured(doors: Doors) -> tuple[float, list[str], bool]:
    """What the metrics say: ready, why not, and whether there are figures of the index."""
    status, body = doors.get("/metrics")
    assert status == 200
    families = {each.name: each.samples for each in text_string_to_metric_families(body.decode())}
    problems = [sample.labels["reason"] for sample in families["dicom_node_problem"]]
    return families["dicom_node_ready"][0].value, problems, "dicom_node_jobs" in families


def is_open(doors: Doors) -> bool:
    """Whether an association is taken; the listener looks at the disk a few times a second."""
    try:
        doors.echo()
    except AssertionError:
        return False
    return True


@pytest.mark.timeout(600)
def test_each_dependency_that_is_down_is_named_until_it_is_back(stores: Stores) -> None:
    with Zygote() as zygote, running_doors(stores.folder, zygote, **stores.sections) as doors:
        doors.start("sweep")  # which looks after the broker
        table: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "database": stores.without_database,
            "schema": lambda: another_schema(doors),
            "broker": stores.without_broker,
            "object store": stores.without_bucket,
            "disk": stores.without_room,
            "fsync": lambda: reported(doors, "fsync"),
            "model-sim4seg-s": lambda: reported(doors, "model-sim4seg-s"),
            "tls": lambda: reported(doors, "tls"),
        }
        for name, taken_away in table.items():
            until(lambda: reasons(doors) == [], f"the node to be ready before {name}")
            assert measured(doors) == (1.0, [], True), name
            with taken_away():
                until(lambda name=name: reasons(doors) == [name], f"{name} to be named")
                assert measured(doors) == (0.0, [name], name not in {"database", "schema"})
                assert doors.get("/health/live")[0] == 200
                if name in CLOSED:
                    until(lambda: not is_open(doors), f"the door to be closed: {name}")
                else:
                    doors.echo()
            until(lambda: is_open(doors), f"the door to be open after {name}")
        until(lambda: reasons(doors) == [], "the node to be ready in the end")
        assert doors.store() == 0x0000
