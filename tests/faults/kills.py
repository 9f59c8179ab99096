"""SIGKILLs of random processes of a running node, while studies come in; a PACS with a ledger at its end.

Every study has one image. It is sent until the node says success, and now and then sent again. In the end
each has one job that is COMPLETED, and the PACS has one SEG and one SR of it, always with the same bytes.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from dicom_node.dimse.scu import send_instances
from dicom_node.errors import NodeError
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.settings_network import PeerSettings
from dicom_node.supervisor import LOOK_S as LOOK_FOR_PARENT_S
from dicom_node.supervisor import ORPHAN_S
from storage.database import Database
from storage.tables import Delivery, Instance, Job, JobAttempt
from tests.builders import make_ultrasound, write_datasets
from tests.flow.nodes import REPOSITORY, destination, find_free_port, node_config, write_config
from tests.stub_engine import write_stub_package

STUDY_EVERY = 3  # kills for each study
SUPERVISOR_EVERY = 20  # one kill of so many hits the supervisor itself
MODEL_EVERY = 20  # and one the process of a model: so long nothing else is killed until there is one
LOOK_S = 0.1  # between two looks for it
SUPERVISOR, MODEL = "serve", "model of a worker"
WORK_S = 0.3  # what the model takes, so that it dies at work too
PAUSE_S = (0.1, 1.2)  # between two kills
SETTLE_S = 240.0  # longest wait after the last kill until all is delivered; a quiet machine takes seconds
LIMITS = ("Max core file size", "Max file size")
KINDS = {"1.2.840.10008.5.1.4.1.1.66.4": "SEG", "1.2.840.10008.5.1.4.1.1.88.34": "SR"}


@dataclass
class PacsLedger:
    """What the destination was sent: study -> SOP Instance UID -> (kind, digests of the data set)."""

    received: dict[str, dict[str, tuple[str, Counter[str]]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, event: evt.Event) -> int:
        """Answer a C-STORE."""
        request: Any = event.request
        content = request.DataSet.getvalue()
        kind = KINDS.get(str(request.AffectedSOPClassUID), "OTHER")
        study, uid = str(event.dataset.StudyInstanceUID), str(request.AffectedSOPInstanceUID)
        with self._lock:
            _, digests = self.received.setdefault(study, {}).setdefault(uid, (kind, Counter()))
            digests[hashlib.sha256(content).hexdigest()] += 1
        return 0x0000

    def kinds_of(self, study: str) -> list[str]:
        """Kinds of the different objects that came for a study, sorted."""
        with self._lock:
            return sorted(kind for kind, _ in self.received.get(study, {}).values())


@dataclass
class KillFigures:
    """What happened, and whether every promise was kept."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    sends: int = 0
    attempts: int = 0
    models_killed_at_work: int = 0
    resends_at_pacs: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For the last line of the soak."""
        values = {**vars(self), "kills": sum(self.kills.values()), "killed": dict(self.kills)}
        return {**values, "seconds": round(self.seconds, 1), "is_sound": self.is_sound}


class KilledNode:
    """`dicom-node serve`, started again whenever its supervisor is killed."""

    def __init__(self, home: Path, config: Path, settings: NodeSettings) -> None:
        self._home, self._config, self.settings = home, config, settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        with (self._home / "serve.out").open("ab") as output:
            command = ["-m", "dicom_node", "serve", "--home", str(self._home), "--config", str(self._config)]
            self.process = subprocess.Popen(
                [sys.executable, *command, "--parent", str(os.getpid())],
                cwd=REPOSITORY,
                start_new_session=True,
                stdout=output,
                stderr=output,
            )

    def kill_one(self, chosen: random.Random, *, only: str = "") -> str | None:
        """SIGKILL a random process below the supervisor, of the kind `only` if given, or the supervisor.

        Gives what it was; None when there is none.
        """
        if self.process is None or self.process.poll() is not None:
            return None
        if only == SUPERVISOR:
            self.process.kill()
            self.process.wait()
            return SUPERVISOR
        below = sorted(descendants(self.process.pid).items())
        if only:
            below = [(pid, name) for pid, name in below if name == only]
        if not below:
            return None
        pid, name = chosen.choice(below)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return name

    def end(self) -> None:
        """SIGTERM, and wait."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=90)

    def left_alive(self) -> list[str]:
        """What is still there once each may have ended itself, the orphans of killed supervisors too."""
        end = time.monotonic() + ORPHAN_S + 2 * LOOK_FOR_PARENT_S
        while (left := processes_of(self._home)) and time.monotonic() < end:
            time.sleep(LOOK_S)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return [f"left alive: {name}" for name in left.values()]


