"""One campaign of power cuts: load, cut, kill, remount, start again, compare with the ledger."""

import hashlib
import http.client
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from dicom_node.header import META_START, split_meta
from storage.database import Database
from storage.files import DiskFiles
from storage.tables import Conflict, Instance
from tests.faults.load import Instances, Ledger, Sender, store_sender, stow_sender
from tests.faults.stages import Stage
from tests.faults.zygote import Zygote
from tests.flow.nodes import find_free_port, write_config

AE_TITLE = "CUT_NODE"
STARTS_WITHIN_S = 120.0
ACKS_WITHIN_S = 120.0
MIN_IN_FLIGHT = 20  # acknowledged instances of this cut that no earlier cut has tested


@dataclass
class Figures:
    """What a campaign of cuts came to."""

    cuts: int = 0
    acknowledged: int = 0
    fewest_per_cut: int = 1 << 30
    lost: set[str] = field(default_factory=set)  # acknowledged, and not in the index or without a file
    partial: set[str] = field(default_factory=set)  # in the index, and not the bytes of its content address
    wrong_digest: set[str] = field(default_factory=set)  # acknowledged, and other bytes than were sent
    late_lost: int = 0  # success read after the power had gone, and not there: no promise, see Ledger.close
    orphans: int = 0  # files that no row refers to, after the last cut
    longest_start_s: float = 0.0

    retrieved: int = 0  # acknowledged instances that WADO-RS gave back, bit for bit

    @property
    def is_sound(self) -> bool:
        """True when every promise was kept."""
        return not (self.lost or self.partial or self.wrong_digest)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "cuts": self.cuts,
            "acknowledged": self.acknowledged,
            "fewest_since_the_cut_before": self.fewest_per_cut,
            "lost": len(self.lost),
            "partial": len(self.partial),
            "wrong_digests": len(self.wrong_digest),
            "answered_after_the_cut_and_lost": self.late_lost,
            "retrieved": self.retrieved,
            "longest_start_s": round(self.longest_start_s, 2),
            "upper_bound_95": self.upper_bound,
        }

    def __str__(self) -> str:
        return (
            f"{self.cuts} cuts, {self.acknowledged} acknowledged (at least {self.fewest_per_cut} since the "
            f"cut before), {len(self.lost)} lost, {len(self.partial)} partial, "
            f"{len(self.wrong_digest)} wrong digests, {self.late_lost} lost of those answered later, "
            f"{self.orphans} orphans, {self.retrieved} "
            f"retrieved; longest start {self.longest_start_s:.2f} s; 95 % bound {self.upper_bound:.1e}"
        )

    @property
    def upper_bound(self) -> float:
        """Losses per acknowledged instance, 95 % confidence: the rule of three."""
        return 3 / max(self.acknowledged, 1)


@dataclass(frozen=True)
class Home:
    """A node's home on the volume, and its configuration beside the volume."""

    folder: Path
    config: Path
    dimse_port: int
    http_port: int
    database_url: str

    @property
    def files(self) -> DiskFiles:
        return DiskFiles(self.folder / "files")

    def words(self, *command: str) -> tuple[str, ...]:
        return (*command, "--home", str(self.folder), "--config", str(self.config))


def make_home(stage: Stage, beside: Path) -> Home:
    """Write the configuration of a node whose files and index are on the stage."""
    dimse_port, http_port = find_free_port(), find_free_port()
    sections = {
        "dimse": {"port": dimse_port, "ae_title": AE_TITLE, "max_associations": 60},
        "http": {"port": http_port},
        "limits": {"min_free_mb": 0, "low_free_mb": 0},
        "logs": {"level": "ERROR"},
        "storage": {"database_url": stage.url},
    }
    config = write_config(beside / "node.toml", sections)
    return Home(stage.home, config, dimse_port, http_port, stage.url)


@dataclass(frozen=True)
class Load:
    """How many senders, and how many answers to wait for before the power goes."""

    associations: int = 20
    uploads: int = 2
    acks: int = 60


