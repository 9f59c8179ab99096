"""6 RUN, masks through a stack: a slice missed between two that show one region gets what both share.

Nothing is ever taken away: a region that stands alone may be a small lesion. The report says on how many
slices this was done.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from dicom_node.frames import Frame, distance_along_normal
from dicom_node.mask_stack import MaskStack

MAX_REACH_MM: Final = 12.0  # between the two slices; further apart nobody knows what lies between them
SAME_PLACE_MM: Final = 1e-3
SAME_COSINE: Final = 1e-3


def bridge_gaps(frames: Sequence[Frame], masks: MaskStack, least_px: int) -> int:
    """Fill each empty mask between two marked ones that share `least_px` pixels; return how many were filled.

    Only in a stack of parallel, distinct planes: phases of a movement are not slices of one body.
    """
    places = _places_mm(frames)
    if places is None:
        return 0
    marked = set(masks.marked)
    filled = 0
    for index in range(1, len(masks) - 1):
        is_gap = index not in marked and {index - 1, index + 1} <= marked
        if is_gap and places[index + 1] - places[index - 1] <= MAX_REACH_MM:
            shared = masks[index - 1] & masks[index + 1]
            if int(shared.sum()) >= least_px:
                masks.put(index, shared)
                filled += 1
    return filled


def _places_mm(frames: Sequence[Frame]) -> list[float] | None:
    """Where the planes lie along their common normal, ascending; None where they are no such stack."""
    first = frames[0].orientation
    if first is None or any(frame.orientation is None for frame in frames):
        return None
    orientations = {frame.orientation for frame in frames}
    if not all(np.allclose(each or (), first, atol=SAME_COSINE) for each in orientations):
        return None
    places = [distance_along_normal(frame) for frame in frames]
    is_stack = all(later - earlier > SAME_PLACE_MM for earlier, later in pairwise(places))
    return places if is_stack else None
