"""The contact sheet draws both outlines where they are, and writes what was said."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node.samples_ultrasound import make_breast_ultrasound
from inference.datasets.folder import load_cases
from inference.settings import PACKAGES
from inference.training.contact_sheet import BLANK, COLUMNS, OURS, PAPER, TILE, TRUE, look, pick, sheet, worst

PACKAGE = PACKAGES / "sim4seg-s"
FIELDS = ("split", "dataset", "id", "image", "mask", "modality", "organ", "label", "target")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    grey, truth = make_breast_ultrasound()
    Image.fromarray(grey).save(tmp_path / "lesion.png")
    Image.fromarray((truth * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.full((90, 120), 9, np.uint8)).save(tmp_path / "blank.png")
    rows = [
        ("val", "one", "a", "lesion.png", "mask.png", "US", "breast", "benign", "breast lesion"),
        ("val", "one", "b", "lesion.png", "mask.png", "US", "breast", "benign", "breast lesion"),
        ("val", "two", "c", "blank.png", "", "US", "breast", "", "breast lesion"),
    ]
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([FIELDS, *rows])
    return tmp_path


def test_both_outlines_and_a_refusal(folder: Path) -> None:
    lesion, blank = entries = list(look(PACKAGE, pick(load_cases(folder), 2)))
    assert (lesion.case.dataset, blank.case.dataset) == ("one", "two"), "by turns"
    assert lesion.dice is not None
    assert lesion.dice > 0.7
    assert blank.prediction is None
    assert "blank" in blank.words
    drawn = np.asarray(sheet(entries, "sim4seg-s"))
    assert drawn.shape[1] == COLUMNS * TILE
    first, second = drawn[30 : 30 + TILE, :TILE], drawn[30 : 30 + TILE, TILE : 2 * TILE]
    for colour in (OURS, TRUE):
        assert (first == colour).all(axis=2).sum() > 100
        assert not (second == colour).all(axis=2).any()


def test_a_picture_for_a_card_has_the_outlines_and_no_pixel_of_the_image(folder: Path) -> None:
    entries = [entry.without_pixels() for entry in look(PACKAGE, pick(load_cases(folder), 1))]
    tile = np.asarray(sheet(entries, "sim4seg-s", columns=1))[30 : 30 + TILE - 4, : TILE - 4]
    colours = {tuple(colour) for colour in np.unique(tile.reshape(-1, 3), axis=0).tolist()}
    assert colours == {OURS, TRUE, (BLANK,) * 3, PAPER}


def test_the_worst_are_those_of_each_data_set(folder: Path) -> None:
    cases = load_cases(folder)
    entries = [replace(entry, case=case) for entry, case in zip(look(PACKAGE, cases), cases, strict=True)]
    missed = replace(entries[1], prediction=None)
    found = worst([entries[0], missed, entries[2]], 2)
    assert found == [missed, entries[0]], "the third has no outline to be compared with"
