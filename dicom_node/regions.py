"""What a mask measures: outline, area, axes, volume. Points are (column, row), whole at pixel corners."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.frames import Frame, distance_along_normal

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]  # (N, 2), column and row
MAX_POINTS = 400  # of one outline in the report
SIMPLIFY_PX = 0.4  # how far a simplified outline may leave the pixel edges
SAME_PLACE_MM = 1e-3


@dataclass(frozen=True)
class Measures:
    """Sizes of the region on its key frame; millimetres only where the image is calibrated."""

    area_px: int
    area_mm2: float | None
    long_axis: float  # mm, or pixels without calibration
    short_axis: float  # across the long axis, same unit
    is_calibrated: bool


def outline(mask: Mask) -> Points:
    """Closed outline (first point repeated) of the largest part of `mask` (H, W), along pixel edges.

    Source: PS3.3 C.18.6.1.2: the origin is the top left corner of the top left pixel.
    """
    return _simplify(max(_edge_loops(mask), key=_signed_area))


def outlines(mask: Mask) -> list[Points]:
    """Closed outlines of every part and hole of `mask` (H, W), as `outline` gives them."""
    return [_simplify(loop) for loop in _edge_loops(mask)]


def measure(mask: Mask, spacing_mm: tuple[float, float] | None) -> Measures:
    """Area of the whole `mask` (H, W), and the axes of its largest part."""
    area_px = int(mask.sum())
    rows, columns = spacing_mm or (1.0, 1.0)
    long_axis, short_axis = _axes(outline(mask) * (columns, rows))
    area_mm2 = area_px * float(rows) * float(columns) if spacing_mm else None
    return Measures(area_px, area_mm2, long_axis, short_axis, spacing_mm is not None)


def volume_ml(frames: Sequence[Frame], areas_px: Sequence[int]) -> float | None:
    """Volume over a stack of parallel, distinct planes; None where the frames are no such stack.

    Each plane stands for half the way to its neighbours, so uneven distances are counted right.
    """
    if len(frames) < 2 or any(f.orientation is None or f.spacing_mm is None for f in frames):
        return None
    first = frames[0].orientation or ()
    if not all(np.allclose(frame.orientation or (), first, atol=1e-3) for frame in frames):
        return None
    places = np.array([distance_along_normal(frame) for frame in frames])
    gaps = np.diff(places)
    if (gaps < SAME_PLACE_MM).any():
        return None
    thickness = disc_thickness_mm(places)
    pixel = [float(f.spacing_mm[0]) * float(f.spacing_mm[1]) for f in frames if f.spacing_mm]
    return float((np.array(areas_px) * np.array(pixel) * thickness).sum() / 1000.0)


def disc_thickness_mm(places_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each of the ascending places (N,) stands for: half the way to its neighbours, N >= 2."""
    gaps = np.diff(places_mm)
    around = np.concatenate([gaps[:1], gaps, gaps[-1:]])
    return np.asarray((around[:-1] + around[1:]) / 2.0)


def _edge_loops(mask: Mask) -> list[Points]:
    """Every border of `mask` as a loop of pixel corners, the inside to its right; holes run the other way."""
    following = _edges(mask)
    loops: list[Points] = []
    for start in sorted(following):
        if start not in following:
            continue
        loop, here, came_from = [start], start, (0, 0)
        while True:
            here, came_from = _next_corner(following, here, came_from)
            loop.append(here)
            if here == start:
                break
        loops.append(np.array(loop, dtype=np.float64))
    return loops


def _edges(mask: Mask) -> dict[tuple[int, int], list[tuple[int, int]]]:
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    steps = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),  # top edge, left to right
        (inside & ~padded[1:-1, 2:], (1, 0), (1, 1)),  # right edge, downwards
        (inside & ~padded[2:, 1:-1], (1, 1), (0, 1)),  # bottom edge, right to left
        (inside & ~padded[1:-1, :-2], (0, 1), (0, 0)),  # left edge, upwards
    )
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for is_edge, start, end in steps:
        for row, column in np.argwhere(is_edge).tolist():
            corner = (column + start[0], row + start[1])
            following.setdefault(corner, []).append((column + end[0], row + end[1]))
    return following


def _next_corner(
    following: dict[tuple[int, int], list[tuple[int, int]]], here: tuple[int, int], came_from: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Follow the border one edge on; where two pixels touch by a corner, turn right: they stay apart."""
    choices = following[here]
    right = (-came_from[1], came_from[0])
    chosen = next((end for end in choices if (end[0] - here[0], end[1] - here[1]) == right), choices[0])
    choices.remove(chosen)
    if not choices:
        del following[here]
    return chosen, (chosen[0] - here[0], chosen[1] - here[1])


def _signed_area(loop: Points) -> float:
    x, y = loop[:, 0], loop[:, 1]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2.0)


def _simplify(loop: Points) -> Points:
    """Fewer points: no straight runs, none nearer than SIMPLIFY_PX to a line, coarser if still too many."""
    keep = np.any(np.diff(loop[:-1], axis=0, prepend=loop[-2:-1]) != np.diff(loop, axis=0), axis=1)
    corners = loop[:-1][keep]
    closed = np.vstack([corners, corners[:1]])
    tolerance = SIMPLIFY_PX
    simple = _douglas_peucker(closed, tolerance)
    while len(simple) > MAX_POINTS:
        tolerance *= 2
        simple = _douglas_peucker(closed, tolerance)
    return simple if len(simple) >= 4 else closed


def _douglas_peucker(closed: Points, tolerance: float) -> Points:
    far = int(np.argmax(((closed - closed[0]) ** 2).sum(axis=1)))
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far, -1]] = True
    pending = [(0, far), (far, len(closed) - 1)]
    while pending:
        start, end = pending.pop()
        if end - start < 2:
            continue
        offsets = _distances(closed[start + 1 : end], closed[start], closed[end])
        worst = int(np.argmax(offsets))
        if offsets[worst] > tolerance:
            middle = start + 1 + worst
            keep[middle] = True
            pending += [(start, middle), (middle, end)]
    return closed[keep]


def _distances(points: Points, start: Points, end: Points) -> NDArray[np.float64]:
    line = end - start
    length = float(np.hypot(*line))
    away = points - start
    if length == 0:
        return np.asarray(np.hypot(away[:, 0], away[:, 1]))
    return np.asarray(np.abs(away[:, 0] * line[1] - away[:, 1] * line[0]) / length)


def _axes(points: Points) -> tuple[float, float]:
    """Longest distance between two points, and the extent across it."""
    between = points[:, np.newaxis, :] - points[np.newaxis, :, :]
    squared = (between**2).sum(axis=2)
    first, second = np.unravel_index(int(np.argmax(squared)), squared.shape)
    along = points[second] - points[first]
    length = float(np.hypot(*along))
    across = np.array([-along[1], along[0]]) / length
    spread = points @ across
    return length, float(spread.max() - spread.min())
