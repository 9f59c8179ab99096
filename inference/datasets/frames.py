"""Decoded images and masks, fitted into the model's square once and kept on disk as two arrays."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def read_image(record: Record) -> NDArray[np.uint8]:
    """The record's pixels (H, W, 3) uint8 RGB, at the size on disk."""
    with Image.open(record.image) as image:
        return np.asarray(image.convert("RGB"))


def read_mask(record: Record, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The record's mask (H, W) bool; all False where nothing is to be outlined."""
    if record.mask is None:
        return np.zeros(hw, np.bool_)
    with Image.open(record.mask) as image:
        return np.asarray(image.convert("L")) > 127


def open_frames(records: Sequence[Record], folder: Path, side: int) -> Frames:
    """Map the frames of `records` from `folder`, building them on first use."""
    names = "\n".join(f"{record.dataset}/{record.name}" for record in records)
    home = folder / f"{side}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    if not (home / "inner_hws.npy").exists():
        _build(records, home, side)
    images, masks = (np.load(home / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    return Frames(images, masks, np.load(home / "inner_hws.npy"))


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
