"""Many threads, one engine: most urgent first, together where it helps, nothing lost, less when full."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from inference.errors import DeadlinePassed, DeviceOutOfMemory, OutputInvalid
from inference.runtime.batcher import BUCKETS, DeviceTurn, MicroBatcher, is_batched
from inference.runtime.call_queue import URGENCY, CallQueue, Urgency
from inference.runtime.engine import Array, Tensors
from inference.runtime.onnx_engine import OnnxEngine

FEW = settings(max_examples=25, deadline=None)


def squares(batch: int | str = "batch") -> OnnxEngine:
    """A real engine: y = x * x + 1 of rows of three numbers."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["xx"]), helper.make_node("Add", ["xx", "one"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return OnnxEngine("squares.onnx", model.SerializeToString(), threads=1)


class Small:
    """The engine on a device that holds `room` rows; a run beyond that finds no memory."""

    def __init__(self, engine: OnnxEngine, room: Callable[[int], bool]) -> None:
        self._engine, self._room = engine, room
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self.sizes: list[int] = []

    def run(self, feeds: Tensors) -> dict[str, Array]:
        size = len(feeds["x"])
        self.sizes.append(size)
        if not self._room(size):
            raise DeviceOutOfMemory("squares.onnx: no memory left (injected)")
        return self._engine.run(feeds)

    def warm_up(self, feeds: Tensors) -> None:
        self.run(feeds)


def row(number: float) -> dict[str, Array]:
    return {"x": np.full((1, 3), number, np.float32)}


def ask_all(batcher: MicroBatcher, count: int) -> list[Any]:
    """What `count` threads get that ask at the same moment: an output, or what was raised."""
    start = threading.Barrier(count)

    def ask(number: int) -> Any:
        start.wait()
        try:
            return batcher.run(row(number))["y"]
        except DeviceOutOfMemory as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


@FEW
@given(st.integers(1, 24), st.integers(1, 16))
def test_every_thread_gets_its_own_answer_and_every_batch_is_a_bucket(count: int, largest: int) -> None:
    engine = Small(squares(), lambda _: True)
    batcher = MicroBatcher(engine, DeviceTurn(), max_batch=largest, delay_s=0.002)
    for number, answer in enumerate(ask_all(batcher, count)):
        assert (answer == number * number + 1).all()
        assert answer.shape == (1, 3)
    assert set(engine.sizes) <= set(BUCKETS)
    assert sum(engine.sizes) >= count


def test_the_wait_for_company_makes_batches() -> None:
    engine = Small(squares(), lambda _: True)
    ask_all(MicroBatcher(engine, DeviceTurn(), max_batch=8, delay_s=30.0), 8)  # ends with the eighth
    assert engine.sizes == [8]


@FEW
@given(st.integers(1, 16), st.integers(0, 16))
def test_out_of_memory_runs_fewer_at_a_time(count: int, room: int) -> None:
    engine = Small(squares(), lambda size: size <= room)
    batcher = MicroBatcher(engine, DeviceTurn(), max_batch=16, delay_s=0.05, fallback=squares())
    for number, answer in enumerate(ask_all(batcher, count)):
        assert (answer == number * number + 1).all()  # on the processor where there is no room at all
    if 0 < room < count:
        before = len(engine.sizes)
        ask_all(batcher, count)
        assert max(engine.sizes[before:]) <= max(room, batcher.largest)


def test_one_image_that_finds_no_memory_is_tried_alone_then_elsewhere_then_fails() -> None:
    forgotten: list[bool] = []
    turn = DeviceTurn(lambda: forgotten.append(True))
    alone = Small(squares(), lambda _: bool(forgotten))  # what others held is given back first
    assert (MicroBatcher(alone, turn).run(row(2))["y"] == 5).all()
    assert alone.sizes == [1, 1]
    never = Small(squares(), lambda _: False)
    assert (MicroBatcher(never, turn, fallback=squares()).run(row(3))["y"] == 10).all()
    with pytest.raises(DeviceOutOfMemory):
        MicroBatcher(never, turn).run(row(1))
    with pytest.raises(DeviceOutOfMemory):
        MicroBatcher(never, turn, fallback=Small(squares(), lambda _: False)).run(row(1))
    assert (MicroBatcher(squares(), turn).run(row(1))["y"] == 2).all()  # the device was given back


def test_who_is_alone_waits_for_the_others_and_keeps_them_out() -> None:
    turn, inside, leave, order = DeviceTurn(), threading.Event(), threading.Event(), list[str]()

    def use() -> None:
        with turn.shared():
            inside.set()
            leave.wait(30)
            order.append("shared")

    def be_alone() -> None:
        with turn.alone():
            order.append("alone")

    first = threading.Thread(target=use)
    first.start()
    inside.wait(30)
    second = threading.Thread(target=be_alone)
    second.start()
    leave.set()
    for thread in (first, second):
        thread.join(30)
    assert order == ["shared", "alone"]


def test_a_graph_with_a_fixed_batch_is_run_one_at_a_time() -> None:
    assert is_batched(squares())
    assert not is_batched(squares(1))
    assert MicroBatcher(squares(1), DeviceTurn(), max_batch=16).largest == 1


