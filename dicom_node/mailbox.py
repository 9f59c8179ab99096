"""The embedded broker: kombu's folder of messages, whose files appear whole or not at all.

kombu writes a message in place, so that a reader, or whoever comes after a crash, may find half of it, and a
file that is not JSON ends its reader. Here a message is renamed into the folder; one that cannot be read is
dropped, as any wake-up may be. Queues are addressed by their names, so no tables of exchanges are kept.
"""

import json
import logging
import uuid
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any, Final

from kombu.transport import TRANSPORT_ALIASES, filesystem

logger = logging.getLogger(__name__)

SCHEME: Final = "mailbox"
MAX_MESSAGE_BYTES: Final = 64 * 1024


class Channel(filesystem.Channel):
    """A folder with one file for each message, `TIME_RANDOM.QUEUE.msg`; the oldest is taken first."""

    def get_table(self, exchange: str) -> list[Any]:
        """No queue is bound to an exchange."""
        del exchange
        return []

    def _queue_bind(self, *_: object) -> None:
        """Nothing to remember."""

    def _put(self, queue: str, payload: object, **_: object) -> None:  # type: ignore[override] # as kombu's
        name = f"{round(monotonic() * 1000):016d}_{uuid.uuid4().hex}"
        folder = Path(self.data_folder_out)
        draft = folder / f".{name}"
        draft.write_text(json.dumps(payload), encoding="utf-8")
        draft.rename(folder / f"{name}.{queue}.msg")

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        del timeout
        for path in sorted(Path(self.data_folder_in).glob(f"*.{queue}.msg")):
            message = _take(path)
            if message is not None:
                return message
        raise Empty


def _take(path: Path) -> dict[str, Any] | None:
    """Read and remove a message; None when another was quicker, or it is none."""
    taken = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        path.rename(taken)
    except FileNotFoundError:
        return None
    with taken.open("rb") as file:
        content = file.read(MAX_MESSAGE_BYTES + 1)
    taken.unlink()
    try:
        message = json.loads(content) if len(content) <= MAX_MESSAGE_BYTES else None
    except ValueError:
        message = None
    if not isinstance(message, dict):
        logger.warning("a message that is none was dropped", extra={"bytes": len(content)})
        return None
    return message


class Transport(filesystem.Transport):
    """Kombu's transport of the name SCHEME, once `register` was called."""

    Channel = Channel


def register() -> None:
    """Let kombu know the scheme."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"
