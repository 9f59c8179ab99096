"""Frames, augmentation and batches: mask and image move together, answers are measured afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from inference.datasets.augment import change_grey_levels, warp
from inference.datasets.frames import Frames, open_frames
from inference.datasets.m3ds import Record, load_records
from inference.datasets.measure import answer_of
from inference.datasets.sample import M3dsSampler, collate, frame_sample
from inference.datasets.text import encode_batch
from inference.prompts import DIAGNOSIS_CUE, SEG, parse_answer
from inference.settings import PACKAGES
from tests.inference.datasets import tiny_data

WEIGHTS = {"busbra": 0.5, "fracatlas": 0.2, "sunnybrook_cmr": 0.2, "isic2017_cls": 0.1}


@pytest.fixture
def data(tmp_path: Path) -> tuple[list[Record], Frames]:
    records = load_records(tiny_data.write(tmp_path / "data"))
    return records, open_frames(records, tmp_path / "cache", 64)


def test_frames_are_built_once_and_fit_the_square(data: tuple[list[Record], Frames], tmp_path: Path) -> None:
    records, frames = data
    assert frames.images.shape == (len(records), 64, 64, 3)
    assert frames.inner_hws.tolist() == [[48, 64]] * len(records)
    assert not frames.images[:, 48:].any()
    (home,) = (tmp_path / "cache").iterdir()
    before = (home / "images.npy").stat().st_mtime_ns
    open_frames(records, tmp_path / "cache", 64)
    assert (home / "images.npy").stat().st_mtime_ns == before


def test_draws_only_training_records_and_balances_labels(data: tuple[list[Record], Frames]) -> None:
    sampler = M3dsSampler(*data, WEIGHTS, seed=1)
    drawn = [sample.record for sample in sampler.draw(200)]
    assert {record.split for record in drawn} == {"train"}
    labels = [record.diagnosis for record in drawn if record.dataset == "busbra"]
    assert 0.35 < labels.count("malignant") / len(labels) < 0.65
    assert all(sample.mask.any() for sample in sampler.draw(20, only_regions=True))


def test_the_same_seed_draws_the_same(data: tuple[list[Record], Frames]) -> None:
    first, second = (M3dsSampler(*data, WEIGHTS, seed=3).draw(5) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_moves_with_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 80), np.uint8)
    mask[15:40, 20:55] = 255
    image = np.repeat((mask // 255 * 200)[..., None], 3, axis=2)
    moved, moved_mask = warp(image, mask, rng, any_rotation=bool(seed % 2))
    assert moved.shape[:2] == moved_mask.shape
    assert max(moved_mask.shape) == 80
    assert ((moved[..., 0] > 100) == (moved_mask > 127)).mean() > 0.97


def test_grey_images_stay_grey() -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(rng.integers(0, 256, (20, 30, 1)).astype(np.uint8), 3, axis=2)
    for _ in range(20):
        changed = change_grey_levels(image, rng, is_colour=False)
        assert changed.dtype == np.uint8
        assert np.ptp(changed.astype(int), axis=-1).max() == 0


def test_a_batch_has_padding_cells_and_valid_cells(data: tuple[list[Record], Frames]) -> None:
    records, frames = data
    batch = collate([frame_sample(records[0], frames, 0)], 64, 32)
    assert batch.pixels.shape == (1, 3, 32, 32)
    assert not batch.pixels[0, :, 24:].any()
    assert batch.masks.shape == (1, 1, 32, 32)
    assert batch.valid_cells.sum() == 12 * 16
    covered = float(frames.masks[0].astype(bool).mean())
    assert float(batch.cells.mean()) == pytest.approx(covered)


def test_a_side_that_does_not_divide_the_frame_is_refused(data: tuple[list[Record], Frames]) -> None:
    records, frames = data
    with pytest.raises(ValueError, match="64 pixels cannot be shrunk to 48"):
        collate([frame_sample(records[0], frames, 0)], 64, 48)


def test_text_is_weighted_and_points_at_the_state_before_seg(data: tuple[list[Record], Frames]) -> None:
    records, frames = data
    samples = [frame_sample(records[i], frames, i) for i in (1, 4)]  # malignant; no fracture
    tokenizer = Tokenizer.from_file(str(PACKAGES / "sim4seg-s" / "tokenizer.json"))
    text = encode_batch(samples, tokenizer, np.random.default_rng(0), 4.0)
    assert text.has_seg.tolist() == [True, False]
    assert text.ids[0, text.seg_index[0] + 1] == tokenizer.token_to_id(SEG)
    for row, sample in enumerate(samples):
        answer = answer_of(sample)
        ids = [*tokenizer.encode(answer).ids, tokenizer.token_to_id("<eos>")]
        asked = text.weights[row] > 0
        assert text.ids[row, 1:][asked].tolist() == ids
        heavy = text.ids[row, 1:][text.weights[row] == 4].tolist()
        label = parse_answer(answer).diagnosis
        assert tokenizer.decode(heavy[1:]) == f" {label}"
        assert answer.endswith(f"{DIAGNOSIS_CUE} {label}.")
    assert torch.equal(text.ids[:, 0], torch.tensor([4, 4]))
