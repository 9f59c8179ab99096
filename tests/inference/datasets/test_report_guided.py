"""Reports say what the mask says, lose what they are told to lose, and can be dealt to the wrong images."""

from pathlib import Path

import numpy as np
import pytest

from inference.datasets.frames import open_frames
from inference.datasets.m3ds import load_records
from inference.datasets.report_guided import (
    LEAKS,
    NOTHING,
    Missing,
    lost_fields,
    report_of,
    shuffled,
)
from inference.datasets.sample import Sample, frame_sample
from inference.reports import FIELDS, Priors, extract_priors
from tests.inference.datasets import tiny_data


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    records = load_records(tiny_data.write(tmp_path / "data"))
    frames = open_frames(records, tmp_path / "cache", 256)
    return [frame_sample(record, frames, i) for i, record in enumerate(records)]


def test_a_report_states_its_priors(samples: list[Sample]) -> None:
    report = report_of(samples[0])
    assert extract_priors(report.text) == report.priors
    assert all(getattr(report.priors, name) for name in FIELDS)
    assert report_of(samples[4]).priors == NOTHING  # no fracture: nothing to describe


def test_what_leaks_can_be_left_out(samples: list[Sample]) -> None:
    assert set(LEAKS) == set(FIELDS)
    report = report_of(samples[0], ("location", "shape"))
    assert report.priors == Priors(None, report.priors.texture, None)
    assert " of the image" not in report.text
    assert "margin" not in report.text
    everything = report_of(samples[0], FIELDS)
    assert everything.text == "Breast ultrasound image."
    with pytest.raises(ValueError, match="not colour"):
        report_of(samples[0], ("colour",))


def test_a_report_moves_with_the_mask(samples: list[Sample]) -> None:
    still = samples[0]
    turned = Sample(still.pixels[::-1, ::-1], still.mask[::-1, ::-1], still.record)
    assert report_of(still).priors.shape == report_of(turned).priors.shape


def test_reports_and_fields_are_dropped_as_often_as_told() -> None:
    rng = np.random.default_rng(0)
    drawn = [lost_fields(rng, Missing(report=0.5, field=0.2), ["shape"]) for _ in range(400)]
    assert 0.4 < np.mean([one == set(FIELDS) for one in drawn]) < 0.65
    kept = [one for one in drawn if one != set(FIELDS)]
    assert 0.1 < np.mean(["location" in one for one in kept]) < 0.3
    assert all("shape" in one for one in drawn)


def test_without_any_field_nothing_is_told(samples: list[Sample]) -> None:
    assert report_of(samples[0], FIELDS).priors == NOTHING


def test_nobody_keeps_his_own_priors() -> None:
    for count in (2, 3, 50):
        own = [Priors(location=str(i)) for i in range(count)]
        dealt = shuffled(own, seed=count)
        assert all(a != b for a, b in zip(own, dealt, strict=True))
        assert {one.location for one in dealt} == {one.location for one in own}
