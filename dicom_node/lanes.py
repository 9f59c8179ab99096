"""9 DELIVER, side by side. Each destination has threads of its own, so that a slow one delays no other."""

import threading
from collections.abc import Callable
from functools import partial

from dicom_node.steady import steadily

LOOK_AGAIN_S = 2.0  # when no wake-up comes: the broker may be down


class Lanes:
    """The threads of all destinations; wake-ups only shorten their waiting, the outbox is the truth.

    `work` makes one pass for a destination and says whether there may be more to do at once.
    """

    def __init__(
        self,
        work: Callable[[str], bool],
        threads_of: Callable[[str], int],
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._work = work
        self._threads_of = threads_of
        self._look_again_s = look_again_s
        self._lock = threading.Lock()
        self._events: dict[str, list[threading.Event]] = {}
        self._threads: list[threading.Thread] = []
        self._is_stopping = threading.Event()

    def wake(self, destination: str) -> None:
        """Let the destination's threads look at once; they are started when it is the first time."""
        with self._lock:
            if self._is_stopping.is_set():
                return
            if destination not in self._events:
                self._open(destination)
            for event in self._events[destination]:
                event.set()

    def _open(self, destination: str) -> None:
        self._events[destination] = []
        for number in range(self._threads_of(destination)):
            event = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(destination, event), name=f"lane-{destination}-{number}", daemon=True
            )
            self._events[destination].append(event)
            self._threads.append(thread)
            thread.start()

    def stop(self, limit_s: float) -> bool:
        """Take up nothing new, wait at most `limit_s` for what is being sent; True when all is at rest."""
        with self._lock:
            self._is_stopping.set()
            for events in self._events.values():
                for event in events:
                    event.set()
        for thread in self._threads:
            thread.join(limit_s / max(len(self._threads), 1))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, destination: str, event: threading.Event) -> None:
        while not self._is_stopping.is_set():
            event.clear()
            work = partial(self._work, destination)
            if not steadily(work, otherwise=False, what="a pass over the outbox", destination=destination):
                event.wait(self._look_again_s)
