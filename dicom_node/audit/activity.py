"""Begin and end of the node, or of a process of it that runs alone, and what people do by commands."""

import argparse
import atexit
import getpass
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from dicom_node.audit.keeper import Keeper
from dicom_node.audit.trail import Trail, host_name, spool_of, trail_of
from dicom_node.settings import NodeSettings, load_settings
from storage.errors import StorageError

WHOLE: Final = "serve"
PARTS: Final = frozenset({"scp", "web", "sweep", "worker-run", "worker-deliver"})
"""What may run without `serve` above it; what these start has other names."""
OPERATIONS: Final = frozenset({"requeue", "redeliver", "rebuild-index"})
WORK_ID: Final = re.compile(r"[0-9a-f]{32}")


def runs_alone(settings: NodeSettings, process: str, parent: int | None) -> None:
    """Tell that `process` begins, and at its end that it ends; nothing of what is a part of another one."""
    trail = trail_of(settings)
    is_alone = process == WHOLE or (process in PARTS and parent is None)
    if not is_alone or trail.is_told_of:
        return
    trail.started(process, person())
    atexit.register(_tell_end, trail, process, os.getpid())


def tell_command(options: argparse.Namespace, status: int) -> int:
    """Tell that a person had a command change something, and have it on the disk; gives `status` back."""
    is_change = options.process in OPERATIONS or (options.process == "fsck" and options.repair)
    if is_change:
        settings = load_settings(options.home, options.config)
        ids = [*getattr(options, "jobs", ()), *getattr(options, "deliveries", ())]
        named = " ".join(each for each in ids if WORK_ID.fullmatch(each)) or "(none named)"
        what = f"dicom-node {options.process} {named}, status {status}"
        trail_of(settings).operated(person(), host_name(), what)
        with suppress(OSError, StorageError):  # told by the trail, if it could not be written
            spool_of(settings).flush()
    return status


def person() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


@contextmanager
def kept(settings: NodeSettings) -> Iterator[None]:
    """Tend the trail meanwhile: for the one process of a node that does."""
    keeper = Keeper(settings)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


def _tell_end(trail: Trail, process: str, pid: int) -> None:
    if os.getpid() == pid:
        trail.stopped(process, person())
