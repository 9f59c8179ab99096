"""A picture is known again when scaled, brightened or compressed, and pictures of one kind are told apart."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.datasets.frames import open_frames
from inference.datasets.m3ds import load_records
from inference.datasets.near_duplicates import (
    LEFT_OUT,
    Pair,
    check_apart,
    gradient_hash,
    groups_of,
    keep_apart,
    near_duplicates,
    near_pairs,
    pairs_of,
)
from inference.datasets.splits import SplitError
from tests.inference.datasets import tiny_data


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 12)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((200, 160), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(smooth)[..., None], 3, axis=2)


def compressed(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


CHANGES = {
    "smaller": lambda x: np.asarray(Image.fromarray(x).resize((90, 70), Image.Resampling.BILINEAR)),
    "darker": lambda x: (x * 0.6 + 10).astype(np.uint8),
    "compressed": compressed,
    "grainy": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 5, x.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_known_again(change: str) -> None:
    pictures = [picture(0), picture(1), CHANGES[change](picture(0))]
    (pair,) = near_duplicates(pictures)
    assert (pair.first, pair.second) == (0, 2)


def test_pictures_of_one_kind_are_told_apart() -> None:
    rows, columns = np.mgrid[:120, :120]
    moles = []
    for height, width in ((20, 20), (45, 30), (18, 50)):  # dark in the middle: much the same hash
        dark = ((rows - 60) / height) ** 2 + ((columns - 60) / width) ** 2 < 1
        moles.append(np.repeat(np.where(dark, 60, 200).astype(np.uint8)[..., None], 3, axis=2))
    assert near_duplicates(moles) == []


def test_bits_apart() -> None:
    assert near_pairs([0, 0b1111, 0b11111, 0]) == [Pair(0, 1, 4), Pair(0, 3, 0), Pair(1, 2, 1), Pair(1, 3, 4)]
    assert gradient_hash(np.zeros((30, 30), np.uint8)) == 0


def test_chains_are_one_group() -> None:
    assert groups_of(5, [Pair(0, 3, 1), Pair(3, 4, 1)]) == [0, 1, 2, 0, 0]


def test_near_duplicates_stand_on_one_side(tmp_path: Path) -> None:
    root = tiny_data.write(tmp_path / "data")
    shutil.copy(
        root / "train" / "b3.png", root / "train" / "b1.png"
    )  # a validation image, under another name
    records = load_records(root)
    frames = open_frames(records, tmp_path / "cache", 256)
    pairs = pairs_of(records, frames, frames.home)
    assert [(records[pair.first].name, records[pair.second].name) for pair in pairs] == [("b1", "b3")]
    with pytest.raises(SplitError, match="b1 .train. and b3 .val. of busbra"):
        check_apart(records, pairs)
    apart = keep_apart(records, pairs)
    check_apart(apart, pairs)
    assert [record.name for record in apart if record.split == LEFT_OUT] == ["b1"]
    assert pairs_of(records, frames, frames.home) == pairs  # kept on disk


def test_one_file_on_both_sides_is_a_validation_image(tmp_path: Path) -> None:
    root = tiny_data.write(tmp_path)
    manifest = root / "train" / "manifest.csv"
    text = manifest.read_text()
    manifest.write_text(text.replace("train/b1.png", "train/b3.png"))
    names = [record.name for record in load_records(root) if record.dataset == "busbra"]
    assert names == ["b2", "b3"]
