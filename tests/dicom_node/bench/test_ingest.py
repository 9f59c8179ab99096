"""The benchmark of receiving: what it compares is what it says it compares; never how long it took."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.bench import ingest, servers
from dicom_node.bench.ingest import UNSAFE, Scale, bench_ingest
from dicom_node.bench.orthanc import PeerMissing
from storage.database import upgrade

# A descriptor that is not open: whoever asks the kernel to flush it is told so.
ASK_THE_KERNEL = """
import ctypes, os
os.fsync(999), os.fdatasync(999)
assert ctypes.CDLL(None).syncfs(999) == 0
"""


@pytest.mark.timeout(900)
def test_guarantees_on_and_off_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny = Scale(large=4, small=0, stow=4, rounds=1, associations=(1,))
    table, figures = bench_ingest(is_quick=True, is_alone=True, scale=tiny)
    rows = [(row["case"], row["server"], row["instances"], len(row["rounds"])) for row in figures["rows"]]
    assert rows == [(case, server, 4, 1) for case in ("large x 1", "STOW-RS") for server in ("node", UNSAFE)]
    means = {row["server"]: row["durability"] for row in figures["rows"]}
    assert means == {"node": "file, name and index fsynced", UNSAFE: "indexed, nothing fsynced"}
    assert [row["sender_ms"] > 0 for row in figures["rows"]] == [True, True, False, False]  # STOW: from here
    cost = figures["guarantees_on_to_off"]
    assert list(cost) == ["large x 1", "STOW-RS"]
    assert figures["guarantees_on_to_off_lowest"] == min(cost.values()) > 0
    assert all(f"{name} {ratio:.3f}" in table for name, ratio in cost.items())
    assert json.loads(json.dumps(figures)) == figures


def test_what_was_measured_is_emptied_and_stays_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    left: list[tuple[str, int]] = []
    empty = ingest._empty

    def emptied(folder: Path) -> None:
        assert sum(path.stat().st_size for path in folder.rglob("*.dcm")) > 0
        empty(folder)
        runs = sorted(folder.parent.glob("0-*"))
        files = [path for run in runs for path in run.rglob("*") if path.is_file()]
        left.append((folder.name, sum(path.stat().st_size for path in files)))
        assert sum(path.suffix == ".dcm" for path in files) == 4 * len(runs)

    monkeypatch.setattr(ingest, "_empty", emptied)
    bench_ingest(
        is_quick=True, is_alone=True, scale=Scale(large=4, small=0, stow=0, rounds=1, associations=(1,))
    )
    assert left == [("0-large-x-1-node", 0), ("0-large-x-1-node,-unsafe", 0)]
    assert list((tmp_path / ".cache").iterdir()) == []


def test_without_guarantees_nothing_asks_the_disk(tmp_path: Path):
    shim = servers._shim(tmp_path, servers.NO_FSYNC_NAME, servers.NO_FSYNC)
    for environment, is_asked in ((dict(os.environ), True), (os.environ | {"LD_PRELOAD": str(shim)}, False)):
        done = subprocess.run(
            [sys.executable, "-c", ASK_THE_KERNEL], env=environment, capture_output=True, check=False
        )
        assert (b"Bad file descriptor" in done.stderr, done.returncode != 0) == (is_asked, is_asked)


def test_a_row_that_is_not_what_it_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    template = tmp_path / "empty.sqlite"
    upgrade(f"sqlite:///{template}")
    harmless = servers._shim(tmp_path, "harmless", "int nothing;")
    monkeypatch.setattr(servers, "_shim", lambda *_: harmless)
    unsafe = servers.node(template, UNSAFE, is_durable=False)
    with pytest.raises(PeerMissing, match="no comparison"), unsafe.run(tmp_path / "run"):
        pass
    assert sqlite3.connect(tmp_path / "run" / "home" / "node.sqlite").execute("SELECT 1").fetchone() == (1,)
