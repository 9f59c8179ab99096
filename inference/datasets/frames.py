"""Decoded images and masks, fitted into the model's square once and kept on disk as two arrays."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.datasets.m3ds import Record
from inference.preprocess import ResizeLongestSide

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frames:
    """All records' pixels in `side` x `side` squares, image top-left, row i for record i."""

    images: NDArray[np.uint8]  # (N, side, side, 3)
    masks: NDArray[np.uint8]  # (N, side, side), 0 or 255
    inner_hws: NDArray[np.int64]  # (N, 2): (h, w) of the image inside the square
    home: Path  # their folder


class HasImage(Protocol):
    """Something with an image on disk."""

    @property
    def image(self) -> Path:
        """Where it is."""


class HasMask(Protocol):
    """Something with a mask on disk, perhaps."""

    @property
    def mask(self) -> Path | None:
        """Where it is, if anywhere."""


def read_image(record: HasImage) -> NDArray[np.uint8]:
    """The record's pixels (H, W, 3) uint8 RGB, at the size on disk.

    16 and 32 bits a pixel are stretched from the darkest to the brightest; palettes are looked up.
    """
    with Image.open(record.image) as image:
        if image.mode.startswith(("I", "F")):
            return _stretched(np.asarray(image, np.float32))
        return np.asarray(image.convert("RGB"))


def _stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    grey = ((values - low) * (255 / max(high - low, 1e-9)) + 0.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def read_mask(record: HasMask, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The record's mask (H, W) bool; all False where nothing is to be outlined.

    Values are 0 and 255, or 0 and 1; a mask of another size is fitted, nearest neighbour.
    """
    if record.mask is None:
        return np.zeros(hw, np.bool_)
    with Image.open(record.mask) as image:
        values = image if image.mode in ("1", "L", "P") else image.convert("L")
        if values.size != (hw[1], hw[0]):
            values = values.resize((hw[1], hw[0]), Image.Resampling.NEAREST)
        levels = np.asarray(values)
    return levels > (127 if levels.max(initial=0) > 1 else 0)


def open_frames(records: Sequence[Record], folder: Path, side: int) -> Frames:
    """Map the frames of `records` from `folder`, building them on first use."""
    names = "\n".join(f"{record.dataset}/{record.name}" for record in records)
    home = folder / f"{side}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    if not (home / "inner_hws.npy").exists():
        _build(records, home, side)
    images, masks = (np.load(home / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    return Frames(images, masks, np.load(home / "inner_hws.npy"), home)


def _build(records: Sequence[Record], home: Path, side: int) -> None:
    home.mkdir(parents=True, exist_ok=True)
    count = len(records)
    images = np.lib.format.open_memmap(home / "images.npy", "w+", np.uint8, (count, side, side, 3))
    masks = np.lib.format.open_memmap(home / "masks.npy", "w+", np.uint8, (count, side, side))
    inner_hws = np.zeros((count, 2), np.int64)
    for i, record in enumerate(records):
        pixels = read_image(record)
        frame = ResizeLongestSide((pixels.shape[0], pixels.shape[1]), side)
        height, width = inner_hws[i] = frame.inner_hw
        images[i, :height, :width] = frame.resize(pixels)
        mask = read_mask(record, frame.source_hw).astype(np.uint8) * np.uint8(255)
        masks[i, :height, :width] = (frame.resize(mask) > 127).astype(np.uint8) * 255
    images.flush()
    masks.flush()
    np.save(home / "inner_hws.npy", inner_hws)  # last: its presence says that the arrays are whole
    log.info("frames of %d records written to %s", count, home)
