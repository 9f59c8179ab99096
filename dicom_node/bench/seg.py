"""How long the SEG of a long series takes: ours beside plain highdicom, read alike by highdicom or not."""

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicom_node.frames import Frame, SourceSeries, moment_of, plane_of, spacing_of
from dicom_node.make_dicom import SeriesDetails, build_series
from dicom_node.mask_stack import MaskStack
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.seg import SegmentationRequest, build_segmentation, describe_segments

FRAMES: Final = 500
QUICK_FRAMES: Final = 100
SIDE: Final = 512  # pixels
SLICE_MM: Final = 1.5
SEGMENTS: Final = (1, 5)
TARGET: Final = "lung nodule"
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A series with the masks of one or more segments, none of which overlap."""

    series: SourceSeries
    masks: Sequence[Masks]  # (frames, H, W), one a segment
    request: SegmentationRequest


def bench_segmentation(*, rounds: int, is_quick: bool) -> tuple[str, dict[str, object]]:
    """A table, and the figures: seconds from the last mask to the bytes of the file, medians of `rounds`."""
    frames = QUICK_FRAMES if is_quick else FRAMES
    cases = [_measured(frames, segments, rounds) for segments in SEGMENTS]
    figures: dict[str, object] = {
        "bench": "seg",
        "frames": frames,
        "side_px": SIDE,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "cases": cases,
    }
    return _table(frames, cases), figures


def _measured(frames: int, segments: int, rounds: int) -> dict[str, object]:
    case = _case(frames, segments)
    ours, our_file = _timed(lambda: _prepared(case), rounds)
    theirs, their_file = _timed(lambda: _by_highdicom(case), rounds)
    return {
        "segments": segments,
        "ours_median_s": round(statistics.median(ours), 4),
        "highdicom_median_s": round(statistics.median(theirs), 4),
        "times_faster": round(statistics.median(theirs) / statistics.median(ours), 1),
        "packing_s": round(_packing_s(case), 4),
        "is_equal": _is_equal(our_file, their_file),
        "our_bytes": len(our_file),
    }


def _table(frames: int, cases: Sequence[dict[str, object]]) -> str:
    head = f"SEG of {frames} slices of {SIDE} x {SIDE}, last mask to bytes of the file, median s"
    names = f"{'segments':>8}{'ours':>9}{'highdicom':>11}{'faster':>8}{'packed before':>15}{'read alike':>12}"
    lines = [
        f"{case['segments']:>8}{case['ours_median_s']:>9}{case['highdicom_median_s']:>11}"
        f"{case['times_faster']:>7}x{case['packing_s']:>15}{'yes' if case['is_equal'] else 'NO':>12}"
        for case in cases
    ]
    return "\n".join((head, names, *lines, "packed before: seconds for all masks, spent as each appears"))


def _case(frames: int, segments: int) -> Case:
    series = _series(frames)
    targets = (TARGET,) * segments
    masks = [_discs(frames, SIDE * (1 + 2 * number) / (2 * segments), segments) for number in range(segments)]
    return Case(series, masks, SegmentationRequest(targets, "CHEST", _provenance(series)))


def _series(count: int) -> SourceSeries:
    """Slices without content."""
    blank = np.zeros((8, 8), np.uint8)
    details = SeriesDetails("CT", body_part="CHEST", spacing_mm=(0.7, 0.7), slice_spacing_mm=SLICE_MM)
    datasets = build_series([blank] * count, details)
    frames = []
    for dataset in datasets:
        dataset.Rows, dataset.Columns = SIDE, SIDE
        position, orientation = plane_of(dataset)
        spacing, origin = spacing_of(dataset)
        shown = np.broadcast_to(np.uint8(0), (SIDE, SIDE))
        moment = moment_of(dataset, dataset)
        frames.append(Frame(shown, dataset, None, spacing, origin, SLICE_MM, position, orientation, moment))
    return SourceSeries(tuple(datasets), tuple(frames), (), ())


def _discs(count: int, column: float, segments: int) -> Masks:
    """A mask in every slice that grows and shrinks, narrow enough for its neighbours."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    reach = np.hypot(rows - SIDE / 2, columns - column)
    radii = (20.0 + 100.0 * np.sin(np.linspace(0, np.pi, count))) * 2 / (1 + segments)
    return np.stack([reach <= radius for radius in radii])


def _provenance(series: SourceSeries) -> Provenance:
    first = series.datasets[0]
    model = ModelIdentity("bench", "0", "0" * 64)
    return Provenance(str(first.StudyInstanceUID), str(first.SeriesInstanceUID), (), model, "bench")


def _prepared(case: Case) -> Callable[[], Dataset]:
    """As in a worker: every mask but the last is packed before the clock starts."""
    stacks = [_packed(masks[:-1], len(masks)) for masks in case.masks]

    def build() -> Dataset:
        for stack, masks in zip(stacks, case.masks, strict=True):
            stack.put(len(masks) - 1, masks[-1])
        return build_segmentation(case.series, stacks, case.request)

    return build


def _packed(masks: Masks, count: int) -> MaskStack:
    stack = MaskStack((SIDE, SIDE), count)
    for index, mask in enumerate(masks):
        stack.put(index, mask)
    return stack


def _packing_s(case: Case) -> float:
    started = time.perf_counter()
    for masks in case.masks:
        _packed(masks, len(masks))
    return time.perf_counter() - started


def _by_highdicom(case: Case) -> Callable[[], Dataset]:
    """As its documentation says: sources, segments, one array; labels, with which it is fastest."""
    labels = np.zeros(case.masks[0].shape, np.uint8)
    for number, masks in enumerate(case.masks, start=1):
        labels[masks] = number
    segments = describe_segments(case.request)

    def build() -> Dataset:
        return highdicom.seg.Segmentation(
            source_images=list(case.series.datasets),
            pixel_array=labels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="bench",
            manufacturer_model_name="bench",
            software_versions="0",
            device_serial_number="0",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )

    return build


def _timed(prepare: Callable[[], Callable[[], Dataset]], rounds: int) -> tuple[list[float], bytes]:
    """Seconds of each round after one to warm up, and the file of the last."""
    seconds, file = [], b""
    for _ in range(rounds + 1):
        build, buffer = prepare(), io.BytesIO()
        started = time.perf_counter()
        build().save_as(buffer, enforce_file_format=True)
        seconds.append(time.perf_counter() - started)
        file = buffer.getvalue()
    return seconds[1:], file


def _is_equal(ours: bytes, theirs: bytes) -> bool:
    """Whether highdicom reads the same numbers at the same places of the patient."""
    one, other = (highdicom.seg.segread(io.BytesIO(file)) for file in (ours, theirs))
    volumes = [each.get_volume(combine_segments=True) for each in (one, other)]
    is_same_place = np.allclose(volumes[0].affine, volumes[1].affine, atol=1e-3)
    return bool(is_same_place and np.array_equal(volumes[0].array, volumes[1].array))
