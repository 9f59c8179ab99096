"""What a mask and the pixels under it say in the closed wording of `inference.prompts`.

Thresholds are ours, chosen so that each word is true to the eye and none swallows the others.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.datasets.m3ds import KINDS
from inference.datasets.sample import Sample
from inference.prompts import Findings, SegPlace, write_answer, write_empty_answer
from inference.zones import percent_of, zone_of

ELLIPSE_OVERLAP = 0.86  # IoU with the ellipse of equal moments, below which a shape is irregular
ROUND_RATIO = 0.8  # minor to major axis
WIDER, TALLER = 1.15, 0.87  # width to height of the bounding box
SMOOTH, SLIGHT = 1.07, 1.2  # perimeter to that of the ellipse of equal moments
CONTRAST = 12.0  # grey levels
EVEN, MODERATE = 15.0, 28.0  # standard deviation inside, grey levels


@dataclass(frozen=True)
class Ellipse:
    """The ellipse with the same area moments as a mask, in pixels."""

    centre_yx: tuple[float, float]
    major: float  # semi-axis
    minor: float  # semi-axis
    angle: float  # of the major axis from x, radians

    @property
    def perimeter(self) -> float:
        """Ramanujan's first approximation."""
        a, b = self.major, self.minor
        return math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))


def answer_of(sample: Sample, seg_place: SegPlace = "before") -> str:
    """The closed answer for a sample as it now looks; starts with a space."""
    kind = KINDS[sample.record.dataset]
    if not sample.mask.any():
        return write_empty_answer(kind.modality, sample.record.diagnosis, seg_place)
    found = measure(sample.mask, sample.pixels, kind.modality, sample.record.diagnosis)
    return write_answer(found, seg_place)


def measure(
    mask: NDArray[np.bool_], pixels: NDArray[np.uint8], modality: str, diagnosis: str | None
) -> Findings:
    """Findings of `mask` (h, w), not empty, over `pixels` (h, w, 3) uint8."""
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    ellipse = equal_moments(rows, columns)
    grey = pixels[..., 1]
    around = _box_around(grey.shape, (top, bottom, left, right))
    inside = grey[rows, columns].astype(np.float32)
    return Findings(
        modality=modality,
        zone=zone_of(ellipse.centre_yx[0] / mask.shape[0], ellipse.centre_yx[1] / mask.shape[1]),
        area_percent=percent_of(mask),
        shape=shape_of(mask[top:bottom, left:right], ellipse, (top, left)),
        orientation=orientation_of(int(right - left), int(bottom - top)),
        margin=margin_of(mask, ellipse),
        brightness=brightness_of(float(inside.mean()), grey[around][~mask[around]]),
        texture=texture_of(float(inside.std())),
        diagnosis=diagnosis,
    )


def equal_moments(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Ellipse:
    """Ellipse whose moments equal those of the pixels at `rows`, `columns` (each pixel a unit square)."""
    y, x = rows.mean(), columns.mean()
    yy, xx = rows.var() + 1 / 12, columns.var() + 1 / 12
    xy = ((rows - y) * (columns - x)).mean()
    spread = math.hypot((xx - yy) / 2, xy)
    middle = (xx + yy) / 2
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    return Ellipse(
        (y + 0.5, x + 0.5), 2 * math.sqrt(middle + spread), 2 * math.sqrt(max(middle - spread, 1 / 12)), angle
    )


def shape_of(crop: NDArray[np.bool_], ellipse: Ellipse, offset_yx: tuple[int, int]) -> str:
    """round, oval or irregular: how well the ellipse covers the mask's bounding box `crop`."""
    ys = np.arange(crop.shape[0])[:, None] + 0.5 + offset_yx[0] - ellipse.centre_yx[0]
    xs = np.arange(crop.shape[1])[None, :] + 0.5 + offset_yx[1] - ellipse.centre_yx[1]
    cos, sin = math.cos(ellipse.angle), math.sin(ellipse.angle)
    along, across = (xs * cos + ys * sin) / ellipse.major, (ys * cos - xs * sin) / ellipse.minor
    ideal = along**2 + across**2 <= 1
    if (ideal & crop).sum() < ELLIPSE_OVERLAP * (ideal | crop).sum():
        return "irregular"
    return "round" if ellipse.minor >= ROUND_RATIO * ellipse.major else "oval"


def orientation_of(width: int, height: int) -> str:
    """Wider or taller, from the bounding box."""
    ratio = width / height
    if ratio > WIDER:
        return "wider than tall"
    return "taller than wide" if ratio < TALLER else "about as wide as tall"


def margin_of(mask: NDArray[np.bool_], ellipse: Ellipse) -> str:
    """How much longer the outline is than the ellipse's."""
    padded = np.pad(mask, 1)
    cracks = (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
    ratio = cracks * math.pi / 4 / ellipse.perimeter  # pi/4: mean of |cos| + |sin| over directions, inverted
    if ratio < SMOOTH:
        return "smooth"
    return "slightly irregular" if ratio < SLIGHT else "irregular"


def brightness_of(inside_mean: float, outside: NDArray[np.uint8]) -> str:
    """darker than, brighter than or similar to, in grey levels."""
    difference = inside_mean - float(outside.mean()) if outside.size else 0.0
    if abs(difference) < CONTRAST:
        return "similar to"
    return "brighter than" if difference > 0 else "darker than"


def texture_of(deviation: float) -> str:
    """How even the region is, from the standard deviation inside, in grey levels."""
    if deviation < EVEN:
        return "homogeneous"
    return "moderately heterogeneous" if deviation < MODERATE else "heterogeneous"


def _box_around(hw: tuple[int, ...], box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    """The bounding box grown by a third of its size on each side, cut at the image's edge."""
    top, bottom, left, right = (int(edge) for edge in box)
    dy, dx = max(4, (bottom - top) // 3), max(4, (right - left) // 3)
    return slice(max(0, top - dy), min(hw[0], bottom + dy)), slice(max(0, left - dx), min(hw[1], right + dx))
