"""Near-duplicate images, found by a perceptual hash, stand on one side of the split.

The hash is of gradients (dHash): the image in 9 x 8 grey cells, one bit for each pair of neighbours that
says which is brighter - steady under scaling, JPEG, brightness and contrast. Medical images of one kind
look alike to it (a dark mole in the middle of pale skin), so a pair counts only if the two pictures, 32 cells
a side and normalised, also correlate.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.datasets.frames import Frames
from inference.datasets.m3ds import Record
from inference.datasets.splits import SplitError

SIDE = 8
BITS = 4  # of 64 that two hashes may differ by; ours
CELLS = 32  # a side, of the pictures that are then compared
CORRELATION = 0.97  # ours
LEFT_OUT = "left out"  # the split of a training image that looks like a validation image


@dataclass(frozen=True)
class Pair:
    """Two images that look alike."""

    first: int  # index
    second: int
    bits: int  # by how many their hashes differ


def gradient_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits of `pixels` (H, W, 3) or (H, W) uint8; rows first, the first pair highest."""
    small = Image.fromarray(pixels).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    cells = np.asarray(small, np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).reshape(-1)
    return int("".join("1" if bit else "0" for bit in bits), 2)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(1024,) float32 of mean 0 and length 1: the picture in grey cells; all 0 where it is flat."""
    small = Image.fromarray(pixels).convert("L").resize((CELLS, CELLS), Image.Resampling.BOX)
    cells: NDArray[np.float32] = np.asarray(small, np.float32).reshape(-1)
    cells = cells - cells.mean()
    length = float(np.linalg.norm(cells))
    return cells / np.float32(length) if length > 0 else cells


def near_duplicates(pictures: Iterable[NDArray[np.uint8]]) -> list[Pair]:
    """Pairs of pictures that are near-duplicates, by index."""
    hashes: list[int] = []
    thumbnails: list[NDArray[np.float32]] = []
    for pixels in pictures:
        hashes.append(gradient_hash(pixels))
        thumbnails.append(thumbnail(pixels))
    return [
        pair
        for pair in near_pairs(hashes)
        if float(thumbnails[pair.first] @ thumbnails[pair.second]) >= CORRELATION
    ]


def near_pairs(hashes: Sequence[int], bits: int = BITS) -> list[Pair]:
    """Every pair of hashes at most `bits` apart, in order."""
    table = np.array(hashes, np.uint64)
    pairs: list[Pair] = []
    for first in range(len(table)):
        apart = np.bitwise_count(table[first + 1 :] ^ table[first])
        pairs += [Pair(first, first + 1 + int(i), int(apart[i])) for i in np.flatnonzero(apart <= bits)]
    return pairs


def groups_of(count: int, pairs: Iterable[Pair]) -> list[int]:
    """The group (its lowest index) of each of `count` images, where pairs join and chains of them too."""
    group = list(range(count))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        group[high] = low
    return [root(index) for index in range(count)]


def pairs_of(records: Sequence[Record], frames: Frames, home: Path) -> list[Pair]:
    """Near-duplicates inside each data set, found once and kept in `home`/near_duplicates.json."""
    path = home / "near_duplicates.json"
    if not path.exists():
        found = [
            asdict(pair)
            for name in sorted({r.dataset for r in records})
            for pair in _of(name, records, frames)
        ]
        unfinished = path.with_suffix(f".{os.getpid()}")  # several processes may begin together
        unfinished.write_text(json.dumps(found))
        unfinished.replace(path)
    return [Pair(**one) for one in json.loads(path.read_text())]


def _of(dataset: str, records: Sequence[Record], frames: Frames) -> list[Pair]:
    rows = [i for i, record in enumerate(records) if record.dataset == dataset]
    heights_widths = [frames.inner_hws[i] for i in rows]
    pictures = (
        np.ascontiguousarray(frames.images[i, :height, :width])
        for i, (height, width) in zip(rows, heights_widths, strict=True)
    )
    return [Pair(rows[pair.first], rows[pair.second], pair.bits) for pair in near_duplicates(pictures)]


def keep_apart(records: Sequence[Record], pairs: Sequence[Pair]) -> list[Record]:
    """The same records; a training image that looks like a validation image is left out of training."""
    groups = groups_of(len(records), pairs)
    shown = {group for group, record in zip(groups, records, strict=True) if record.split == "val"}
    return [
        replace(record, split=LEFT_OUT) if record.split == "train" and group in shown else record
        for group, record in zip(groups, records, strict=True)
    ]


def check_apart(records: Sequence[Record], pairs: Sequence[Pair]) -> None:
    """Raise SplitError if near-duplicates stand on both sides."""
    for pair in pairs:
        first, second = records[pair.first], records[pair.second]
        if {first.split, second.split} == {"train", "val"}:
            raise SplitError(
                f"{first.name} ({first.split}) and {second.name} ({second.split}) of {first.dataset} are the "
                "same picture; leave one of them out"
            )
