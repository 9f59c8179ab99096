"""Two targets in one image, of which the report means one: what makes a model listen to words in training.

A model that knows its training images by heart gains nothing there from being told where the target lies. So
the target of another image of the same data set is put into some of them, in another zone, and chance says
which of the two is meant: neither what was pasted nor what was there before gives it away, only the report.
"""

from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from inference.datasets.sample import Sample
from inference.zones import box_of, centroid_of, zone_of

TRIES: Final = 40  # places that are looked at
MARGIN: Final = 0.2  # of the target's longer side, taken along with it
LARGEST: Final = 0.6  # of the image's sides, with the margin: more would leave no room beside it
SOFTNESS: Final = 0.08  # of the longer side: radius of the blur of the seam


def with_distractor(sample: Sample, other: Sample, rng: Generator) -> Sample | None:
    """`sample` with the target of `other` in another zone; the mask is of one of the two.

    None if no room is found, or one of them outlines nothing.
    """
    patch = _cut_out(other)
    if patch is None or not sample.mask.any():
        return None
    corner = _free_corner(sample.mask, patch.mask, rng)
    if corner is None:
        return None
    pixels, pasted = _paste(sample, patch, corner)
    if rng.random() < 0.5:
        return Sample(pixels, pasted, other.record)
    return Sample(pixels, sample.mask, sample.record)


def _cut_out(other: Sample) -> Sample | None:
    """The target with a margin around it."""
    box = box_of(other.mask)
    if box is None:
        return None
    top, left, bottom, right = box
    margin = round(MARGIN * max(bottom - top, right - left)) + 2
    rows = slice(max(0, top - margin), bottom + 1 + margin)
    columns = slice(max(0, left - margin), right + 1 + margin)
    return Sample(other.pixels[rows, columns], other.mask[rows, columns], other.record)


def _free_corner(
    taken: NDArray[np.bool_], patch: NDArray[np.bool_], rng: Generator
) -> tuple[int, int] | None:
    """Where the upper left corner of `patch` can lie: another zone, and nothing of the two in one place."""
    (height, width), (tall, wide) = taken.shape, patch.shape
    if tall > LARGEST * height or wide > LARGEST * width:
        return None
    for _ in range(TRIES):
        y, x = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        placed = np.zeros_like(taken)
        placed[y : y + tall, x : x + wide] = patch
        if _zone(placed) != _zone(taken) and not taken[y : y + tall, x : x + wide].any():
            return y, x
    return None


def _zone(mask: NDArray[np.bool_]) -> str | None:
    centroid = centroid_of(mask)
    return None if centroid is None else zone_of(*centroid)


def _paste(
    sample: Sample, patch: Sample, corner: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels and mask with `patch` at `corner`: as bright as what it covers, with a soft seam."""
    tall, wide = patch.mask.shape
    place = (slice(corner[0], corner[0] + tall), slice(corner[1], corner[1] + wide))
    share = _seam(patch.mask)[..., None]
    below = sample.pixels[place].astype(np.float32)
    beside = ~patch.mask
    shift = below[beside].mean(0) - patch.pixels[beside].mean(0) if beside.any() else np.float32(0)
    mixed = share * (patch.pixels + shift) + (1 - share) * below
    pixels, mask = sample.pixels.copy(), np.zeros_like(sample.mask)
    pixels[place] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    mask[place] = patch.mask
    return pixels, mask


def _seam(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How much of each pixel is the patch's, 0..1: all of the target, nothing at the edge of its margin."""
    radius = max(2.0, SOFTNESS * max(mask.shape))
    grown = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).filter(ImageFilter.GaussianBlur(radius))
    return np.maximum(np.clip(np.asarray(grown, np.float32) / 127, 0, 1), mask).astype(np.float32)
