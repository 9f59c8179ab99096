"""The child's side of limited.py: bounds itself, then calls the functions it is asked for, one at a time.

It is started as `python -m dicom_node.limited_child SOCKET`; its standard input is the lifeline: when the
parent ends, however it ends, the kernel closes that pipe and SIGIO ends the child, even in native code.
"""

import contextlib
import ctypes
import fcntl
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pydicom.errors import InvalidDicomError

from dicom_node import wire
from dicom_node.errors import NodeError

LIFELINE: Final = 0
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024 * 1024
MAX_OPEN_FILES: Final = 64
OOM_SCORE: Final = 900  # before the node itself, a machine without memory ends this one
PR_SET_NO_NEW_PRIVS: Final = 38
EXIT_ASKED: Final = 0

# What decoders raise for bytes that they cannot decode; there is no common base class. Whatever else is
# raised ends the child, which is replaced.
FAILURES: Final = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, OSError,
    RuntimeError, TypeError, ValueError, struct.error, zlib.error, InvalidDicomError, NodeError,
)  # fmt: skip


def main(descriptor: int) -> int:
    """Serve calls on the socket `descriptor` until the parent closes it."""
    channel = socket.socket(fileno=descriptor)
    _end_with_lifeline()
    child = _Child(channel)
    with contextlib.suppress(wire.WireClosed, BrokenPipeError):
        child.serve()
    return EXIT_ASKED


def _end_with_lifeline() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends the process
    fcntl.fcntl(LIFELINE, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(LIFELINE, fcntl.F_GETFL)
    fcntl.fcntl(LIFELINE, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(LIFELINE, select.POLLIN)
    if poll.poll(0):  # it was closed before we asked
        sys.exit(EXIT_ASKED)


def _limit_for_good(*, may_write: bool) -> None:
    """No core dump, no new rights, first to go when memory runs out; no file written, few files open."""
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if may_write:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Child:
    """One limited child: the modules it has imported, and what they cost."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._modules: set[str] = set()
        self._own_bytes = _address_space_bytes()

    def serve(self) -> None:
        """Answer one request after the other."""
        while True:
            request = wire.receive(self._channel, MAX_REQUEST_BYTES)
            self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        if "preload" in request:
            for module in request["preload"]:
                self._module(module)
            _limit_for_good(may_write=request["may_write"])
            wire.send(self._channel, {"ready": True})
            return
        try:
            for part in self._parts(request):
                wire.send(self._channel, {"part": part})
            answer: dict[str, object] = {"end": True}
        except MemoryError:
            answer = {"error": "MemoryError", "text": ""}
        except FAILURES as error:
            is_ours = isinstance(error, NodeError)
            answer = {"error": type(error).__name__, "text": str(error) if is_ours else ""}
        finally:
            _limit_memory(None)
        wire.send(self._channel, answer)

    def _parts(self, request: dict[str, Any]) -> Iterator[object]:
        function = self._function(request["function"])
        _limit_cpu(request["cpu_s"])
        if request["memory_bytes"] is not None:
            _limit_memory(self._own_bytes + request["memory_bytes"])
        result = function(*request["arguments"])
        if request["each"]:
            yield from result
        else:
            yield result

    def _function(self, name: str) -> Callable[..., Any]:
        module, _, function = name.partition(":")
        found: Callable[..., Any] = getattr(self._module(module), function)
        return found

    def _module(self, name: str) -> Any:
        module = importlib.import_module(name)
        if name not in self._modules:
            self._modules.add(name)
            self._own_bytes = _address_space_bytes()  # what our own code takes does not count
        return module


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _limit_memory(total_bytes: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard if total_bytes is None else total_bytes, hard))


def _limit_cpu(cpu_s: float | None) -> None:
    """From now on `cpu_s` seconds of CPU; past them SIGXCPU ends the process."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = hard if cpu_s is None else int(time.process_time() + cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
