"""Damaged copies of a file, the same at every run: what the wire, disks and attackers make of data."""

import random
import struct
from collections.abc import Callable, Iterator

HEADER = 128 + 4
NEAR = 64 * 1024  # bytes from the start: where the elements are that decide


def truncated(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(HEADER, max(len(data), HEADER + 1))]


def short_of_its_end(data: bytearray, rng: random.Random) -> bytearray:
    return data[: -rng.randrange(1, 16)]


def flipped(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(8):
        data[rng.randrange(HEADER, min(len(data), NEAR))] ^= 1 << rng.randrange(8)
    return data


def lying_length(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(HEADER, min(len(data) - 4, NEAR)) & ~1
    value = rng.choice([0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0, 1, len(data)])
    data[at : at + 4] = struct.pack("<I", value)
    return data


def blanked(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(HEADER, min(len(data), NEAR))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    return data


def shifted(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(HEADER, min(len(data), NEAR))
    return data[:at] + data[at : at + rng.randrange(1, 64)] + data[at:]


KINDS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    truncated, short_of_its_end, flipped, lying_length, blanked, shifted,
)  # fmt: skip


def mutations(data: bytes, seed: str, rounds: int = 1) -> Iterator[tuple[str, bytes]]:
    """`rounds` copies of every kind, with the name of their kind."""
    if len(data) < HEADER + 8:
        return
    rng = random.Random(seed)
    for _ in range(rounds):
        for kind in KINDS:
            yield kind.__name__, bytes(kind(bytearray(data), rng))
