"""Fixtures that need cleaning up, and the rules of a run: loopback only, no skips in CI, long files first."""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from xdist.remote import Producer

from tests.order import LongestFirst, rank

if TYPE_CHECKING:  # a test of inference must not load the database
    from storage.database import Database
    from storage.s3 import Bucket

REPOSITORY = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")

# Two busy cores: no test may depend on how long one example takes.
hypothesis.settings.register_profile(
    "node", deadline=None, database=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("node")


class OutsideConnection(ConnectionRefusedError):
    """A test tried to reach a machine other than this one; for the code under test, nobody answers there."""


def refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: raise OutsideConnection for a socket that connects anywhere but to loopback."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
        raise OutsideConnection(f"tests talk to this machine only, not to {address[0]}")


sys.addaudithook(refuse_outside)


def is_ci() -> bool:
    """Say whether this run decides about landing a change."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: begun last, one would keep one worker busy and leave the other idle."""
    items.sort(key=lambda item: rank(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LongestFirst:
    """Workers take whole files, in that order."""
    return LongestFirst(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a skipped test is a failed one, unless it needs a GPU."""
    report = yield
    if (
        is_ci()
        and report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("gpu") is None
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """In CI a file that skips itself as a whole is a failed one."""
    report = yield
    if is_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def empty_journals(request: pytest.FixtureRequest) -> Iterator[None]:
    """A killed node leaves a journal of 32 MiB: kept, those of one run come to 16 GB, and fill the disk.

    Emptied, not removed: ext4 without a journal of its own is slow for minutes after many files are removed.
    """
    yield
    folder = getattr(request.node, "funcargs", {}).get("tmp_path")
    with suppress(OSError):  # a volume that the test shut down; a process that removes its own meanwhile
        for journal in folder.glob("**/journal/*.journal") if folder else ():
            os.truncate(journal, 0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared with real images; without it a test is skipped, and fails in CI."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data" / "train" / "manifest.csv").is_file():
        pytest.skip(f"the real images are not here: {folder}")
    return folder


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that gives a TCP port of 127.0.0.1 which nobody listens on, another one at each call."""
    given: set[int] = set()

    def find() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in given:
                given.add(port)
                return port

    return find


@pytest.fixture
def files_root(tmp_path: Path) -> Path:
    """An empty folder for Part 10 files."""
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint URL of a local S3 server; credentials are in the environment."""
    from tests.storage.s3_server import running_s3

    with running_s3() as url:
        yield url


@pytest.fixture
def bucket(s3_server: str) -> "Bucket":
    """An empty bucket."""
    from tests.storage.s3_server import make_bucket

    return make_bucket(s3_server)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the current schema, to be copied: migrating takes a hundred times as long."""
    from storage.database import upgrade

    path = tmp_path_factory.mktemp("migrated") / "node.sqlite"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_url(tmp_path: Path, migrated_database: Path) -> str:
    """The URL of an empty SQLite database with the current schema."""
    path = tmp_path / "node.sqlite"
    shutil.copy(migrated_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def database(database_url: str) -> "Iterator[Database]":
    """An open database with the current schema; closed at the end."""
    from storage.database import Database

    opened = Database(database_url)
    yield opened
    opened.close()
