"""MicroBatcher: an engine that many threads feed at once; out of memory it does less at a time."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from inference.errors import DeviceOutOfMemory
from inference.runtime.call_queue import URGENCY, CallQueue
from inference.runtime.engine import AroundEngine, Array, Engine, Tensors

BUCKETS = (1, 2, 4, 8, 16)  # batches as static shapes: an execution provider tunes and captures each once
Outputs = dict[str, Array]


class DeviceTurn:
    """Who may use a device: many at once, or one alone."""

    def __init__(self, forget: Callable[[], None] = lambda: None) -> None:
        """`forget` gives memory back that is not needed; it is called before anybody is alone."""
        self._forget = forget
        self._changed = threading.Condition()
        self._users = 0
        self._is_taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the device beside others."""
        with self._changed:
            while self._is_taken:
                self._changed.wait()
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if self._is_taken:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Use the device while nobody else does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            self._is_taken = True
            self._changed.wait_for(lambda: self._users == 0)
        try:
            self._forget()
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()


class Joining(Protocol):
    """How what several threads ask becomes one run of a graph."""

    def alike(self, feeds: Tensors) -> Hashable:
        """Only what is equal in this may go together."""
        ...

    def join(self, feeds: Sequence[Tensors]) -> Tensors:
        """The inputs of all, as one."""
        ...

    def split(self, out: Mapping[str, Array], feeds: Sequence[Tensors]) -> Sequence[Outputs]:
        """The outputs of each."""
        ...


class Images:
    """One image each: the first axis is a batch, in buckets whose shapes stay the same."""

    def alike(self, feeds: Tensors) -> Hashable:
        """Of one shape and type."""
        return tuple((name, value.dtype.str, value.shape[1:]) for name, value in sorted(feeds.items()))

    def join(self, feeds: Sequence[Tensors]) -> Tensors:
        """Side by side; the last one fills the bucket."""
        size = next(bucket for bucket in BUCKETS if bucket >= len(feeds))
        padded = [*feeds, *[feeds[-1]] * (size - len(feeds))]
        return {name: np.concatenate([each[name] for each in padded]) for name in feeds[0]}

    def split(self, out: Mapping[str, Array], feeds: Sequence[Tensors]) -> Sequence[Outputs]:
        """A row each."""
        return [{name: value[row : row + 1] for name, value in out.items()} for row in range(len(feeds))]


IMAGES = Images()


class MicroBatcher(AroundEngine):
    """Runs `engine` for many threads, together where `joining` can.

    Out of memory: the batch is halved, down to one image; that is tried alone on the device, then on
    `fallback` (the CPU), and then it fails as DeviceOutOfMemory. A size that did not fit is not tried again.
    """

    def __init__(
        self,
        engine: Engine,
        turn: DeviceTurn,
        *,
        max_batch: int = 1,
        delay_s: float = 0.0,
        fallback: Engine | None = None,
        joining: Joining = IMAGES,
    ) -> None:
        """Run up to `max_batch` together, if the graph's axes are free; wait `delay_s` for company."""
        super().__init__(engine)
        self._turn, self._fallback, self._joining = turn, fallback, joining
        self.largest = max_batch if is_batched(engine) else 1
        self._calls = CallQueue[Tensors, Outputs](
            self._run_all,
            most=self.largest,
            delay_s=delay_s if self.largest > 1 else 0.0,
            alike=joining.alike,
        )

    def run(self, feeds: Tensors) -> Outputs:
        """Every output by name for one input of each; raises as the engine does, and DeadlinePassed."""
        return self._calls.ask(feeds, URGENCY.get())

    def warm_up(self, feeds: Tensors) -> None:
        """Run once in every bucket: none is met first by a request."""
        for bucket in (each for each in BUCKETS if each <= self.largest):
            self._together([feeds] * bucket)

    def _run_all(self, feeds: Sequence[Tensors]) -> list[Outputs | Exception]:
        if len(feeds) > self.largest:
            return self._in_halves(feeds)
        try:
            return list(self._together(feeds))
        except DeviceOutOfMemory:
            if len(feeds) == 1:
                return [self._last_resort(feeds[0])]
            self.largest = (len(feeds) + 1) // 2  # of three the next try is two
            return self._in_halves(feeds)

    def _in_halves(self, feeds: Sequence[Tensors]) -> list[Outputs | Exception]:
        middle = len(feeds) // 2
        return [*self._run_all(feeds[:middle]), *self._run_all(feeds[middle:])]

    def _together(self, feeds: Sequence[Tensors]) -> Sequence[Outputs]:
        with self._turn.shared():
            if len(feeds) == 1:
                return [self._engine.run(feeds[0])]
            return self._joining.split(self._engine.run(self._joining.join(feeds)), feeds)

    def _last_resort(self, feeds: Tensors) -> Outputs | Exception:
        try:
            with self._turn.alone():
                return self._engine.run(feeds)
        except DeviceOutOfMemory as error:
            if self._fallback is None:
                return error
        try:
            return self._fallback.run(feeds)
        except DeviceOutOfMemory as error:
            return error


def is_batched(engine: Engine) -> bool:
    """Whether the first axis of everything that goes in and comes out varies: a batch of what is alike."""
    specs = [*engine.inputs.values(), *engine.outputs.values()]
    return all(spec.shape and spec.shape[0] is None for spec in specs)