def processes_of(home: Path) -> dict[int, str]:
    """Process ids whose command names `home`, with the command of the node that each is."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(home) in (folder / "cmdline").read_bytes().split(b"\0"):
                found[int(folder.name)] = _what_it_is(folder)
    return found


def descendants(pid: int) -> dict[int, str]:
    """Process ids below `pid`, with the command of the node that each is."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z":  # nobody can kill it once more
                children.setdefault(int(parent), []).append(int(folder.name))
    found: dict[int, str] = {}
    open_pids = list(children.get(pid, []))
    while open_pids:
        each = open_pids.pop()
        open_pids += children.get(each, [])
        with contextlib.suppress(OSError):
            found[each] = _what_it_is(Path(f"/proc/{each}"))
    return found


def _what_it_is(process: Path) -> str:
    """ "scp", "worker run", "model of a worker", "decoder" ...; by the words of `python -m MODULE ...`."""
    words = (process / "cmdline").read_bytes().decode().split("\0")
    if words[2:3] == ["dicom_node.limited_child"]:
        return _which_child((process / "limits").read_text())
    if words[2:3] != ["dicom_node"]:
        return words[2].removeprefix("dicom_node.") if len(words) > 2 else "starting"
    return " ".join(words[3:5] if words[3:4] == ["worker"] else words[3:4]) or "starting"


def _which_child(limits: str) -> str:
    """A child that has set its limits: only that of a model may write files."""
    found = {
        name: line.split()[-3:-1] for line in limits.splitlines() for name in LIMITS if line.startswith(name)
    }
    if found.get("Max core file size") != ["0", "0"]:
        return "starting"
    return "decoder" if found["Max file size"] == ["0", "0"] else MODEL


def make_study(number: int, seed: int) -> Dataset:
    """An image with its own pixels under its own UIDs, the same for the same seed."""
    mask = np.zeros((24, 32), bool)
    mask[4 : 10 + number % 12, 5 : 12 + number % 17] = True
    dataset = make_ultrasound(mask)
    entropy = [str(seed), str(number)]
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*entropy, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*entropy, "instance"])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


class Sender(threading.Thread):
    """Sends studies one after the other, each until it is acknowledged, like a patient modality."""

    def __init__(self, folder: Path, peer: PeerSettings, seed: int, figures: KillFigures) -> None:
        super().__init__(daemon=True)
        self._folder, self._peer, self._seed, self._figures = folder, peer, seed, figures
        self._chosen = random.Random(seed + 1)
        self._wanted, self._asked = threading.Semaphore(0), 0
        self.is_over = threading.Event()
        self.acknowledged: list[str] = []
        self._paths: list[Path] = []

    def want_another(self) -> None:
        """Ask for one more study."""
        self._asked += 1
        self._wanted.release()

    @property
    def is_idle(self) -> bool:
        """Whether every study that was asked for is acknowledged."""
        return len(self.acknowledged) == self._asked

    def run(self) -> None:
        number = 0
        while not self.is_over.is_set():
            if not self._wanted.acquire(timeout=0.1):
                continue
            number += 1
            dataset = make_study(number, self._seed)
            (path,) = write_datasets(self._folder / str(number), [dataset])
            self._send_until_acknowledged(path)
            self.acknowledged.append(str(dataset.StudyInstanceUID))
            self._paths.append(path)
            if number % 5 == 0:  # the same once more: the node has to know it
                self._send_until_acknowledged(self._chosen.choice(self._paths))

    def _send_until_acknowledged(self, path: Path) -> None:
        while True:
            self._figures.sends += 1
            with contextlib.suppress(NodeError, OSError):
                (sent,) = send_instances([path], self._peer, "SCANNER")
                if sent.status == 0x0000:
                    return
            time.sleep(0.1)


