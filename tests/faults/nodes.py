"""One home with its doors, started by fork: for tests that break what is below it."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynetdicom import AE
from pynetdicom.sop_class import Verification

from tests.faults.load import Instances, Ledger, StoreConnection
from tests.faults.zygote import Zygote
from tests.flow.nodes import find_free_port, write_config

AE_TITLE = "FAULT_NODE"
WITHIN_S = 120.0


def until(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """Wait for `condition`; gives what it gave."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Doors:
    """A node of which only `scp` and `web` run."""

    home: Path
    config: Path
    zygote: Zygote
    dimse_port: int
    http_port: int
    ledger: Ledger = field(default_factory=Ledger)
    _instances: Instances = field(default_factory=lambda: Instances(1))

    @property
    def log(self) -> Path:
        return self.config.parent / "doors.out"

    def words(self, *command: str) -> tuple[str, ...]:
        return (*command, "--home", str(self.home), "--config", str(self.config))

    def start(self, *commands: str) -> None:
        """Start the processes, each a command of one word, and wait until the doors are open."""
        for command in commands or ("scp", "web"):
            self.zygote.spawn(self.log, *self.words(command))
        ports = {"scp": self.dimse_port, "web": self.http_port}
        for command in commands or ("scp", "web"):
            if command in ports:
                until(lambda port=ports[command]: _is_open(port), f"{command}: {self.log}")

    def store(self, instance: tuple[str, bytes] | None = None) -> int:
        """Send one new instance on a new association; returns the status, which is in the ledger too."""
        uid, data_set = instance or self._instances.make()
        connection = StoreConnection(self.dimse_port, AE_TITLE, "SCANNER")
        try:
            status = connection.store(uid, data_set)
        finally:
            connection.close()
        self.ledger.record(uid, data_set, status)
        return status

    def make(self) -> tuple[str, bytes]:
        """Give the next instance, unsent."""
        return self._instances.make()

    def echo(self) -> None:
        """C-ECHO; raises unless it is answered with success."""
        entity = AE("SCANNER")
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", self.dimse_port, ae_title=AE_TITLE)
        assert association.is_established
        answer = association.send_c_echo()
        association.release()
        assert answer.get("Status") == 0x0000, answer

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        with connection_closed(connection):
            connection.request("GET", path, headers={"Accept": "application/dicom, application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def problems(self) -> list[str]:
        """Why the node says that it is not ready; empty when it is."""
        status, body = self.get("/health/ready")
        return [] if status == 200 else list(map(str, json.loads(body)["problems"]))

    def told(self) -> str:
        """All that the processes wrote."""
        logs = sorted((self.home / "logs").glob("*")) if (self.home / "logs").exists() else []
        texts = [path.read_text(errors="replace") for path in (self.log, *logs) if path.exists()]
        return "\n".join(texts)[-8000:]


@contextmanager
def connection_closed(connection: http.client.HTTPConnection) -> Iterator[None]:
    try:
        yield
    finally:
        connection.close()


def _is_open(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


@contextmanager
def running_doors(folder: Path, zygote: Zygote, **sections: dict[str, Any]) -> Iterator[Doors]:
    """A migrated home whose doors run; `sections` as in the configuration file."""
    home = folder / "node"
    dimse_port, http_port = find_free_port(), find_free_port()
    config = {
        "dimse": {"port": dimse_port, "ae_title": AE_TITLE},
        "http": {"port": http_port},
        "logs": {"level": "WARNING"},
        "limits": {"min_free_mb": 0, "low_free_mb": 0},
        **sections,
    }
    path = write_config(folder / "node.toml", config)
    doors = Doors(home, path, zygote, dimse_port, http_port)
    try:
        assert zygote.run(doors.log, *doors.words("migrate")) == 0
        doors.start()
        yield doors
    except BaseException:
        print(doors.told())
        raise
    finally:
        zygote.kill_all()