class Campaign:
    """Cuts of one node's volume; `cut_once` is one of them."""

    def __init__(self, stage: Stage, home: Home, zygote: Zygote, seed: int, load: Load | None = None) -> None:
        self._stage, self._home, self._zygote = stage, home, zygote
        self._load = load or Load()
        self._random = random.Random(seed)
        self.ledger = Ledger()
        self._compared: set[str] = set()
        self._log = home.config.parent / "node.out"
        self.figures = Figures()

    def start(self) -> None:
        """Mount, and start the node: what `serve` does before its first process, then its doors."""
        self._stage.start()
        started = time.monotonic()
        self._home.folder.mkdir(exist_ok=True)
        status = self._zygote.run(self._log, *self._home.words("migrate"))
        assert status == 0, self._log.read_text()
        self._zygote.spawn(self._log, *self._home.words("scp"))
        self._zygote.spawn(self._log, *self._home.words("web"))
        for port in (self._home.dimse_port, self._home.http_port):
            self._wait_until_listening(port)
        self.figures.longest_start_s = max(self.figures.longest_start_s, time.monotonic() - started)

    def cut_once(self) -> None:
        """Send, cut the power in the middle of it, kill everything, mount again and compare."""
        senders = self._senders()
        try:
            self._wait_for_acks(self.ledger.count + self._load.acks)
            time.sleep(self._random.uniform(0, 0.05))
            self.ledger.close()
            self._stage.cut(self._random)
        finally:
            self._zygote.kill_all()
            self._stage.kill()
            for sender in senders:
                sender.join()
        self._stage.stop()
        self.ledger.open()
        self.start()
        self.figures.cuts += 1
        self._compare()

    def compare_everything(self) -> None:
        """Compare the whole ledger once more, not only what came since the last cut."""
        fewest, self._compared = self.figures.fewest_per_cut, set()
        self._compare()
        self.figures.fewest_per_cut = fewest

    def retrieve(self, count: int) -> None:
        """Ask the node itself for a sample of what it promised."""
        promised = sorted(self.ledger.acknowledged)
        connection = http.client.HTTPConnection("127.0.0.1", self._home.http_port, timeout=60)
        for uid in self._random.sample(promised, min(count, len(promised))):
            series = f"{uid.rsplit('.', 1)[0]}.2"
            study = uid.rsplit(".", 1)[0]
            path = f"/dicom-web/studies/{study}/series/{series}/instances/{uid}"
            connection.request("GET", path, headers={"Accept": "application/dicom; transfer-syntax=*"})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, (answer.status, content[:500])
            if data_set_digest(content) != self.ledger.acknowledged[uid]:
                self.figures.wrong_digest.add(uid)
            self.figures.retrieved += 1
        connection.close()

    def _senders(self) -> list[Sender]:
        seeds = self._random.sample(range(10**8), self._load.associations + self._load.uploads)
        instances = [Instances(seed) for seed in seeds]
        home, ledger = self._home, self.ledger
        return [
            *(
                store_sender(home.dimse_port, AE_TITLE, one, ledger)
                for one in instances[: self._load.associations]
            ),
            *(stow_sender(home.http_port, one, ledger) for one in instances[self._load.associations :]),
        ]

    def _wait_for_acks(self, count: int) -> None:
        deadline = time.monotonic() + ACKS_WITHIN_S
        while self.ledger.count < count:
            assert time.monotonic() < deadline, (self.ledger.refused, self._log.read_text()[-5000:])
            time.sleep(0.002)

    def _wait_until_listening(self, port: int) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            assert time.monotonic() < deadline, self._log.read_text()[-5000:]
            time.sleep(0.005)

    def _compare(self) -> None:
        """Look at the index and the files as they are, not through the node."""
        new = {uid: sha for uid, sha in self.ledger.acknowledged.items() if uid not in self._compared}
        figures = self.figures
        figures.fewest_per_cut = min(figures.fewest_per_cut, len(new))
        figures.acknowledged = self.ledger.count
        with opened(self._home.database_url) as database, database.reading() as tx:
            rows = {row[0]: row[1] for row in tx.execute(select(Instance.sop_instance_uid, Instance.path))}
            known = {*rows.values(), *tx.scalars(select(Conflict.path))}
        for uid, sha256 in new.items():
            self._compare_one(uid, sha256, rows.get(uid))
        figures.late_lost = sum(uid not in rows for uid in self.ledger.late)
        figures.orphans = sum(stored.path not in known for stored in self._home.files.walk())
        figures.partial |= self._partial(set(rows) - set(self.ledger.acknowledged) - self._compared, rows)
        self._compared |= set(rows)

    def _compare_one(self, uid: str, sha256: str, path: str | None) -> None:
        if path is None or not self._home.files.exists(path):
            self.figures.lost.add(uid)
            return
        with self._home.files.open(path) as file:
            content = file.read()
        if not content or hashlib.sha256(content).hexdigest() not in path:
            self.figures.partial.add(uid)
        elif data_set_digest(content) != sha256:
            self.figures.wrong_digest.add(uid)

    def _partial(self, uids: set[str], rows: dict[str, str]) -> set[str]:
        """Rows that nobody was promised must be whole all the same."""
        return {uid for uid in uids if not self._is_whole(rows[uid])}

    def _is_whole(self, path: str) -> bool:
        if not self._home.files.exists(path):
            return False
        with self._home.files.open(path) as file:
            return hashlib.sha256(file.read()).hexdigest() in path


def data_set_digest(content: bytes) -> str:
    """Sha256 of a Part 10 file's data set, without preamble and meta information."""
    _meta, end = split_meta(content[: META_START + (1 << 16)])
    return hashlib.sha256(content[end:]).hexdigest()


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def run_cuts(stage: Stage, zygote: Zygote, beside: Path, cuts: int, seed: int) -> Figures:
    """Run a campaign on a new home; it ends at the first loss."""
    campaign = Campaign(stage, make_home(stage, beside), zygote, seed)
    try:
        campaign.start()
        while campaign.figures.cuts < cuts and campaign.figures.is_sound:
            campaign.cut_once()
        campaign.compare_everything()
        if campaign.figures.is_sound:
            campaign.retrieve(50)
    finally:
        zygote.kill_all()
        stage.kill()
    stage.stop()
    return campaign.figures
