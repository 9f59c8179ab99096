"""Runs a function on outside data in a child process with limits, so that a bomb ends a child, not the node.

`run_limited` starts a child for one call; a `LimitedPool` keeps some ready, so that a frame costs little.
The function must stand at the top of a module, and what passes is what `wire.py` can carry: plain values,
bytes and arrays. Memory is bounded by RLIMIT_AS (beyond what our own code takes), processor time by
RLIMIT_CPU, time by the caller, who ends the child.
"""

import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from dicom_node import errors, wire
from dicom_node.errors import (
    ChildFailed,
    ChildGone,
    ChildKilled,
    ChildrenBusy,
    DecodeFailed,
    NodeError,
    PixelBudgetExceeded,
)

MIB: Final = 1024 * 1024
DECODERS: Final = ("numpy", "pydicom.pixels")  # imported before the first call, so that it is quick
START_S: Final = 120.0  # longest time that a child may take to start, on a machine that is busy
WATCH_S: Final = 0.1  # between two looks at the memory of a child
USES: Final = 500  # calls after which a child is replaced: memory that a decoder leaks goes with it
CODE_ROOT: Final = Path(__file__).resolve().parent.parent
KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
KEPT_PREFIXES: Final = ("LC_", "CUDA_", "NVIDIA_", "ORT_")


@dataclass(frozen=True)
class Limits:
    """What one call may take; None leaves it unbounded."""

    memory_bytes: int | None  # address space beyond what our own code takes
    cpu_s: float | None  # processor time of the call
    wall_s: float  # time until its result, or until the next part of it
    result_bytes: int = 1024 * MIB  # of one result or part
    resident_bytes: int | None = None  # resident memory of the whole child; looked at ten times a second


def run_limited(
    function: Callable[..., Any],
    arguments: Sequence[object],
    *,
    memory_bytes: int,
    cpu_s: float,
    wall_s: float,
) -> Any:
    """Call `function(*arguments)` in a child of its own and return what it returns.

    Raises
    ------
    PixelBudgetExceeded
        If it needed more than one of the limits.
    DecodeFailed
        If it raised one of the errors that decoders raise; an error of the NodeError tree passes as it is.
    ChildKilled
        If the child ended otherwise: a fault of native code, the kernel's want of memory.
    """
    with LimitedChild() as child:
        return child.call(function, arguments, Limits(memory_bytes, cpu_s, wall_s))


