"""Whether an image is one that a model can say anything about: blank, noise, too small, of another kind.

Only what is certain is refused; an image of a kind the models never saw is not recognised by this.
Thresholds are ours: no image of the training data is refused (tests/inference/test_suitability.py).
"""

import numpy as np
from numpy.typing import NDArray

from inference.prompts import TARGETS

SMALLEST_SIDE = 16  # source pixels
MOST_PIXELS = 1 << 27  # 134 million; a whole-slide image is another kind of image
FLAT_RANGE = 8  # grey levels within which nearly every pixel of a blank image lies
FLAT_SHARE = 0.995
LEAST_LIKENESS = 0.1  # correlation of neighbouring pixels; white noise has 0, a speckled phantom 0.2
COLOURED = 24  # grey levels between a pixel's largest and smallest channel
COLOUR_KINDS = frozenset({"colonoscopy image", "dermoscopy image"})
MOSTLY, HARDLY = 0.5, 0.01  # shares of coloured pixels
SAMPLE = 512  # rows and columns that are looked at, at most

Pixels = NDArray[np.uint8]


def why_unsuitable(pixels: Pixels) -> str | None:
    """A sentence that says why `pixels` (H, W, 3) uint8 cannot be answered; None where they can."""
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        return f"the image is {width} x {height} pixels; at least {SMALLEST_SIDE} a side are needed."
    if height * width > MOST_PIXELS:
        return f"the image has {height * width} pixels; at most {MOST_PIXELS} are read. Send a smaller one."
    grey = _rows(pixels)[..., 1].astype(np.float32)
    middle = float(np.median(grey))
    if float((np.abs(grey - middle) <= FLAT_RANGE / 2).mean()) >= FLAT_SHARE:
        return (
            "the image is blank: nearly all of it has one brightness. Check how it was acquired or windowed."
        )
    if max(_likeness(grey), _likeness(_columns(pixels)[..., 1].astype(np.float32).T)) < LEAST_LIKENESS:
        return "the image is noise: neighbouring pixels have nothing to do with each other."
    return None


def why_another_kind(pixels: Pixels, modality: str | None) -> str | None:
    """A sentence where the colours of `pixels` belie the kind of image the answer names; else None."""
    if modality not in TARGETS:
        return None
    seen = _rows(pixels).astype(np.int16)
    coloured = float((seen.max(axis=-1) - seen.min(axis=-1) > COLOURED).mean())
    if modality in COLOUR_KINDS and coloured < HARDLY:
        return f"the answer speaks of a {modality}, but the image has no colour. Ask a model that knows it."
    if modality not in COLOUR_KINDS and coloured > MOSTLY:
        return f"the answer speaks of a {modality}, but the image is in colour. Ask a model that knows it."
    return None


def _rows(pixels: Pixels) -> Pixels:
    """Whole rows, evenly spaced, so that neighbours along a row stay neighbours."""
    return pixels[:: max(1, pixels.shape[0] // SAMPLE)]


def _columns(pixels: Pixels) -> Pixels:
    return pixels[:, :: max(1, pixels.shape[1] // SAMPLE)]


def _likeness(grey: NDArray[np.float32]) -> float:
    """Correlation of each pixel with its right neighbour; 1 where a row does not vary at all."""
    left, right = grey[:, :-1] - grey.mean(), grey[:, 1:] - grey.mean()
    spread = float(np.sqrt((left**2).mean() * (right**2).mean()))
    return float((left * right).mean()) / spread if spread > 0 else 1.0
