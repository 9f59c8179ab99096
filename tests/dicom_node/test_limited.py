import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dicom_node.errors import (
    ChildFailed,
    ChildGone,
    ChildKilled,
    ChildrenBusy,
    DecodeFailed,
    NotFound,
    PixelBudgetExceeded,
)
from dicom_node.limited import MIB, LimitedChild, LimitedPool, Limits, run_limited
from tests.conftest import REPOSITORY
from tests.dicom_node import limited_functions as functions

PLENTY = Limits(memory_bytes=256 * MIB, cpu_s=30, wall_s=60)


@pytest.fixture(scope="module")
def pool() -> Iterator[LimitedPool]:
    with LimitedPool(1, limits=PLENTY) as made:
        yield made


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(condition: object, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_one_call_in_a_child_of_its_own() -> None:
    pixels = np.arange(6, dtype=np.int16).reshape(2, 3)
    doubled = run_limited(functions.double, [pixels], memory_bytes=256 * MIB, cpu_s=10, wall_s=60)
    assert doubled.dtype == np.int16
    assert (doubled == pixels * 2).all()


def test_values_come_back_as_they_went(pool: LimitedPool) -> None:
    values = [None, True, 3, 2.5, "ä", b"\x00\xff", (1, [2, (3,)]), {"a": b"b", "array": 1}]
    assert pool.run(functions.echo, *values) == values
    empty = pool.run(functions.echo, np.zeros((0, 3), np.float32))[0]
    assert empty.shape == (0, 3)


def test_a_result_can_be_written_to(pool: LimitedPool) -> None:
    doubled = pool.run(functions.double, np.ones((4, 4), np.uint8))
    doubled[0, 0] = 7
    assert doubled[0, 0] == 7


def test_what_is_not_plain_does_not_pass(pool: LimitedPool) -> None:
    with pytest.raises(TypeError):
        pool.run(functions.echo, object())
    with pytest.raises(TypeError):
        pool.run(functions.echo, np.array([object()]))
    with pytest.raises(ValueError, match="top of a module"):
        pool.run(lambda: 1)


def test_parts_come_one_by_one(pool: LimitedPool) -> None:
    parts = list(pool.each(functions.count_to, 5))
    assert [int(part[0, 0]) for part in parts] == [0, 1, 2, 3, 4]


def test_who_stops_early_leaves_a_usable_pool(pool: LimitedPool) -> None:
    for part in pool.each(functions.count_to, 1000):
        assert part.shape == (2, 3)
        break
    assert pool.run(functions.echo, 1) == [1]


def test_an_error_between_parts_is_raised_there(pool: LimitedPool) -> None:
    got = []
    with pytest.raises(DecodeFailed):
        got.extend(pool.each(functions.count_then_break, 3))
    assert pool.run(functions.echo, 1) == [1]


@pytest.mark.parametrize(
    ("function", "arguments", "error"),
    [
        (functions.take_memory, (512,), PixelBudgetExceeded),
        (functions.segfault, (), ChildKilled),
        (functions.kill_itself, (), ChildGone),
        (functions.fail, (), DecodeFailed),
        (functions.recurse, (), DecodeFailed),
        (functions.fail_as_ours, (), NotFound),
        (functions.fail_oddly, (), ChildKilled),
        (functions.lie, (), ChildKilled),
        (functions.lie_about_length, (), PixelBudgetExceeded),
    ],
)
def test_what_goes_wrong_is_a_typed_error_and_the_pool_goes_on(
    pool: LimitedPool, function: object, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        pool.run(function, *arguments)
    assert "SECRET" not in str(raised.value)
    assert pool.run(functions.echo, "still here") == ["still here"]


def test_processor_time_is_bounded(pool: LimitedPool) -> None:
    with pytest.raises(PixelBudgetExceeded, match="processor time"):
        pool.run(functions.spin, limits=Limits(memory_bytes=256 * MIB, cpu_s=0.5, wall_s=120))


def test_time_is_bounded(pool: LimitedPool) -> None:
    with pytest.raises(PixelBudgetExceeded, match="longer than"):
        pool.run(functions.sleep, 3600, limits=Limits(memory_bytes=256 * MIB, cpu_s=10, wall_s=0.3))


def test_a_result_is_bounded(pool: LimitedPool) -> None:
    small = Limits(memory_bytes=256 * MIB, cpu_s=10, wall_s=60, result_bytes=MIB)
    with pytest.raises(PixelBudgetExceeded, match="larger"):
        pool.run(functions.large, 8, limits=small)


def test_resident_memory_is_watched(pool: LimitedPool) -> None:
    limits = Limits(memory_bytes=None, cpu_s=None, wall_s=60, resident_bytes=32 * MIB)
    with pytest.raises(PixelBudgetExceeded, match="32 MiB of memory"):
        pool.run(functions.sleep, 3600, limits=limits)


def test_memory_of_earlier_calls_does_not_count(pool: LimitedPool) -> None:
    for _ in range(5):
        assert pool.run(functions.take_memory, 150) == 150 << 20


def test_a_child_writes_no_file_and_knows_no_secret(
    pool: LimitedPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ChildFailed):
        pool.run(functions.write_file, str(tmp_path / "written"))
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0
    monkeypatch.setenv("DICOM_NODE_BROKER__URL", "redis://:password@host")
    assert "password" not in str(
        run_limited(functions.environment, [], memory_bytes=MIB << 8, cpu_s=9, wall_s=60)
    )


def test_a_child_is_used_again_and_replaced_in_the_end() -> None:
    with LimitedPool(1, limits=PLENTY, uses=3) as small:
        pids = [small.run(functions.process_id) for _ in range(4)]
    assert len(set(pids[:3])) == 1
    assert pids[3] != pids[0]
    assert eventually(lambda: not any(map(is_running, pids)))


def test_threads_share_a_pool() -> None:
    with LimitedPool(2, limits=PLENTY) as shared, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: shared.run(functions.echo, number), range(60)))
    assert answers == [[number] for number in range(60)]


def sleep_until_killed(pool: LimitedPool) -> None:
    with pytest.raises(ChildKilled):
        pool.run(functions.sleep, 600)


def test_a_pool_that_is_busy_says_so() -> None:
    with LimitedPool(1, limits=PLENTY) as small:
        small.run(functions.echo)
        pid = small.run(functions.process_id)
        sleeper = threading.Thread(target=sleep_until_killed, args=(small,))
        sleeper.start()
        assert eventually(small._idle.empty)
        with pytest.raises(ChildrenBusy):
            small.run(functions.echo, limits=Limits(memory_bytes=MIB, cpu_s=1, wall_s=0.05))
        os.kill(pid, signal.SIGKILL)
        sleeper.join()


def test_a_child_that_was_killed_between_calls_is_replaced(pool: LimitedPool) -> None:
    pid = pool.run(functions.process_id)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_running(pid))
    assert pool.run(functions.process_id) != pid


def test_a_child_ends_with_its_parent_even_while_it_spins() -> None:
    program = (
        "import os, sys, threading\n"
        "from dicom_node.limited import *\n"
        "from tests.dicom_node import limited_functions as functions\n"
        "child = LimitedChild()\n"
        "limits = Limits(memory_bytes=None, cpu_s=None, wall_s=600)\n"
        "print(child.call(functions.process_id, [], limits), flush=True)\n"
        "child.call(functions.spin, [], limits)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    assert eventually(lambda: not is_running(pid))


def test_a_child_can_be_killed_twice() -> None:
    child = LimitedChild()
    child.kill()
    child.kill()
    assert not child.is_alive
    with pytest.raises(ChildKilled):
        child.call(functions.echo, [], PLENTY)