def run_kills(folder: Path, kills: int, seed: int) -> KillFigures:
    """Kill `kills` processes of a node at random moments; see whether every study ends as it should."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, chosen, started = KillFigures(seed), random.Random(seed), time.monotonic()
    with _pacs() as (ledger, pacs_port):
        node = _new_node(folder, pacs_port)
        dimse = node.settings.dimse
        peer = PeerSettings(name="node", ae_title=dimse.ae_title, host=dimse.host, port=dimse.port)
        sender = Sender(folder / "sent", peer, seed, figures)
        node.start()
        try:
            sender.start()
            _kill(node, sender, figures, kills, chosen)
            _settle(node, sender, ledger)
        finally:
            sender.is_over.set()
            sender.join(timeout=60)
            node.end()
        figures.studies = len(sender.acknowledged)
        _judge(node.settings, sender.acknowledged, ledger, figures)
        figures.problems += node.left_alive()
    figures.seconds = time.monotonic() - started
    return figures


def _kill(node: KilledNode, sender: Sender, figures: KillFigures, kills: int, chosen: random.Random) -> None:
    done, is_waiting = 0, False
    while done < kills:
        only = _whom(done)
        time.sleep(LOOK_S if only == MODEL else chosen.uniform(*PAUSE_S))
        node.start()
        killed = node.kill_one(chosen, only=only)
        if killed is None:
            if only == MODEL and not is_waiting:
                sender.want_another()  # all work may be done, and then no model is ever started
            is_waiting = True
            continue
        is_waiting = False
        figures.kills[killed] += 1
        if done % STUDY_EVERY == 0:
            sender.want_another()
        done += 1


def _whom(done: int) -> str:
    """The kind of the next kill's process; mostly none in particular."""
    if done % SUPERVISOR_EVERY == SUPERVISOR_EVERY - 1:
        return SUPERVISOR
    return MODEL if done % MODEL_EVERY == MODEL_EVERY // 2 else ""


def _settle(node: KilledNode, sender: Sender, ledger: PacsLedger) -> None:
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        node.start()
        is_there = all(ledger.kinds_of(study) == ["SEG", "SR"] for study in sender.acknowledged)
        if sender.is_idle and is_there and _is_all_over(node.settings):
            return
        time.sleep(0.2)


def _is_all_over(settings: NodeSettings) -> bool:
    database = Database(settings.storage.database_url)
    try:
        with database.reading() as tx:
            jobs = tx.query(Job).filter(Job.state.in_(["SCHEDULED", "IN PROGRESS"])).count()
            return jobs + tx.query(Delivery).filter(Delivery.state == "QUEUED").count() == 0
    finally:
        database.close()


def _judge(settings: NodeSettings, studies: list[str], ledger: PacsLedger, figures: KillFigures) -> None:
    database = Database(settings.storage.database_url)
    with database.reading() as tx:
        jobs = tx.query(Job).all()
        stored = tx.query(Instance).filter(Instance.origin_kind == "OWN RESULT").all()
        by_study = {study: [job for job in jobs if job.study_instance_uid == study] for study in studies}
        results: Mapping[str, set[str]] = {
            study: {row.sop_instance_uid for row in stored if row.study_instance_uid == study}
            for study in studies
        }
        figures.attempts = sum(job.attempts for job in jobs)
        lost = tx.query(JobAttempt).filter(JobAttempt.error.contains("the model's process"))
        figures.models_killed_at_work = lost.count()
        for number, study in enumerate(studies, start=1):
            states = [(job.state, job.outcome) for job in by_study[study]]
            if states != [("COMPLETED", "RESULT")]:
                figures.problems.append(f"study {number}: jobs {states}")
            received = ledger.received.get(study, {})
            if set(received) != results[study] or ledger.kinds_of(study) != ["SEG", "SR"]:
                figures.problems.append(f"study {number}: the PACS has {ledger.kinds_of(study)}")
            for kind, digests in received.values():
                figures.resends_at_pacs += digests.total() - 1
                if len(digests) > 1:
                    figures.problems.append(f"study {number}: {kind} came with {len(digests)} contents")
    database.close()


@contextmanager
def _pacs() -> Iterator[tuple[PacsLedger, int]]:
    ledger, port = PacsLedger(), find_free_port()
    ae: Any = AE("DEMO_PACS")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context("1.2.840.10008.1.1")
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, ledger.store)])
    try:
        yield ledger, port
    finally:
        server.shutdown()


def _new_node(folder: Path, pacs_port: int) -> KilledNode:
    home = folder / "node"
    home.mkdir(parents=True)
    config = node_config(
        find_free_port,
        write_stub_package(folder / "models"),
        completion={"quiet_period_s": 0.3},
        serve={"longest_restart_s": 0.4},
        jobs={"lease_s": 1.5, "first_retry_s": 0.1, "max_retry_s": 0.5, "max_attempts": 20},
        delivery={"first_retry_s": 0.2, "max_retry_s": 1.0, "lease_s": 2.0},
        inference={"test_mode": True},
        destinations=[destination(pacs_port)],
        routes=[{"name": "all", "model": "sim4seg-s", "query": f"stub sleep {WORK_S}", "target": "lesion"}],
    )
    path = write_config(folder / "node.toml", config)
    return KilledNode(home, path, load_settings(home, path))
