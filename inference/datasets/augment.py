"""Train-time augmentation only: geometry first, then grey levels. Answers are measured afterwards.

Ranges are ours: wide enough for other machines' zoom, gain and noise, narrow enough that a lesion
keeps its texture.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Ranges:
    """How far each change may go; probabilities are per image."""

    log2_zoom: float = 0.45
    log2_stretch: float = 0.2  # of the target's aspect ratio
    rotation_degrees: float = 15.0
    shift: float = 0.12  # of the image's side
    brightness: float = 0.08  # of full scale
    log2_contrast: float = 0.4
    log2_gamma: float = 0.45
    colour_gain: float = 0.12
    grey_probability: float = 0.05
    noise_probability: float = 0.25
    noise_sigma: float = 10.0  # grey levels
    blur_probability: float = 0.2
    blur_radius: float = 1.3  # pixels
    keep_probability: float = 0.15  # of leaving the geometry alone


PIVOT = 0.3  # grey value that contrast leaves alone; medical frames are mostly dark
RANGES = Ranges()


def warp(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    rng: Generator,
    *,
    any_rotation: bool,
    ranges: Ranges = RANGES,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Flip, turn, zoom, shift and stretch `image` (h, w, 3) and `mask` (h, w) alike.

    The output's longest side equals the input's; what comes from outside the image is black.
    """
    if rng.random() < ranges.keep_probability:
        return image, mask
    height, width = image.shape[:2]
    out_h, out_w = _stretched(height, width, 2 ** rng.uniform(-ranges.log2_stretch, ranges.log2_stretch))
    inverse = _inverse_affine((height, width), (out_h, out_w), rng, any_rotation, ranges)
    moved = Image.fromarray(image).transform(
        (out_w, out_h), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    moved_mask = Image.fromarray(mask).transform(
        (out_w, out_h), Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST
    )
    return np.asarray(moved), np.asarray(moved_mask)


def _stretched(height: int, width: int, ratio: float) -> tuple[int, int]:
    """(h, w) with the aspect changed by `ratio` and the longest side kept."""
    aspect = height / width * ratio
    side = max(height, width)
    return (side, max(1, round(side / aspect))) if aspect >= 1 else (max(1, round(side * aspect)), side)


def _inverse_affine(
    source: tuple[int, int], target: tuple[int, int], rng: Generator, any_rotation: bool, ranges: Ranges
) -> tuple[float, float, float, float, float, float]:
    """PIL's six numbers: output pixel (x, y) -> input pixel."""
    limit = 180.0 if any_rotation else ranges.rotation_degrees
    angle = math.radians(rng.uniform(-limit, limit))
    zoom = 2 ** rng.uniform(-ranges.log2_zoom, ranges.log2_zoom)
    scale_x, scale_y = source[1] / target[1] / zoom, source[0] / target[0] / zoom
    scale_x *= rng.choice((-1.0, 1.0))
    cos, sin = math.cos(angle), math.sin(angle)
    a, b, c, d = cos * scale_x, -sin * scale_y, sin * scale_x, cos * scale_y
    centre_x = source[1] * (0.5 + rng.uniform(-ranges.shift, ranges.shift))
    centre_y = source[0] * (0.5 + rng.uniform(-ranges.shift, ranges.shift))
    half_w, half_h = target[1] / 2, target[0] / 2
    return a, b, centre_x - a * half_w - b * half_h, c, d, centre_y - c * half_w - d * half_h


def change_grey_levels(
    image: NDArray[np.uint8], rng: Generator, *, is_colour: bool, ranges: Ranges = RANGES
) -> NDArray[np.uint8]:
    """Brightness, contrast, gamma, tint, blur and noise on `image` (h, w, 3) uint8."""
    table = _levels(rng, is_colour, ranges)
    channels = [table[i][image[..., i]] for i in range(3)]
    changed = np.stack(channels, axis=-1)
    if is_colour and rng.random() < ranges.grey_probability:
        changed = np.repeat(changed.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    if rng.random() < ranges.blur_probability:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.2, ranges.blur_radius))
        changed = np.asarray(Image.fromarray(changed).filter(blur))
    if rng.random() < ranges.noise_probability:
        changed = _noisy(changed, rng, ranges.noise_sigma)
    return changed


def _levels(rng: Generator, is_colour: bool, ranges: Ranges) -> NDArray[np.uint8]:
    """Look-up tables (3, 256) uint8, equal for the three channels of a grey image."""
    gamma = 2 ** rng.uniform(-ranges.log2_gamma, ranges.log2_gamma)
    contrast = 2 ** rng.uniform(-ranges.log2_contrast, ranges.log2_contrast)
    shift = rng.uniform(-ranges.brightness, ranges.brightness)
    gains = rng.uniform(1 - ranges.colour_gain, 1 + ranges.colour_gain, 3) if is_colour else np.ones(3)
    curve = (np.linspace(0, 1, 256) ** gamma - PIVOT) * contrast + PIVOT + shift
    return (np.clip(curve[None] * gains[:, None], 0, 1) * 255 + 0.5).astype(np.uint8)


def _noisy(image: NDArray[np.uint8], rng: Generator, sigma: float) -> NDArray[np.uint8]:
    """Grey noise, half of it scaled by the signal as speckle is."""
    height, width = image.shape[:2]
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(1, sigma))
    if rng.random() < 0.5:
        noise = noise * (image.mean(axis=-1, keepdims=True) / 96)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
