"""Any folder with a manifest can be scored; what belongs to the training is left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.datasets.folder import ManifestError, closed_label, load_cases, modality_of
from inference.datasets.frames import read_image, read_mask
from tests.inference.datasets import tiny_data


def test_validation_rows_and_held_out_patients(tmp_path: Path) -> None:
    folder = tiny_data.write(tmp_path) / "train"
    cases = load_cases(folder)
    names = {case.dataset: [c.name for c in cases if c.dataset == case.dataset] for case in cases}
    assert names["busbra"] == ["b3"]
    assert len(names["sunnybrook_cmr"]) == 2  # a fifth of ten patients
    assert set(names) == {"busbra", "sunnybrook_cmr"}  # the others have only been trained on
    assert len(load_cases(folder, "train")) == 15
    assert [case.name for case in load_cases(folder, limit=1) if case.dataset == "busbra"] == ["b3"]
    with pytest.raises(ManifestError, match="no row to score"):
        load_cases(folder, "tset")


def test_paths_below_the_folder_or_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (20, 30)).save(folder / "pictures" / "a.png")
    (folder / "manifest.csv").write_text("dataset,id,image\nx,a,pictures/a.png\n")
    (case,) = load_cases(folder)
    assert case.image == folder / "pictures" / "a.png"
    assert (case.mask, case.label, case.modality) == (None, None, None)
    assert case.query
    assert case.position_query == "Where is the lesion in this image?"
    (folder / "manifest.csv").write_text("dataset,id,image\nx,a,gone.png\n")
    with pytest.raises(ManifestError, match="neither below"):
        load_cases(folder)


@pytest.mark.parametrize("text", ["", "id,image\na,b\n", "dataset,id,image\n"])
def test_a_manifest_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ManifestError):
        load_cases(tmp_path)


@pytest.mark.parametrize(
    ("modality", "organ", "target", "phrase"),
    [
        ("US", "breast", "tumour", "breast ultrasound image"),
        ("US", "thyroid", "nodule", None),
        ("DX", "forearm", "", "bone radiograph"),
        ("DX", "chest", "opacity", None),
        ("ES", "colon", "polyp", "colonoscopy image"),
        ("MR", "heart", "left ventricle cavity", "cardiac magnetic resonance image"),
        ("CT", "lung", "", "chest computed tomography image"),
        ("OP", "eye", "vessel", None),
    ],
)
def test_kinds_of_other_data_sets(modality: str, organ: str, target: str, phrase: str | None) -> None:
    row = {"dataset": "new", "modality": modality, "organ": organ, "target": target}
    assert modality_of(row) == phrase


def test_labels_of_other_data_sets() -> None:
    assert closed_label("Malignant", "breast ultrasound image") == "malignant"
    assert closed_label("Malignant", "dermoscopy image") == "melanoma"
    assert closed_label("normal", "bone radiograph") == "no fracture"
    assert closed_label("normal", "breast ultrasound image") is None
    assert closed_label("benign", "peripheral nerve ultrasound image") is None
    assert closed_label("", None) is None


def test_sixteen_bits_palettes_and_small_mask_values(tmp_path: Path) -> None:
    class Files:
        image = tmp_path / "image.png"
        mask = tmp_path / "mask.png"

    values = np.linspace(300, 4000, 30 * 20).reshape(30, 20).astype(np.uint16)
    Image.fromarray(values).save(Files.image)
    pixels = read_image(Files())
    assert (pixels.shape, pixels.min(), pixels.max()) == ((30, 20, 3), 0, 255)
    palette = Image.fromarray(pixels).quantize(8)
    palette.save(Files.image)
    assert np.abs(read_image(Files()).astype(int) - pixels).mean() < 25
    half = np.zeros((30, 20), np.uint8)
    half[:15] = 1
    Image.fromarray(half).save(Files.mask)
    assert np.array_equal(read_mask(Files(), (30, 20)), half > 0)
    assert read_mask(Files(), (60, 40)).sum() == 4 * half.sum()
