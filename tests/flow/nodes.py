"""A real node for the flow tests: `dicom-node serve` in processes of its own, on free ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node.dimse.scu import SendStatus, send_instances
from dicom_node.joblist import plain_jobs
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.settings_network import PeerSettings
from storage.database import Database
from storage.index import find_study
from storage.tables import Study

REPOSITORY = Path(__file__).resolve().parents[2]
READY_LIMIT_S = 90.0


def until(condition: Callable[[], Any], what: str, limit_s: float = 60.0, pause_s: float = 0.05) -> Any:
    """Wait for `condition` and give what it gave."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {limit_s:g} s for: {what}"
        time.sleep(pause_s)
    return found


def find_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether somebody takes connections at this port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@dataclass
class Node:
    """A node that runs: where it is and what it says."""

    settings: NodeSettings
    database: Database
    config: Path
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def peer(self) -> PeerSettings:
        """How to reach its listener."""
        dimse = self.settings.dimse
        return PeerSettings(name="node", ae_title=dimse.ae_title, host=dimse.host, port=dimse.port)

    @property
    def url(self) -> str:
        return f"http://{self.settings.http.host}:{self.settings.http.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get_json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, (path, status, body[:500])
        return json.loads(body)

    def send(self, paths: Sequence[Path]) -> list[SendStatus]:
        """C-STORE the files to the node."""
        return send_instances(paths, self.peer, "SCANNER")

    def listens(self) -> bool:
        """Whether its listener takes connections."""
        return is_listening(self.peer.port)

    def jobs(self) -> list[dict[str, Any]]:
        return plain_jobs(self.database)

    def study(self, uid: str) -> Study | None:
        with self.database.reading() as tx:
            return find_study(tx, uid)

    def wait_for_jobs(self, count: int = 1, limit_s: float = 90.0) -> list[dict[str, Any]]:
        """The jobs, once there are `count` of them and all are over."""

        def over() -> bool:
            jobs = self.jobs()
            return len(jobs) >= count and all(job["state"] in {"COMPLETED", "CANCELED"} for job in jobs)

        until(over, f"{count} jobs to end, {self.jobs()}", limit_s)
        return self.jobs()

    def pid(self, name: str) -> int:
        """The process id of a part of the node, 0 while it has none."""
        path = self.home / "run" / f"{name}.pid"
        text = path.read_text().strip() if path.exists() else ""
        return int(text) if text else 0

    def command(self, *words: str, status: int = 0) -> str:
        """Run `dicom-node` on this home; gives what it printed."""
        return command(*words, "--home", str(self.home), "--config", str(self.config), status=status)

    def logs(self) -> str:
        """Everything the node wrote into its logs."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')}"
            for path in sorted((self.home / "logs").glob("*"))
        )


def command(*words: str, status: int = 0) -> str:
    """Run `dicom-node` with `words`; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", *words],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def write_config(path: Path, sections: Mapping[str, Any]) -> Path:
    """A TOML file of `sections`; a list of tables becomes an array of tables."""
    lines: list[str] = []
    for name, section in sections.items():
        for table in section if isinstance(section, list) else [section]:
            lines.append(f"[[{name}]]" if isinstance(section, list) else f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def node_config(free_port: Callable[[], int], models: Path, **sections: Any) -> dict[str, Any]:
    """A configuration for tests: free ports, a short quiet period, quick retries."""
    config: dict[str, Any] = {
        "dimse": {"port": free_port()},
        "http": {"port": free_port()},
        "completion": {"quiet_period_s": 0.5},
        "sweep": {"interval_s": 0.1, "reissue_s": 1.0},
        "jobs": {"lease_s": 3.0, "first_retry_s": 0.2},
        "delivery": {"first_retry_s": 0.3, "lease_s": 5.0},
        "limits": {"min_free_mb": 1},
        "inference": {"model_repository": str(models), "threads": 1},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    return config


def destination(port: int, ae_title: str = "DEMO_PACS") -> dict[str, Any]:
    return {"name": "pacs", "ae_title": ae_title, "host": "127.0.0.1", "port": port}


@contextmanager
def running_node(home: Path, config: Mapping[str, Any], *, is_ready: bool = True) -> Iterator[Node]:
    """`dicom-node serve`, ready unless `is_ready` says that it will not be; ended with the block."""
    home.mkdir(parents=True, exist_ok=True)
    path = write_config(home.parent / f"{home.name}.toml", config)
    settings = load_settings(home, path)
    arguments = [sys.executable, "-m", "dicom_node", "serve", "--home", str(home), "--config", str(path)]
    process = subprocess.Popen(
        [*arguments, "--parent", str(os.getpid())],
        cwd=REPOSITORY,
        start_new_session=True,
        stderr=subprocess.STDOUT,
    )
    database = Database(settings.storage.database_url)
    node = Node(settings, database, path, process)
    try:
        until(lambda: _answers(node, is_ready=is_ready), "the node to answer", READY_LIMIT_S)
        yield node
    except BaseException:
        print(node.logs()[-20000:])
        raise
    finally:
        database.close()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _answers(node: Node, *, is_ready: bool) -> bool:
    assert node.process.poll() is None, "the node ended"
    try:
        status, body = node.get("/health/ready")
    except OSError:
        return False
    if not is_ready:
        return status == 503 and b"starting" not in body and b"being opened" not in body
    return status == 200 and node.pid("scp") != 0 and node.listens()


@contextmanager
def second_worker(node: Node) -> Iterator[None]:
    """One more worker for jobs beside the node's own: it takes what seems to be nobody's."""
    where = ["--home", str(node.home), "--config", str(node.config), "--parent", str(os.getpid())]
    command = [sys.executable, "-m", "dicom_node", "worker", "run", *where]
    started = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        started.terminate()
        started.wait(timeout=60)
