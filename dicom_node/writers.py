"""Threads that write files while others check them; handing one over costs a queue and a lock, no more."""

import queue
import threading
from collections.abc import Callable

from storage.errors import StorageError, StorageUnavailable


class Writing:
    """A file that another thread writes."""

    def __init__(self, task: Callable[[], object]) -> None:
        self._task = task
        self._error: StorageError | None = StorageUnavailable("the writing of the file broke off")
        self._is_under_way = threading.Lock()
        self._is_under_way.acquire()

    def run(self) -> None:
        """Write it; of the writing thread."""
        try:
            self._task()
            self._error = None
        except StorageError as error:
            self._error = error
        finally:
            self._is_under_way.release()

    def wait(self) -> StorageError | None:
        """Wait until it is over; returns why it failed, or None."""
        with self._is_under_way:
            return self._error


class Writers:
    """At most `count` threads, started when they are needed."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tasks: queue.SimpleQueue[Writing | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def begin(self, task: Callable[[], object]) -> Writing:
        """Have `task` done by another thread; of its errors only StorageError is expected."""
        writing = Writing(task)
        self._tasks.put(writing)
        if self._tasks.qsize() > 0 and len(self._threads) < self._count:  # nobody was waiting for it
            thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._threads.append(thread)
            thread.start()
        return writing

    def close(self) -> None:
        """End the threads, once everything is written."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (writing := self._tasks.get()) is not None:
            writing.run()
