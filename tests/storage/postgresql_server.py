"""A PostgreSQL server of our own, as an unprivileged user, on a unix socket in a folder that goes away."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

STARTS_WITHIN_S = 60
STOPS_WITHIN_S = 10


def programs() -> Path:
    """Where initdb and postgres are; Debian keeps them out of PATH."""
    for initdb in (*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True), which("initdb")):
        if initdb is not None:
            return initdb.parent
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def memory_folder() -> str | None:
    """Where files cost no disk, if there is room; hundreds of small databases are slow otherwise."""
    shm = "/dev/shm"
    has_room = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2**30
    return shm if has_room else None


def unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root, and must not outlive the tests."""
    command = ["setpriv", "--pdeathsig", "QUIT"]
    if os.geteuid() == 0:
        command += ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    return [*command, "--"]


def create_database(url: str, name: str) -> str:
    """Create an empty database on the server at `url`; returns the database's URL."""
    server = make_url(url.replace("NAME", "postgres"))
    arguments = {"host": str(server.query["host"]), "user": server.username, "dbname": server.database}
    with psycopg.connect(**arguments, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("NAME", name)


@contextmanager
def running_postgresql() -> Iterator[str]:
    """Give the URL of a running server, with NAME in place of the database."""
    folder = Path(tempfile.mkdtemp(prefix="node-pg-", dir=memory_folder()))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
    try:
        # ICU's collation is as far from plain byte order as it gets: what holds here holds elsewhere.
        collation = ["--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en"]
        initdb = [programs() / "initdb", "-D", folder / "data", "-U", "node", "--auth=trust", "--no-sync"]
        subprocess.run([*unprivileged(), *initdb, *collation], check=True, capture_output=True, cwd=folder)
        with serving(folder):
            yield f"postgresql://node@/NAME?host={folder}"
    finally:
        shutil.rmtree(folder)


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    options = ["-c", "listen_addresses=", "-k", folder, "-F", "-c", "max_connections=120"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*unprivileged(), programs() / "postgres", "-D", folder / "data", *options],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        wait_until_ready(folder, server)
        yield
    finally:
        server.send_signal(signal.SIGQUIT)
        try:
            server.wait(timeout=STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            psycopg.connect(f"host={folder} user=node dbname=postgres").close()
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                log = (folder / "log").read_text()
                raise AssertionError(f"PostgreSQL did not start:\n{log}") from error
            time.sleep(0.05)
        else:
            return
