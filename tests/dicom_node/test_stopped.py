"""A process that was stopped goes on by itself, in whatever depth below the supervisor it is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from dicom_node.stopped import STOPPED, Waker, below, state_of

SLEEPER = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def grandchild() -> Iterator[int]:
    """A process below a process below this one."""
    with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
        until(lambda: list(below(parent.pid)))
        (pid,) = below(parent.pid)
        yield pid
        for each in (pid, parent.pid):
            os.kill(each, signal.SIGKILL)


def test_a_stopped_process_is_woken_when_its_time_is_over_and_not_before(grandchild: int) -> None:
    waker = Waker(os.getpid(), after_s=20)
    os.kill(grandchild, signal.SIGSTOP)
    until(lambda: state_of(grandchild) == STOPPED)
    waker.look(100.0)
    waker.look(119.0)
    assert state_of(grandchild) == STOPPED
    waker.look(120.0)
    until(lambda: state_of(grandchild) == "S")


def test_one_that_went_on_by_itself_has_its_whole_time_again(grandchild: int) -> None:
    waker = Waker(os.getpid(), after_s=20)
    for began in (100.0, 119.0):
        os.kill(grandchild, signal.SIGSTOP)
        until(lambda: state_of(grandchild) == STOPPED)
        waker.look(began)
        os.kill(grandchild, signal.SIGCONT)
        until(lambda: state_of(grandchild) == "S")
        waker.look(began + 1)
    os.kill(grandchild, signal.SIGSTOP)
    until(lambda: state_of(grandchild) == STOPPED)
    waker.look(121.0)
    waker.look(140.0)
    assert state_of(grandchild) == STOPPED
    os.kill(grandchild, signal.SIGCONT)


def test_what_is_over_has_no_state_and_nothing_below() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert state_of(process.pid) == ""
    assert list(below(process.pid)) == []
