"""Instances that are answered as a whole, such as the parts of one STOW-RS request.

While the next one comes, those before it are checked, hashed and fsynced by other threads; names and rows of
all of them then share the fsyncs of their folders and one transaction. Each has its own result.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self

from dicom_node.announced import Announced
from dicom_node.committer import Entry
from dicom_node.errors import NodeError
from dicom_node.intake import Intake
from dicom_node.receive import Receiver
from dicom_node.received import Received, received

AHEAD: Final = 4  # instances that are held in memory until a thread has written them


class Refused(NamedTuple):
    """An instance that was not stored, and why."""

    announced: Announced
    error: NodeError


class Gathering:
    """Takes instances in until `settle`; use it in a `with`, of one thread."""

    def __init__(self, receiver: Receiver, sealers: Executor) -> None:
        self._receiver = receiver
        self._sealers = sealers
        self._waiting: list[tuple[Announced, Future[Entry]]] = []
        self._files = ExitStack()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, intake: Intake) -> None:
        """Take an instance that has come completely; it is closed here."""
        self._files.push(intake)
        self._waiting.append((intake.announced, self._sealers.submit(intake.seal)))
        if len(self._waiting) >= AHEAD:
            wait([self._waiting[-AHEAD][1]])

    def settle(self) -> Sequence[Received | Refused]:
        """Have all that was taken durable and indexed; only now is known what became of each, in order."""
        waiting, self._waiting = self._waiting, []
        futures = [future for _announced, future in waiting]
        wait(futures)
        with self._files.pop_all():
            entries = [future.result() for future in futures if future.exception() is None]
            if entries:
                self._receiver.commit(entries)
        return [_became(announced, future) for announced, future in waiting]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait([future for _announced, future in self._waiting])  # they use the files
        self._files.close()


def _became(announced: Announced, future: Future[Entry]) -> Received | Refused:
    try:
        return received(future.result())
    except NodeError as error:
        return Refused(announced, error)
