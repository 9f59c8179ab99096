"""What a campaign of cuts plays on: one volume or two, the index in SQLite or in PostgreSQL."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from tests.faults.volume import Volume
from tests.storage.postgresql_server import programs, unprivileged

STARTS_WITHIN_S = 120.0
STOPPED_OR_DEAD = frozenset({"T", "Z", "X", ""})


class Stage:
    """Files and SQLite on one volume; `url` and `volumes` say what others change."""

    def __init__(self, volumes: Sequence[Volume], url: str = "") -> None:
        self.volumes = tuple(volumes)
        self.home = self.volumes[0].root / "node"
        self.url = url or f"sqlite:///{self.volumes[-1].root / 'index' / 'node.sqlite'}"

    def start(self) -> None:
        """Mount everything, and have the index's server run."""
        for volume in self.volumes:
            volume.mount()

    def cut(self, chance: random.Random) -> None:
        """Cut the power of one volume; with two, the other goes on."""
        chance.choice(self.volumes).cut()

    def kill(self) -> None:
        """SIGKILL what was started here."""

    def stop(self) -> None:
        """Unmount everything, after all processes were killed."""
        for volume in self.volumes:
            volume.unmount()


class PostgresStage(Stage):
    """Files and PGDATA on one volume; the server syncs as a server does."""

    def __init__(self, volume: Volume, sockets: Path) -> None:
        super().__init__([volume], f"postgresql://node@/node?host={sockets}")
        self._sockets = sockets
        self._server = DurablePostgres(volume.root / "postgresql", sockets)

    def start(self) -> None:
        super().start()
        self._server.start()

    def kill(self) -> None:
        self._server.kill()


class DurablePostgres:
    """A PostgreSQL server with fsync on, in `folder`, that dies with all its children at once."""

    def __init__(self, folder: Path, sockets: Path, port: int = 0) -> None:
        self._folder, self._sockets = folder, sockets
        self._listening = ["-c", f"listen_addresses={'127.0.0.1' if port else ''}"]
        if port:
            self._listening += ["-c", f"port={port}"]
        self._address = {"host": "127.0.0.1", "port": port} if port else {"host": str(sockets)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> list[int]:
        """The server and its children; these are leaders of groups of their own."""
        assert self._process is not None
        return [self._process.pid, *children_of(self._process.pid)]

    def start(self) -> None:
        """Start the server, the first time with an empty database `node`; returns when it answers."""
        is_new = not self._folder.exists()
        if is_new:
            self._make()
        options = [*self._listening, "-k", self._sockets, "-c", "max_connections=120"]
        with (self._sockets / "postgresql.out").open("ab") as log:
            self._process = subprocess.Popen(
                [*unprivileged(), programs() / "postgres", "-D", self._folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self._sockets,
            )
        self._wait()
        if is_new:
            with psycopg.connect(**self._address, user="node", dbname="postgres") as connection:
                connection.autocommit = True
                connection.execute("CREATE DATABASE node")

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its children."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer or a power cut does; harmless when it is dead."""
        if self._process is None:
            return
        # Stopped first: a server that starts one more child meanwhile would leave it behind, at its files.
        self._process.send_signal(signal.SIGSTOP)
        server = self._process.pid
        _until(lambda: _state(server) in STOPPED_OR_DEAD)
        pids = self.pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        _until(lambda: not any(is_running(pid) for pid in pids))

    def _make(self) -> None:
        self._folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody", "nogroup")
            shutil.chown(self._sockets, "nobody", "nogroup")
        initdb = [programs() / "initdb", "-D", self._folder / "data", "-U", "node", "--auth=trust"]
        subprocess.run(
            [*unprivileged(), *initdb, "--encoding=UTF8"], check=True, capture_output=True, cwd=self._sockets
        )

    def _wait(self) -> None:
        def answers() -> bool:
            with suppress(psycopg.OperationalError):
                psycopg.connect(**self._address, user="node", dbname="postgres").close()
                return True
            return False

        _until(answers)


@contextmanager
def running_postgres(folder: Path, port: int) -> Iterator[DurablePostgres]:
    """A server of one's own on 127.0.0.1, to be killed, stopped and started again."""
    sockets = folder / "sockets"
    sockets.mkdir()
    server = DurablePostgres(folder / "postgresql", sockets, port)
    server.start()
    try:
        yield server
    finally:
        with suppress(AssertionError):
            server.signal(signal.SIGCONT)
        server.kill()


def is_running(pid: int) -> bool:
    """Whether a process still does something: a zombie waits for whoever adopted it, perhaps for long."""
    return _state(pid) not in {"Z", "X", ""}


def _state(pid: int) -> str:
    """The letter of a process's state as in proc(5); empty when it is gone, as a server may be by itself."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def children_of(parent: int) -> list[int]:
    """The processes whose parent is `parent`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == parent:
                    found.append(int(entry.name))
    return found


def _until(condition) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long for PostgreSQL"
        time.sleep(0.02)
