"""Looks whether the broker answers; /health/ready says so when it does not, and work goes on without it."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from dicom_node import readiness

LOOK_EVERY_S: Final = 5.0
BROKER: Final = "broker"
SENTENCE: Final = (
    "the broker cannot be reached: images are taken, and jobs run and results go out a little later; "
    "start it again, or correct broker.url"
)


class BrokerWatch(threading.Thread):
    """A thread of the sweep's process: a broker that hangs must not make the sweep wait."""

    def __init__(self, app: Celery, home: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        super().__init__(name="broker-watch", daemon=True)
        self._app = app
        self._home = home
        self._look_every_s = look_every_s
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look again and again, until `stop`."""
        while not self._is_over.is_set():
            problem = None if answers(self._app) else SENTENCE
            with suppress(OSError):  # a full disk has a word of its own there
                readiness.report(self._home, BROKER, problem)
            self._is_over.wait(self._look_every_s)

    def stop(self) -> None:
        """Look no more; what was said last stays said."""
        self._is_over.set()


def answers(app: Celery) -> bool:
    """Whether the broker takes a new connection of ours within the timeouts of the app."""
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        except (OperationalError, *connection.connection_errors, *connection.channel_errors):
            return False
    return True
