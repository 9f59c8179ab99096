"""4 JOB, of the heart. Which series of a study are slices of one stack, kept in a series each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.cine import SAME_PLACE_MM
from dicom_node.frames import UNDECODABLE, frame_attributes, plane_of, reading, spacing_of

Key = tuple[object, ...]


@dataclass(frozen=True)
class _Slice:
    """A series of at least two frames that all lie in one plane."""

    series_instance_uid: str
    series_number: int
    key: Key  # what slices of one stack have in common
    place_mm: float


def stack_with(series_instance_uid: str, headers: Mapping[str, Sequence[Dataset]]) -> tuple[str, ...]:
    """UIDs of the series that are one stack with this one, lowest slice first; else its own alone.

    Of two series at one place the one with the higher number is taken: the slice was acquired again.

    Parameters
    ----------
    series_instance_uid : whose stack is wanted
    headers : of every instance, by Series Instance UID, of the series that may belong together
    """
    slices = {uid: each for uid in headers if (each := _slice(uid, headers[uid])) is not None}
    own = slices.get(series_instance_uid)
    if own is None:
        return (series_instance_uid,)
    stack: list[_Slice] = []
    for each in sorted(slices.values(), key=lambda s: (s.place_mm, -s.series_number, s.series_instance_uid)):
        if each.key == own.key and (not stack or each.place_mm - stack[-1].place_mm > SAME_PLACE_MM):
            stack.append(each)
    uids = tuple(each.series_instance_uid for each in stack)
    return uids if series_instance_uid in uids else (series_instance_uid,)


def read_headers(paths: Iterable[Path]) -> list[Dataset]:
    """Headers of the files that hold DICOM; load_series names the others.

    Raises
    ------
    InputUnreadable
        If the disk does not give a file.
    """
    headers: list[Dataset] = []
    for path in paths:
        try:
            with reading(path):
                headers.append(dcmread(path, stop_before_pixels=True))
        except UNDECODABLE:
            continue
    return headers


def _slice(uid: str, headers: Sequence[Dataset]) -> _Slice | None:
    planes = [frame for header in headers for frame in _frames(header)]
    if len(planes) < 2 or None in planes:
        return None
    (key, place), *others = (plane for plane in planes if plane is not None)
    if any(other != key or abs(where - place) > SAME_PLACE_MM for other, where in others):
        return None
    return _Slice(uid, int(headers[0].get("SeriesNumber") or 0), key, place)


def _frames(header: Dataset) -> list[tuple[Key, float] | None]:
    count = int(header.get("NumberOfFrames") or 1)
    return [_plane(header, frame_attributes(header, index)) for index in range(count)]


def _plane(header: Dataset, attributes: Dataset) -> tuple[Key, float] | None:
    """What a frame has in common with others of its stack, and where it lies along the normal, in mm."""
    position, orientation = plane_of(attributes)
    spacing, _ = spacing_of(attributes)
    if position is None or orientation is None or spacing is None:
        return None
    cosines = np.array(orientation, float)
    place = float(np.cross(cosines[:3], cosines[3:]) @ np.array(position, float))
    key = (
        str(header.get("FrameOfReferenceUID") or ""),
        (int(header.Rows), int(header.Columns)),
        tuple(round(float(value), 3) for value in spacing),
        tuple(round(float(value), 3) + 0.0 for value in orientation),
    )
    return key, place