def test_images_of_different_shapes_do_not_meet() -> None:
    def lengths(requests: Sequence[Array]) -> list[Array]:
        assert len({each.shape for each in requests}) == 1
        return [each + 1 for each in requests]

    calls = CallQueue[Array, Array](lengths, most=8, delay_s=0.01, alike=lambda each: each.shape)
    arrays = [np.zeros(length) for length in (1, 2, 1, 2, 3, 1)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda each: calls.ask(each, Urgency()), arrays))
    assert [len(each) for each in answers] == [1, 2, 1, 2, 3, 1]


# --- order, deadlines, faults: the queue itself ------------------------------------------------


class Held:
    """A queue whose first request holds it until `go`: what comes meanwhile waits."""

    def __init__(self, most: int = 1, clock: Callable[[], float] | None = None) -> None:
        self.ran: list[list[int]] = []
        self._entered, self._go = threading.Event(), threading.Event()
        options = {} if clock is None else {"clock": clock}
        self.calls = CallQueue[int, int](self._run, most=most, **options)
        self._pool = ThreadPoolExecutor(40)
        self._first = self._pool.submit(self.calls.ask, -1, Urgency())
        self._entered.wait(30)

    def _run(self, requests: Sequence[int]) -> list[int]:
        if list(requests) == [-1]:
            self._entered.set()
            self._go.wait(30)
        else:
            self.ran.append(list(requests))
        return [request * 10 for request in requests]

    def ask(self, number: int, urgency: Urgency) -> Any:
        """Ask from a thread of its own; returns once the request waits."""
        before = len(self.calls._waiting)
        future = self._pool.submit(self.calls.ask, number, urgency)
        with self.calls._changed:
            assert self.calls._changed.wait_for(lambda: len(self.calls._waiting) > before, 30)
        return future

    def go(self) -> None:
        self._go.set()
        self._pool.shutdown()


@FEW
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5))
def test_the_most_urgent_first_and_of_equals_the_first_to_come(priorities: list[int], most: int) -> None:
    held = Held(most, clock=lambda: 0.0)
    futures = [held.ask(number, Urgency(priority)) for number, priority in enumerate(priorities)]
    held.go()
    assert [future.result() for future in futures] == [10 * number for number in range(len(priorities))]
    ran = [number for batch in held.ran for number in batch]
    assert ran == sorted(range(len(priorities)), key=lambda number: (-priorities[number], number))
    assert all(len(batch) <= most for batch in held.ran)


def test_who_waits_long_enough_comes_before_the_urgent() -> None:
    now = [0.0]
    held = Held(clock=lambda: now[0])
    futures = [held.ask(0, Urgency(priority=0))]
    now[0] = 60.0
    futures.append(held.ask(1, Urgency(priority=3)))
    held.go()
    assert held.ran == [[0], [1]]
    assert [future.result() for future in futures] == [0, 10]


def test_what_is_too_late_is_refused_and_never_run() -> None:
    held = Held()
    timely = held.ask(1, Urgency())
    late = held._pool.submit(held.calls.ask, 0, Urgency(deadline=0.0))
    with pytest.raises(DeadlinePassed):  # at once, though the engine is still held by another
        late.result(30)
    held.go()
    assert timely.result() == 10
    assert held.ran == [[1]]
    alone = CallQueue[int, int](list)
    with pytest.raises(DeadlinePassed):
        alone.ask(1, Urgency(deadline=0.0))
    assert alone.ask(2, Urgency()) == 2


def test_a_fault_reaches_everybody_of_its_batch_and_nobody_else() -> None:
    def run(requests: Sequence[int]) -> list[int | Exception]:
        if 13 in requests:
            raise OutputInvalid("thirteen")
        return [ValueError("odd") if request % 2 else request for request in requests]

    calls = CallQueue[int, int](run, most=4, delay_s=0.01, alike=lambda request: request > 9)

    def ask(request: int) -> object:
        try:
            return calls.ask(request, Urgency())
        except (ValueError, OutputInvalid) as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, (2, 3, 13, 4))) == [2, "odd", "thirteen", 4]


def test_a_fault_of_our_own_stops_nobody_for_good() -> None:
    def run(requests: Sequence[int]) -> list[int]:
        return [1 // request for request in requests]

    calls = CallQueue[int, int](run, most=2, delay_s=30.0)  # ends with the second

    def ask(request: int) -> str:
        try:
            return str(calls.ask(request, Urgency()))
        except (ZeroDivisionError, RuntimeError) as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(ask, (0, 1))) == ["RuntimeError", "ZeroDivisionError"]
        assert list(pool.map(ask, (1, 1))) == ["1", "1"]


def test_the_urgency_of_a_thread_reaches_the_engine() -> None:
    batcher = MicroBatcher(squares(), DeviceTurn())
    token = URGENCY.set(Urgency(deadline=0.0))
    with pytest.raises(DeadlinePassed):
        batcher.run(row(1))
    URGENCY.reset(token)
    assert (batcher.run(row(1))["y"] == 2).all()
