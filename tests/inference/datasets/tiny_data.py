"""A data folder with the manifest's form, made up in a test's temporary folder."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

FIELDS = (
    "split", "dataset", "id", "image", "mask", "w", "h", "modality", "organ", "label", "finding", "target",
    "patient", "licence", "extra",
)  # fmt: skip
ROWS = (
    ("train", "busbra", "b1", "benign", "p1"),
    ("train", "busbra", "b2", "malignant", "p2"),
    ("val", "busbra", "b3", "malignant", "p3"),
    ("train", "kvasirseg", "k1", "polyp", ""),
    ("train", "fracatlas", "f1", "no fracture", ""),
    ("train", "isic2017_cls", "i1", "melanoma", ""),
    *(("train", "sunnybrook_cmr", f"s{i}", "normal", f"q{i}") for i in range(10)),
)


def write(root: Path, rows: tuple[tuple[str, str, str, str, str], ...] = ROWS) -> Path:
    """Write images, masks and manifest below `root`/train; returns `root`."""
    folder = root / "train"
    folder.mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        for number, (split, dataset, name, label, patient) in enumerate(rows):
            mask = "" if dataset == "isic2017_cls" else f"train/{name}-mask.png"
            writer.writerow(
                {
                    "split": split, "dataset": dataset, "id": name, "label": label, "patient": patient,
                    "image": f"train/{name}.png", "mask": mask,
                }
            )  # fmt: skip
            _draw(folder, name, number)
    return root


def _draw(folder: Path, name: str, seed: int) -> None:
    """A bright disc on noise, 90 x 120, and its mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:90, :120]
    disc = (rows - rng.integers(30, 60)) ** 2 + (columns - rng.integers(40, 80)) ** 2 < 18**2
    pixels = rng.integers(20, 60, (90, 120, 1)) + 150 * disc[..., None]
    Image.fromarray(np.repeat(pixels.astype(np.uint8), 3, axis=2)).save(folder / f"{name}.png")
    Image.fromarray((disc * 255).astype(np.uint8)).save(folder / f"{name}-mask.png")
