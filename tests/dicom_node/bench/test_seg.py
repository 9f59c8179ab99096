"""`dicom-node bench seg` measures like with like; how fast it was is not tested."""

from typing import Any

import pytest

from dicom_node.bench import seg
from tests import builders


@pytest.mark.parametrize("segments", seg.SEGMENTS)
def test_what_it_times_is_read_alike(segments: int) -> None:
    measured: dict[str, Any] = seg._measured(5, segments, rounds=1)
    assert measured["is_equal"] is True
    assert measured["our_bytes"] > segments * 5 * seg.SIDE * seg.SIDE // 8
    assert seg._table(5, [measured]).count("yes") == 1


def test_it_tells_when_they_are_not_alike() -> None:
    case = seg._case(5, 2)
    ours = builders.part10(seg._prepared(case)())
    stacks = [seg._packed(masks, 5) for masks in reversed(case.masks)]
    swapped = builders.part10(seg.build_segmentation(case.series, stacks, case.request))
    assert seg._is_equal(ours, ours)
    assert not seg._is_equal(ours, swapped)
