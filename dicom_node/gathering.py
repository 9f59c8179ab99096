"""Instances that are answered as a whole, such as the parts of one STOW-RS request.

While the next one comes, those before it are written and fsynced by other threads; names and rows of all of
them then share the fsyncs of their folders and one transaction. Each has its own result.
"""

from collections.abc import Iterable, Sequence
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

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._waiting: list[tuple[Announced, Entry | NodeError]] = []
        self._files = ExitStack()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, intake: Intake) -> None:
        """Take an instance that has come completely; it is closed here."""
        self._files.push(intake)
        try:
            self._waiting.append((intake.announced, intake.seal()))
        except NodeError as error:
            self._waiting.append((intake.announced, error))
        if len(self._waiting) >= AHEAD:
            _wait_for_all([self._waiting[-AHEAD][1]])

    def settle(self) -> Sequence[Received | Refused]:
        """Have all that was taken durable and indexed; only now is known what became of each, in order."""
        waiting, self._waiting = self._waiting, []
        entries = [entry for _announced, entry in waiting if isinstance(entry, Entry)]
        with self._files.pop_all():
            try:
                if entries:
                    self._receiver.commit(entries)
            finally:
                _wait_for_all(entries)
        return [_became(announced, entry) for announced, entry in waiting]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _wait_for_all(entry for _announced, entry in self._waiting)
        self._files.close()


def _wait_for_all(entries: Iterable[Entry | NodeError]) -> None:
    """Wait until no other thread uses their files."""
    for entry in entries:
        if isinstance(entry, Entry) and entry.made is not None:
            entry.made.wait()


def _became(announced: Announced, entry: Entry | NodeError) -> Received | Refused:
    if isinstance(entry, NodeError):
        return Refused(announced, entry)
    try:
        return received(entry)
    except NodeError as error:
        return Refused(announced, error)
