"""Where a mask lies, in the words of the closed answers, and how sure that is.

Two rules: Sim4Seg's answers name one of nine zones, by the mask's centroid; PRS-Med's one of five, by its
bounding box (arXiv 2505.11872, "Clinical Action Zones"; models.md 2.4). Both are places in the image, not
in the patient.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from inference.positions import CENTRE

Mask = NDArray[np.bool_]
Chances = Mapping[str, float]  # of words that exclude each other; they sum to 1
Box = tuple[int, int, int, int]  # first and last row and column: top, left, bottom, right

THIRDS = (1 / 3, 2 / 3)  # of the image's side: where the nine zones meet
# Median distance of our masks' centroids from the true ones, of the image's side: busbra 0.010, kvasirseg
# 0.014, lidc_patch and sunnybrook 0.005. Nearer to a border than this, a mask leaves the word open.
SPREAD = 0.005
NEAR = 0.2  # of the image's width: the released generator's distance for its "near" wordings (models.md 2.4)


def zone_of(y: float, x: float) -> str:
    """Zone of a point, given as shares of the image's height and width."""
    return _word(_band(y), _band(x))


def centroid_of(mask: Mask) -> tuple[float, float] | None:
    """(y, x) of the centroid of `mask` (H, W) as shares of its height and width; None if it is empty."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return None
    return (float(rows.mean()) + 0.5) / mask.shape[0], (float(columns.mean()) + 0.5) / mask.shape[1]


def zone_chances(y: float, x: float) -> dict[str, float]:
    """How likely each of the nine zones holds a point that is known to within SPREAD."""
    rows, columns = _bands(y), _bands(x)
    return {_word(i, j): rows[i] * columns[j] for i in range(3) for j in range(3)}


def box_of(mask: Mask) -> Box | None:
    """Bounding box of `mask` (H, W); None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])


def zone_of_mask(mask: Mask) -> str | None:
    """PRS-Med's zone of one target, from its bounding box; None for an empty mask."""
    box = box_of(mask)
    return None if box is None else zone_of_box(box, (mask.shape[0], mask.shape[1]))


def zone_of_box(box: Box, hw: tuple[int, int]) -> str:
    """PRS-Med's zone: "centre" where the box holds the image's centre, else the quadrant of its own."""
    return CENTRE if holds_centre(box, hw) else quadrant((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, hw)


def holds_centre(box: Box, hw: tuple[int, int]) -> bool:
    """Whether the pixel at the middle of the image lies in `box`."""
    return box[0] <= hw[0] // 2 <= box[2] and box[1] <= hw[1] // 2 <= box[3]


def quadrant(y: float, x: float, hw: tuple[int, int]) -> str:
    """Upper or lower, left or right: where the pixel (y, x) lies."""
    return f"{'upper' if y < hw[0] // 2 else 'lower'} {'left' if x < hw[1] // 2 else 'right'}"


def position_chances(box: Box, hw: tuple[int, int]) -> dict[str, float]:
    """How likely each of PRS-Med's five zones is, for a box whose edges are known to within SPREAD."""
    top, left, bottom, right = (edge / hw[i % 2] for i, edge in enumerate(box))
    centre = _below(top, 0.5) * _below(0.5, bottom) * _below(left, 0.5) * _below(0.5, right)
    upper, to_left = _below((top + bottom) / 2, 0.5), _below((left + right) / 2, 0.5)
    return {CENTRE: centre} | {
        f"{row} {side}": (1 - centre) * p * q
        for row, p in (("upper", upper), ("lower", 1 - upper))
        for side, q in (("left", to_left), ("right", 1 - to_left))
    }


def distance_from_centre(box: Box, hw: tuple[int, int]) -> float:
    """How far the middle of a box lies from the image's, as a share of the image's width."""
    return math.hypot(box[0] + box[2] - hw[0], box[1] + box[3] - hw[1]) / 2 / hw[1]


def near_chance(box: Box, hw: tuple[int, int]) -> float:
    """How likely the middle of a box, known to within SPREAD, is less than NEAR from the image's."""
    return _below(distance_from_centre(box, hw), NEAR)


def percent_of(mask: Mask) -> int:
    """The share of the image that `mask` (H, W), not empty, covers, as the answers say it: 1..100."""
    return max(1, int(100 * mask.mean() + 0.5))


def percent_chances(mask: Mask) -> dict[str, float]:
    """How likely each "N percent" is, for a mask (H, W) whose area is known to within a twentieth."""
    percent = 100 * float(mask.mean())
    spread = 0.5 + percent / 20
    table = {n: math.exp(-abs(n - percent) / spread) for n in range(1, 101)}
    total = sum(table.values())
    return {f"{n} percent": value / total for n, value in table.items()}


def _band(share: float) -> int:
    """Which third, 0 to 2; the borders belong to the middle one."""
    return 1 if THIRDS[0] <= share <= THIRDS[1] else (0 if share < THIRDS[0] else 2)


def _word(row: int, column: int) -> str:
    rows, columns = ("upper", "", "lower")[row], ("left", "", "right")[column]
    if rows and columns:
        return f"{rows} {columns}"
    return f"{rows or columns} middle" if rows or columns else "centre"


def _bands(share: float) -> tuple[float, float, float]:
    """How likely `share`, known to within SPREAD, is in each third."""
    first, last = _below(share, THIRDS[0]), _below(THIRDS[1], share)
    return first, 1 - first - last, last


def _below(a: float, b: float) -> float:
    """How likely a < b, where either is known to within SPREAD."""
    return 0.5 * (1 + math.erf((b - a) / (SPREAD * math.sqrt(2))))
