"""Blank, noise, tiny and wrong images are told apart from everything a model was trained on."""

from pathlib import Path

import numpy as np
import pytest

from inference.datasets.frames import read_image
from inference.datasets.m3ds import KINDS, load_records
from inference.datasets.splits import hash_order
from inference.suitability import why_another_kind, why_unsuitable


def ramp(hw: tuple[int, int]) -> np.ndarray:
    level = np.add.outer(np.linspace(0, 120, hw[0]), np.linspace(0, 120, hw[1]))
    return np.repeat(level.astype(np.uint8)[..., None], 3, axis=2)


def speckle(side: int) -> np.ndarray:
    """A dark ellipse in speckle."""
    noise = np.random.default_rng(7).rayleigh(60.0, (side, side))
    rows, columns = np.mgrid[:side, :side] / side
    is_dark = ((rows - 0.45) / 0.14) ** 2 + ((columns - 0.55) / 0.22) ** 2 < 1
    grey = np.clip(np.where(is_dark, noise * 0.2, noise), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


RNG = np.random.default_rng(0)
BLANK = np.full((200, 300, 3), 17, np.uint8)
WITH_SCALE = BLANK.copy()
WITH_SCALE[3:6, 10:40] = 250  # a scale bar on nothing
BAD = [
    (ramp((9, 400)), "at least 16 a side"),
    (BLANK, "blank"),
    (WITH_SCALE, "blank"),
    (BLANK + RNG.integers(0, 3, BLANK.shape).astype(np.uint8), "blank"),
    (RNG.integers(0, 256, (123, 77, 3)).astype(np.uint8), "noise"),
    (np.repeat(RNG.integers(0, 256, (700, 900, 1)).astype(np.uint8), 3, axis=2), "noise"),
    (np.lib.stride_tricks.as_strided(ramp((16, 16)), (20000, 20000, 3), (0, 0, 1)), "at most"),
]
GOOD = [
    ramp((16, 16)), ramp((17, 900)), 255 - ramp((300, 200)), ramp((4000, 5000)), speckle(512),
]  # fmt: skip


@pytest.mark.parametrize(("pixels", "reason"), BAD)
def test_bad_images_are_refused_with_the_reason(pixels: np.ndarray, reason: str) -> None:
    assert reason in (why_unsuitable(pixels) or "")


@pytest.mark.parametrize("pixels", GOOD)
def test_strange_but_possible_images_pass(pixels: np.ndarray) -> None:
    assert why_unsuitable(pixels) is None


def test_the_colour_must_fit_the_answer() -> None:
    grey, red = ramp((60, 60)), ramp((60, 60)).copy()
    red[..., 1:] = 0
    red[..., 0] += 60
    assert why_another_kind(grey, "colonoscopy image") is not None
    assert why_another_kind(red, "colonoscopy image") is None
    assert why_another_kind(red, "bone radiograph") is not None
    assert why_another_kind(grey, "bone radiograph") is None
    assert why_another_kind(red, None) is None
    part = grey.copy()
    part[:20] = red[:20]  # a coloured flow box is no colonoscopy
    assert why_another_kind(part, "breast ultrasound image") is None


@pytest.mark.shared
def test_no_image_of_the_training_data_is_refused(shared_data: Path) -> None:
    records = load_records(shared_data / "data")
    for dataset, kind in KINDS.items():
        of_it = {record.name: record for record in records if record.dataset == dataset}
        for name in hash_order(of_it)[:25]:
            pixels = read_image(of_it[name])
            assert why_unsuitable(pixels) is None, name
            assert why_another_kind(pixels, kind.modality) is None, name
