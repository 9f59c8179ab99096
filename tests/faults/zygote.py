"""Starts processes of the node without starting an interpreter: imports once, forks for each.

`python -m tests.faults.zygote [WEAKNESS]` reads lines of JSON, [log file, words of a command line], and
answers each with the pid of a child that runs `dicom_node.__main__.main(words)`: the same code that
`dicom-node WORDS` runs. A WEAKNESS breaks a promise of durability on purpose, to show that a test sees it.
"""

import gc
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]
# The first three without a journal: what is long, or comes with others in one request, goes that way.
WEAKNESSES = (
    "no-fsync-of-files",
    "no-fsync-of-folders",
    "no-fsync-of-index",
    "nothing-in-the-journal",
    "no-sync-behind-the-journal",
)
PRELOADED = (
    "dicom_node.dimse.listener",
    "dicom_node.services",
    "dicom_node.sweep",
    "dicom_node.web.app",
    "uvicorn",
)


class Zygote:
    """The parent of the node's processes; `spawn` takes milliseconds."""

    def __init__(self, weakness: str = "", environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote", weakness],
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children: set[int] = set()

    def spawn(self, log: Path, *words: str) -> int:
        """Start `dicom-node WORDS`, writing what it prints to `log`; returns its pid."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(log), words]) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self._children.add(pid)
        return pid

    def run(self, log: Path, *words: str) -> int:
        """Run `dicom-node WORDS` to its end; returns its exit status."""
        return self.wait(self.spawn(log, *words))

    def wait(self, pid: int) -> int:
        """Wait for the end of a child; returns its exit status, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(["wait", pid]) + "\n")
        self._process.stdin.flush()
        self._children.discard(pid)
        return int(self._process.stdout.readline())

    def kill_all(self) -> None:
        """SIGKILL every child and what it started, and wait until none holds a file any more."""
        for pid in self._children:
            with suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            self.wait(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()


def weaken(weakness: str) -> None:
    """Break one promise in this process and in all that it forks."""
    if "journal" in weakness:
        _weaken_journal(weakness)
    else:
        _do_without_journal()
        _weaken_fsync(weakness)


def _weaken_journal(weakness: str) -> None:
    from storage import durable, journal

    if weakness == "nothing-in-the-journal":
        journal.Journal._append = lambda *_: True
    else:
        journal.IDLE_S = 0.001
        durable.FileSystem.sync = lambda _: None


def _do_without_journal() -> None:
    from storage import journal

    def refuse(_: object) -> None:
        raise OSError

    journal.Journal._make = refuse


def _weaken_fsync(weakness: str) -> None:
    from storage import database

    prepare = database._prepare_sqlite_connection

    def weakened(flush: Callable[[int], None]) -> Callable[[int], None]:
        def weak_flush(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            if is_folder != (weakness == "no-fsync-of-folders"):
                flush(descriptor)

        return weak_flush

    def prepare_weakly(connection: sqlite3.Connection, record: Any) -> None:
        prepare(connection, record)
        connection.execute("PRAGMA synchronous=OFF")

    if weakness == "no-fsync-of-index":
        database._prepare_sqlite_connection = prepare_weakly
    else:
        os.fsync, os.fdatasync = weakened(os.fsync), weakened(os.fdatasync)


def serve() -> None:
    """Answer the requests on stdin until it is closed."""
    for line in sys.stdin:
        first, rest = json.loads(line)
        answer = os.waitstatus_to_exitcode(os.waitpid(rest, 0)[1]) if first == "wait" else _fork(first, rest)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _fork(log: str, words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        _become(log)
        from dicom_node.__main__ import main

        status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _become(log: str) -> None:
    """Take the place of a process of its own: session, standard files."""
    os.setsid()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)


if __name__ == "__main__":
    import importlib

    for module in PRELOADED:
        importlib.import_module(module)
    if sys.argv[1]:
        weaken(sys.argv[1])
    gc.freeze()
    serve()
