"""Sample: what every dataset yields; collate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from inference.datasets.augment import change_grey_levels, warp
from inference.datasets.frames import Frames
from inference.datasets.m3ds import KINDS, Record
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD, ResizeLongestSide


@dataclass(frozen=True)
class Sample:
    """One image with its mask; pixels only fill `inner_hw`, the frame places them."""

    pixels: NDArray[np.uint8]  # (h, w, 3) RGB, longest side = the frame's
    mask: NDArray[np.bool_]  # (h, w); all False where nothing is to be outlined
    record: Record


@dataclass(frozen=True)
class ImageBatch:
    """Samples side by side in squares."""

    pixels: Tensor  # (B, 3, S, S) float32, normalised, zero-padded
    masks: Tensor  # (B, 1, S, S) float32, 0 or 1
    cells: Tensor  # (B, g, g) float32: the share of each cell that the mask covers
    valid_cells: Tensor  # (B, g, g) float32, 0 or 1


class M3dsSampler:
    """Draws augmented training samples, data sets and diagnoses in fixed proportions."""

    def __init__(
        self,
        records: Sequence[Record],
        frames: Frames,
        weights: Mapping[str, float],
        seed: int,
        *,
        tickets: Mapping[str, int] | None = None,
    ) -> None:
        """Draw data sets by `weights`; inside one, a diagnosis by its `tickets` (1 where not named)."""
        self._records = records
        self._frames = frames
        self._rng = np.random.default_rng(seed)
        self._groups: dict[str, list[NDArray[np.int64]]] = {}
        for dataset in weights:
            by_label: dict[str | None, list[int]] = {}
            for i, record in enumerate(records):
                if record.dataset == dataset and record.split == "train":
                    by_label.setdefault(record.diagnosis, []).append(i)
            self._groups[dataset] = [
                np.asarray(rows)
                for label, rows in by_label.items()
                for _ in range((tickets or {}).get(label or "", 1))
            ]
        self._names = [name for name in weights if self._groups[name]]
        shares = np.asarray([weights[name] for name in self._names])
        self._shares = shares / shares.sum()

    @property
    def rng(self) -> Generator:
        """The generator all randomness of this sampler comes from."""
        return self._rng

    def draw(self, count: int, *, only_regions: bool = False) -> list[Sample]:
        """`count` augmented samples: a data set by its weight, then a diagnosis, then an image."""
        return [self._draw_one(only_regions) for _ in range(count)]

    def _draw_one(self, only_regions: bool) -> Sample:
        while True:
            groups = self._groups[self._names[self._rng.choice(len(self._names), p=self._shares)]]
            index = int(self._rng.choice(groups[self._rng.integers(len(groups))]))
            if self._records[index].mask is None and only_regions:
                continue
            sample = self._augmented(index)
            if self._records[index].mask is None or sample.mask.any():
                return sample

    def _augmented(self, index: int) -> Sample:
        record = self._records[index]
        kind = KINDS[record.dataset]
        still = frame_sample(record, self._frames, index)
        pixels, mask = warp(
            still.pixels, still.mask.view(np.uint8) * np.uint8(255), self._rng, any_rotation=kind.any_rotation
        )
        pixels = change_grey_levels(pixels, self._rng, is_colour=kind.is_colour)
        return Sample(pixels, mask > 127, record)


def frame_sample(record: Record, frames: Frames, index: int) -> Sample:
    """Record `index` as it lies in the frames, not augmented."""
    height, width = frames.inner_hws[index]
    pixels = np.ascontiguousarray(frames.images[index, :height, :width])
    return Sample(pixels, frames.masks[index, :height, :width] > 127, record)


def collate(samples: Sequence[Sample], frame_side: int, side: int, grid: int = 16) -> ImageBatch:
    """Put samples of a `frame_side` frame into squares of `side`.

    Raises
    ------
    ValueError
        If `side` does not divide `frame_side`: images are made smaller by whole steps.
    """
    if frame_side % side:
        raise ValueError(f"a frame of {frame_side} pixels cannot be shrunk to {side} by a whole step")
    count = len(samples)
    pixels = np.zeros((count, frame_side, frame_side, 3), np.float32)
    masks = np.zeros((count, 1, frame_side, frame_side), np.float32)
    valid = np.zeros((count, grid, grid), np.float32)
    for i, sample in enumerate(samples):
        height, width = sample.mask.shape
        pixels[i, :height, :width] = _normal(sample.pixels)
        masks[i, 0, :height, :width] = sample.mask
        valid[i] = ResizeLongestSide((height, width), max(height, width, frame_side)).valid_cells(grid)
    full = torch.as_tensor(masks)
    step = frame_side // side
    return ImageBatch(
        pixels=_shrink(torch.as_tensor(pixels).permute(0, 3, 1, 2), step),  # channels last in memory
        masks=(_shrink(full, step) > 0.5).float(),
        cells=_shrink(full, frame_side // grid)[:, 0],
        valid_cells=torch.as_tensor(valid),
    )


def _normal(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    table = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    mean: NDArray[np.float32] = np.array(IMAGENET_MEAN, np.float32)
    std: NDArray[np.float32] = np.array(IMAGENET_STD, np.float32)
    table = (table - mean) / std
    return np.stack([table[:, i][pixels[..., i]] for i in range(3)], axis=-1)


def _shrink(images: Tensor, step: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, step) if step > 1 else images