class LimitedChild:
    """One child process; a context manager, and for one thread at a time."""

    def __init__(
        self, preload: Sequence[str] = DECODERS, *, may_write: bool = False, threads: int = 1
    ) -> None:
        self._wire, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node.limited_child", str(theirs.fileno())],
                stdin=subprocess.PIPE,  # the lifeline: closed by the kernel when this process ends
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # warnings of decoders quote values
                pass_fds=(theirs.fileno(),),
                env=_environment(threads),
            )
        self._is_ready = False
        self.uses = 0
        try:
            wire.send(self._wire, {"preload": list(preload), "may_write": may_write})
        except OSError:  # it ended at once; the first call will say so
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can take another call."""
        return self._wire.fileno() >= 0 and self._process.poll() is None

    def kill(self) -> None:
        """End it, whatever it does; may be called twice."""
        self._wire.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        """End it from another thread than the one that waits for its answer, which then gets ChildKilled."""
        self._process.kill()

    def call(self, function: Callable[..., Any], arguments: Sequence[object], limits: Limits) -> Any:
        """Call `function` in the child and return its result; raises as `run_limited` does."""
        self._request(function, arguments, limits, each=False)
        part = self._next(limits)
        self._next(limits)  # the end
        return part["part"]

    def each(
        self, function: Callable[..., Any], arguments: Sequence[object], limits: Limits
    ) -> Iterator[Any]:
        """Yield what the iterable returned by `function` yields; one who stops early ends the child."""
        self._request(function, arguments, limits, each=True)
        is_over = False
        try:
            while not is_over:
                answer = self._next(limits)
                is_over = "end" in answer
                if not is_over:
                    yield answer["part"]
        except NodeError:
            is_over = True
            raise
        finally:
            if not is_over:
                self.kill()

    def _request(
        self, function: Callable[..., Any], arguments: Sequence[object], limits: Limits, *, each: bool
    ) -> None:
        self.uses += 1
        request = {
            "function": _name_of(function),
            "arguments": list(arguments),
            "each": each,
            "memory_bytes": limits.memory_bytes,
            "cpu_s": limits.cpu_s,
        }
        try:
            if not self._is_ready:
                wire.receive(self._wire, MIB, time.monotonic() + START_S)
                self._is_ready = True
            self._wire.settimeout(START_S)
            wire.send(self._wire, request)
        except (OSError, wire.WireClosed, wire.WireTimeout) as error:
            raise self._how_it_ended(limits) from error

    def _next(self, limits: Limits) -> dict[str, Any]:
        """The next part or the end; an error that the function raised is raised here."""
        deadline = time.monotonic() + limits.wall_s
        try:
            self._watch(deadline, limits)
            answer = wire.receive(self._wire, limits.result_bytes, deadline)
        except wire.WireTimeout as error:
            self.kill()
            raise PixelBudgetExceeded(f"it took longer than {limits.wall_s:g} s") from error
        except wire.WireTooLarge as error:
            self.kill()
            raise PixelBudgetExceeded(f"its result is larger than {limits.result_bytes} bytes") from error
        except wire.WireGarbled as error:
            self.kill()
            raise ChildKilled("the child process answered what no child of ours answers") from error
        except (wire.WireClosed, OSError) as error:
            raise self._how_it_ended(limits) from error
        if not isinstance(answer, dict) or not answer.keys() & {"part", "end", "error"}:
            self.kill()
            raise ChildKilled("the child process answered what no child of ours answers")
        if "error" in answer:
            raise self._error_of(answer, limits)
        return answer

    def _watch(self, deadline: float, limits: Limits) -> None:
        """Wait for the answer; end the child when it holds more memory than allowed."""
        if limits.resident_bytes is None:
            return
        poll = select.poll()
        poll.register(self._wire, select.POLLIN)
        while not poll.poll(WATCH_S * 1000):
            if resident_bytes(self.pid) > limits.resident_bytes:
                self.kill()
                raise PixelBudgetExceeded(f"it held more than {limits.resident_bytes // MIB} MiB of memory")
            if time.monotonic() > deadline:
                raise wire.WireTimeout("no answer in time")

    def _error_of(self, answer: dict[str, Any], limits: Limits) -> NodeError:
        kind, text = str(answer["error"]), str(answer.get("text", ""))[:1000]
        if kind == "MemoryError":
            self.kill()  # what it still holds would count against the next call
            return PixelBudgetExceeded(f"it needed more than {_mib(limits.memory_bytes)} of memory")
        ours = getattr(errors, kind, None)
        if isinstance(ours, type) and issubclass(ours, NodeError):
            return ours(text)
        return DecodeFailed(f"it failed with {kind[:64]}")

    def _how_it_ended(self, limits: Limits) -> ChildFailed:
        try:
            status = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            status = 0
        self.kill()
        if status == -signal.SIGXCPU:
            return PixelBudgetExceeded(f"it needed more than {limits.cpu_s or 0:g} s of processor time")
        if status == -signal.SIGKILL:
            return ChildGone("its child process was killed from outside (signal 9)")
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return ChildKilled(f"it ended its child process ({how})")


class LimitedPool:
    """Children that are ready, for many threads; one that ended or was used often is replaced."""

    def __init__(
        self, size: int, *, limits: Limits, preload: Sequence[str] = DECODERS, uses: int = USES
    ) -> None:
        self._limits = limits
        self._preload = tuple(preload)
        self._uses = uses
        self._is_closed = threading.Event()
        self._idle: queue.LifoQueue[LimitedChild | None] = queue.LifoQueue()
        for _ in range(size):  # started when they are needed first
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *arguments: object, limits: Limits | None = None) -> Any:
        """Call `function(*arguments)` in a child; raises as `run_limited` does, and ChildrenBusy."""
        with self._child(limits or self._limits) as child:
            return child.call(function, arguments, limits or self._limits)

    def each(
        self, function: Callable[..., Any], *arguments: object, limits: Limits | None = None
    ) -> Iterator[Any]:
        """Yield what the iterable returned by `function` yields, as it comes; raises as `run` does."""
        with self._child(limits or self._limits) as child:
            yield from child.each(function, arguments, limits or self._limits)

    def close(self) -> None:
        """End the children that are idle; those at work end with their call."""
        self._is_closed.set()
        while True:
            try:
                child = self._idle.get_nowait()
            except queue.Empty:
                return
            if child is not None:
                child.kill()

    @contextmanager
    def _child(self, limits: Limits) -> Iterator[LimitedChild]:
        try:
            child = self._idle.get(timeout=limits.wall_s)
        except queue.Empty as error:
            raise ChildrenBusy("every process that decodes is at work") from error
        try:
            if child is None or not child.is_alive:
                child = self._replace(child)
            yield child
        finally:
            self._give_back(child)

    def _replace(self, child: LimitedChild | None) -> LimitedChild:
        if child is not None:
            child.kill()
        return LimitedChild(self._preload)

    def _give_back(self, child: LimitedChild | None) -> None:
        if child is not None and self._is_closed.is_set():
            child.kill()
            return
        if child is not None and (not child.is_alive or child.uses >= self._uses):
            child = self._replace(child)  # it starts while nobody waits for it
        self._idle.put(child)


def _name_of(function: Callable[..., Any]) -> str:
    name = function.__qualname__
    if not name.isidentifier():
        raise ValueError(f"{name} does not stand at the top of a module")
    return f"{function.__module__}:{name}"


def _environment(threads: int) -> dict[str, str]:
    """Nothing of ours that is secret; one arena and few threads, or their reserves count as memory."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    paths = [str(CODE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }


def resident_bytes(pid: int) -> int:
    """Memory that a process holds, in bytes; 0 when it ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):  # it ended: the wire says how
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _mib(count: int | None) -> str:
    return "its share" if count is None else f"{count // MIB} MiB"
