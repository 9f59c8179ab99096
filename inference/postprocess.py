"""Logits -> mask at source resolution: unpad, upscale, threshold."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.preprocess import ResizeLongestSide

MASK_THRESHOLD = 0.0  # Source: SAM, `modeling/sam.py`, mask_threshold; a logit of 0 is background


def mask_at_source(logits: NDArray[np.float32], source_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The way back from the padded square to the source image; nothing is smoothed and no speck removed.

    Parameters
    ----------
    logits
        (side, side) float32, the mask decoder's low-resolution logits of the padded square.
    source_hw
        (H, W) of the image that was fitted into the square, source pixels.

    Returns
    -------
    (H, W) bool.
    """
    inner = np.ascontiguousarray(ResizeLongestSide(source_hw, logits.shape[-1]).unpad(logits))
    if inner.shape != source_hw:
        height, width = source_hw
        inner = np.asarray(Image.fromarray(inner).resize((width, height), Image.Resampling.BILINEAR))
    return inner > MASK_THRESHOLD
