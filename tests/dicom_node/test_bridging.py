"""Slices missed between two that show one region are filled with what both share; nothing else changes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.analysis import analyse
from dicom_node.bridging import bridge_gaps
from dicom_node.mask_stack import MaskStack
from dicom_node.reading import AnalysisRequest
from tests import builders

SIZE = (40, 48)
ROUND = builders.make_ellipse(SIZE, (20, 20), (9, 9))
BESIDE = builders.make_ellipse(SIZE, (22, 24), (9, 9))
APART = builders.make_ellipse(SIZE, (5, 42), (3, 3))
EMPTY = np.zeros(SIZE, bool)
Masks = Sequence[NDArray[np.bool_]]


def bridged(folder: Path, masks: Masks, spacing_mm: float) -> tuple[int, MaskStack]:
    stack = builders.make_stack(masks, "CT")
    for number, dataset in enumerate(stack):
        dataset.ImagePositionPatient = [0, 0, spacing_mm * number]
    series = builders.as_loaded(folder, stack)
    kept = MaskStack.of(masks)
    return bridge_gaps(series.frames, kept, 4), kept


def test_a_missed_slice_gets_what_its_neighbours_share(tmp_path: Path) -> None:
    count, masks = bridged(tmp_path, [EMPTY, ROUND, EMPTY, BESIDE, EMPTY], 3.0)
    assert count == 1
    assert (masks[2] == (ROUND & BESIDE)).all()
    assert masks.marked == [1, 2, 3]


@pytest.mark.parametrize(
    ("masks", "spacing_mm"),
    [
        ([ROUND, EMPTY, BESIDE], 8.0),  # too far apart
        ([ROUND, EMPTY, APART], 3.0),  # two regions
        ([ROUND, EMPTY, EMPTY, BESIDE], 3.0),  # more than one slice
        ([ROUND, APART, BESIDE], 3.0),  # something is there, alone as it is
        ([ROUND, EMPTY, BESIDE], 0.0),  # phases in one place
    ],
)
def test_everything_else_stays(tmp_path: Path, masks: Masks, spacing_mm: float) -> None:
    count, kept = bridged(tmp_path, masks, spacing_mm)
    assert count == 0
    assert all((mask == before).all() for mask, before in zip(kept, masks, strict=True))


def test_the_report_says_so(tmp_path: Path) -> None:
    stack = builders.make_stack([ROUND, EMPTY, BESIDE, ROUND], "CT")
    for number, dataset in enumerate(stack):
        dataset.ImagePositionPatient = [0, 0, 3.0 * number]
    series = builders.as_loaded(tmp_path, stack)
    result = analyse(series, builders.MaskPredictor(), AnalysisRequest("Outline it."))
    assert "On 1 slice that the model missed, the outline is what its neighbours share." in (
        result.findings.remarks
    )
    assert result.segmentations[0].NumberOfFrames == 4
