"""Fit an image into the square that the image encoders expect, and find the way back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ResizeLongestSide:
    """Places an image of `source_hw` in the top-left corner of a `side` x `side` square.

    Source: SAM, `segment_anything/utils/transforms.py`; halves round up, as there.
    """

    source_hw: tuple[int, int]  # (H, W), source pixels
    side: int  # model pixels

    def __post_init__(self) -> None:
        if min(self.source_hw) < 1 or self.side < 1:
            raise ValueError(f"an image of {self.source_hw} cannot be fitted into {self.side} pixels")

    @property
    def scale(self) -> float:
        """Model pixels per source pixel."""
        return self.side / max(self.source_hw)

    @property
    def inner_hw(self) -> tuple[int, int]:
        """(h, w) of the image inside the square, in model pixels, at least 1; the rest is padding."""
        height, width = self.source_hw
        return max(1, int(height * self.scale + 0.5)), max(1, int(width * self.scale + 0.5))

    def resize(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Scale `pixels` (H, W, 3) or (H, W) uint8 to `inner_hw`, bilinear with antialiasing.

        Raises
        ------
        ValueError
            If `pixels` are not uint8 of `source_hw`.
        """
        if pixels.dtype != np.uint8 or pixels.shape[:2] != self.source_hw:
            raise ValueError(f"expected uint8 of {self.source_hw}, not {pixels.dtype} of {pixels.shape}")
        height, width = self.inner_hw
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    def unpad(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut the padding off `logits` (..., side, side) float32; returns (..., h, w).

        Raises
        ------
        ValueError
            If the last two axes are not `side` x `side`.
        """
        expected = (self.side, self.side)
        if logits.shape[-2:] != expected:
            raise ValueError(f"logits must end in {expected}, not {logits.shape[-2:]}")
        height, width = self.inner_hw
        return logits[..., :height, :width]

    def valid_cells(self, grid: int) -> NDArray[np.float32]:
        """(grid, grid) float32: 1 where a cell's centre lies inside the image, 0 in the padding.

        The cell at the top left is always valid, however thin the image.
        """
        centres = (np.arange(grid) + 0.5) * self.side / grid
        height, width = self.inner_hw
        rows, columns = centres < height, centres < width
        rows[0] = columns[0] = True
        return np.outer(rows, columns).astype(np.float32)


def normalise_and_pad(
    resized: NDArray[np.uint8],
    side: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> NDArray[np.float32]:
    """`resized` (h, w, 3) uint8 RGB -> (1, 3, side, side) float32; padding is 0 after normalisation."""
    height, width = resized.shape[:2]
    if resized.ndim != 3 or resized.shape[2] != 3 or max(height, width) > side:
        raise ValueError(f"expected (h, w, 3) within {side} pixels, not {resized.shape}")
    scaled = resized.astype(np.float32) / np.float32(255.0)
    normal = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    square = np.zeros((1, 3, side, side), np.float32)
    square[0, :, :height, :width] = normal.transpose(2, 0, 1)
    return square


def fit(
    pixels: NDArray[np.uint8],
    side: int,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> tuple[ResizeLongestSide, NDArray[np.float32]]:
    """`pixels` (H, W, 3) uint8 RGB -> (its frame, network input (1, 3, side, side) float32)."""
    frame = ResizeLongestSide((pixels.shape[0], pixels.shape[1]), side)
    return frame, normalise_and_pad(frame.resize(pixels), side, mean, std)
