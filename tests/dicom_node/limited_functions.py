"""Functions that tests of dicom_node.limited run in a child: well-behaved, broken and hostile."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dicom_node.errors import NotFound


def double(value: np.ndarray) -> np.ndarray:
    return value * 2


def echo(*values: object) -> list[object]:
    return list(values)


def process_id() -> int:
    return os.getpid()


def environment() -> dict[str, str]:
    return dict(os.environ)


def count_to(number: int) -> Iterator[np.ndarray]:
    for index in range(number):
        yield np.full((2, 3), index, np.uint16)


def count_then_break(number: int) -> Iterator[int]:
    yield from range(number)
    raise ValueError("SECRET^PATIENT")


def take_memory(megabytes: int) -> int:
    return len(bytearray(megabytes << 20))


def spin() -> None:
    while True:
        pass


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def segfault() -> None:
    ctypes.string_at(0)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("SECRET^PATIENT")


def fail_as_ours() -> None:
    raise NotFound("this instance has no frame 7")


def fail_oddly() -> None:
    raise StopAsyncIteration


def recurse() -> None:
    recurse()


def write_file(path: str) -> None:
    Path(path).write_bytes(b"x")


def large(megabytes: int) -> bytes:
    return bytes(megabytes << 20)


def lie() -> None:
    """Answer what no child of ours answers, as one would that hostile bytes have taken over."""
    os.write(int(sys.argv[1]), b"\x05\x00\x00\x00\x00\x00\x00\x00hello")
    time.sleep(60)


def lie_about_length() -> None:
    os.write(int(sys.argv[1]), b"\xff" * 64)
    time.sleep(60)
