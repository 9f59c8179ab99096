"""How long the SEG of a long series takes: ours beside plain highdicom, read alike by highdicom or not."""

import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Final

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dicom_node.frames import Frame, SourceSeries, moment_of, plane_of, spacing_of
from dicom_node.make_dicom import SeriesDetails, build_series
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.seg import SegmentationRequest, build_segmentation, describe_segment

FRAMES: Final = 500
QUICK_FRAMES: Final = 100
SIDE: Final = 512  # pixels
SLICE_MM: Final = 1.5
TARGET: Final = "lung nodule"
Masks = NDArray[np.bool_]


def bench_segmentation(*, rounds: int, is_quick: bool) -> tuple[str, dict[str, object]]:
    """A table, and the figures: seconds from the last mask to the bytes of the file, medians of `rounds`."""
    count = QUICK_FRAMES if is_quick else FRAMES
    series, masks = _series(count)
    request = SegmentationRequest(TARGET, "CHEST", _provenance(series))
    ours, our_file = _timed(lambda: build_segmentation(series, list(masks), request), rounds)
    theirs, their_file = _timed(lambda: _by_highdicom(series, masks, request), rounds)
    figures: dict[str, object] = {
        "bench": "seg",
        "frames": count,
        "side_px": SIDE,
        "rounds": rounds,
        "ours_median_s": round(statistics.median(ours), 3),
        "highdicom_median_s": round(statistics.median(theirs), 3),
        "times_faster": round(statistics.median(theirs) / statistics.median(ours), 1),
        "is_equal": _is_equal(our_file, their_file),
        "our_bytes": len(our_file),
        "cores": os.cpu_count(),
    }
    return _table(figures), figures


def _table(figures: dict[str, object]) -> str:
    return "\n".join(
        (
            f"SEG of {figures['frames']} slices of {SIDE} x {SIDE}, last mask to bytes of the file, median s",
            f"{'ours':<12}{figures['ours_median_s']:>8}",
            f"{'highdicom':<12}{figures['highdicom_median_s']:>8}   {figures['times_faster']} times ours",
            f"equal as highdicom reads both: {'yes' if figures['is_equal'] else 'NO'}",
        )
    )


def _series(count: int) -> tuple[SourceSeries, Masks]:
    """Slices without content, and a mask in every one that grows and shrinks."""
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
    rows, columns = np.mgrid[:SIDE, :SIDE]
    reach = np.hypot(rows - SIDE / 2, columns - SIDE / 3)
    radii = 20.0 + 100.0 * np.sin(np.linspace(0, np.pi, count))
    masks = np.stack([reach <= radius for radius in radii])
    return SourceSeries(tuple(datasets), tuple(frames), (), ()), masks


def _provenance(series: SourceSeries) -> Provenance:
    first = series.datasets[0]
    model = ModelIdentity("bench", "0", "0" * 64)
    return Provenance(str(first.StudyInstanceUID), str(first.SeriesInstanceUID), (), model, "bench")


def _by_highdicom(series: SourceSeries, masks: Masks, request: SegmentationRequest) -> Dataset:
    """As its documentation says: sources, one array, one segment."""
    segment = describe_segment(request)
    return highdicom.seg.Segmentation(
        source_images=list(series.datasets),
        pixel_array=masks,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
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


def _timed(build: Callable[[], Dataset], rounds: int) -> tuple[list[float], bytes]:
    """Seconds of each round after one to warm up, and the file of the last."""
    seconds, file = [], b""
    for _ in range(rounds + 1):
        started = time.perf_counter()
        buffer = io.BytesIO()
        build().save_as(buffer, enforce_file_format=True)
        seconds.append(time.perf_counter() - started)
        file = buffer.getvalue()
    return seconds[1:], file


def _is_equal(ours: bytes, theirs: bytes) -> bool:
    one, other = (highdicom.seg.segread(io.BytesIO(file)) for file in (ours, theirs))
    volumes = [each.get_volume(combine_segments=True) for each in (one, other)]
    is_same_place = np.allclose(volumes[0].affine, volumes[1].affine, atol=1e-3)
    return bool(is_same_place and np.array_equal(volumes[0].array, volumes[1].array))
