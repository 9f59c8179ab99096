"""5 PREPROCESS (time half). Parallel planes over a repeated movement -> slices x phases.

Scanners say in different ways which phase a frame shows: Temporal Position, Trigger Time, or nothing but
the order of Instance Numbers; and keep all slices in one series or each in its own. A stack whose slices
do not show the same phases is read by the first phase of each slice, and says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dicom_node.frames import Frame, Moment, distance_along_normal

SAME_PLACE_MM: Final = 0.5  # planes nearer to each other than this are one slice
MAX_BEAT_MS: Final = 2500.0  # a longer run of trigger times is no single heart beat
SAME_MS: Final = 1e-3

Slices = list[list[int]]  # [slice][frame at its place] -> index among the frames


class NoStack(Exception):
    """The frames are no stack of parallel slices; the message is a sentence."""


@dataclass(frozen=True)
class CineGrid:
    """Which frame shows which slice in which phase."""

    places_mm: tuple[float, ...]  # of the slices along their common normal, ascending
    frames: tuple[tuple[int, ...], ...]  # [slice][phase] -> index among the frames; as many phases in each
    ordered_by: str  # the attribute that says which phase a frame shows; "" for a single phase
    remark: str = ""  # why phases of the source are not among these

    @property
    def phases(self) -> int:
        """How many phases every slice has."""
        return len(self.frames[0])


def cine_grid(frames: Sequence[Frame]) -> CineGrid:
    """The frames by slice and phase.

    Raises
    ------
    NoStack
        If they are not at least two parallel planes at different places.
    """
    _require_parallel(frames)
    places = [distance_along_normal(frame) for frame in frames]
    slices = _slices(places)
    if len(slices) < 2:
        raise NoStack("All frames lie in one plane, so no volume is measured.")
    moments = [[frames[index].moment for index in members] for members in slices]
    middles = tuple(float(np.mean([places[index] for index in members])) for members in slices)
    remark = _why_no_phases(moments)
    order = None if remark else _order(moments)
    if order is None:
        first = tuple((_first(frames, members),) for members in slices)
        return CineGrid(middles, first, "", remark)
    name, key = order
    ordered = tuple(tuple(sorted(members, key=lambda i: key(frames[i].moment))) for members in slices)
    return CineGrid(middles, ordered, name if len(ordered[0]) > 1 else "")


def _require_parallel(frames: Sequence[Frame]) -> None:
    first = frames[0]
    if any(frame.orientation is None or frame.spacing_mm is None for frame in frames):
        raise NoStack("The frames do not say where they lie in the patient, so no volume is measured.")
    if not all(np.allclose(f.orientation or (), first.orientation or (), atol=1e-3) for f in frames):
        raise NoStack("The frames are not parallel, so no volume is measured.")


def _slices(places_mm: Sequence[float]) -> Slices:
    """Frames of one place together, along the normal."""
    slices: Slices = []
    previous = -np.inf
    for index in sorted(range(len(places_mm)), key=lambda i: places_mm[i]):
        if places_mm[index] - previous > SAME_PLACE_MM:
            slices.append([])
        slices[-1].append(index)
        previous = places_mm[index]
    return slices


def _why_no_phases(moments: list[list[Moment]]) -> str:
    """Why what lies at one place is not one heart beat, the same for all slices; "" when it may be."""
    counts = {len(members) for members in moments}
    if len(counts) > 1:
        return f"The slices have different numbers of phases ({min(counts)} to {max(counts)})."
    for members in moments:
        if len({each.echo_time_ms for each in members}) > 1:
            return "Frames of one slice differ in Echo Time: they are not phases of a heart beat."
        times = [each.trigger_time_ms for each in members if each.trigger_time_ms is not None]
        if times and max(times) - min(times) > MAX_BEAT_MS:
            return "The trigger times of a slice span more than one heart beat."
        if 1 < len({round(time / SAME_MS) for time in times}) < len(times):
            return "A slice has several frames of one trigger time: it was acquired more than once."
    return ""


def _order(moments: list[list[Moment]]) -> tuple[str, Callable[[Moment], float]] | None:
    """The first attribute that tells the frames of every slice apart."""
    for name, key in _ATTRIBUTES:
        if all(_tells_apart([key(moment) for moment in members]) for members in moments):
            return name, lambda moment, key=key: float(key(moment) or 0.0)
    return None


def _tells_apart(values: Sequence[float | None]) -> bool:
    return None not in values and len(set(values)) == len(values)


def _first(frames: Sequence[Frame], members: Sequence[int]) -> int:
    def when(index: int) -> tuple[float, int, int]:
        moment = frames[index].moment
        return moment.trigger_time_ms or 0.0, moment.temporal_position or 0, moment.instance_number

    return min(members, key=when)


_ATTRIBUTES: Final[tuple[tuple[str, Callable[[Moment], float | None]], ...]] = (
    ("Temporal Position", lambda moment: moment.temporal_position),
    ("Trigger Time", lambda moment: moment.trigger_time_ms),
    ("Instance Number", lambda moment: moment.instance_number),
)
