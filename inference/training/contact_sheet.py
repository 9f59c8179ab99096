"""A sheet to look at: validation images with the mask drawn, the true outline, diagnosis and text.

    python -m inference.training.contact_sheet --data ../shared/data/train --package sim4seg-s --out sheet.png

`--worst` takes the images with the lowest Dice of each data set, not the first by the hash of their names.
The images are the data sets': the sheet stays where it was made, and is no part of this repository. With
`--outlines` it has no pixel of them, only both outlines and the words: a picture for a model card.
"""

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from inference import metrics
from inference.contract import Image, Prediction
from inference.datasets.folder import Case, load_cases
from inference.datasets.frames import read_image, read_mask
from inference.errors import InputRejected
from inference.runtime.model_repository import open_package
from inference.settings import PACKAGES
from inference.training.evaluate import Job, open_asked, plain

TILE, WORDS = 300, 150  # pixels: side of an image, height of what is written below it
COLUMNS, LETTERS = 8, 48  # tiles a row; letters a line
OURS, TRUE = (255, 140, 0), (0, 200, 83)
INK, PAPER = (20, 20, 20), (255, 255, 255)
BLANK = 226  # grey level that stands for an image whose pixels are not shown
HEAD = "Research use only. Orange: the model's mask. Green: the true outline."
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Entry:
    """One image of the sheet."""

    case: Case
    pixels: NDArray[np.uint8]  # (H, W, 3)
    truth: Mask | None
    prediction: Prediction | None  # None: refused
    words: str

    @property
    def dice(self) -> float | None:
        """Against the true mask, where there is one."""
        if self.truth is None or not self.truth.any():
            return None
        return metrics.dice(self.drawn, self.truth)

    def without_pixels(self) -> "Entry":
        """The same with a blank image of the same size."""
        return replace(self, pixels=np.full_like(self.pixels, BLANK))

    @property
    def drawn(self) -> Mask:
        """The model's mask; nothing where it refused."""
        return np.zeros(self.pixels.shape[:2], bool) if self.prediction is None else self.prediction.mask


def pick(cases: Sequence[Case], count: int) -> list[Case]:
    """By turns one of each data set, in the order they come in."""
    names = dict.fromkeys(case.dataset for case in cases)
    rows = zip_longest(*([case for case in cases if case.dataset == name] for name in names))
    return [case for case in chain.from_iterable(rows) if case is not None][:count]


def worst(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Those with the lowest Dice, by turns one of each data set, in the order of the data sets' names."""
    scored = [entry for entry in entries if entry.dice is not None]
    ranked = sorted(scored, key=lambda entry: (entry.case.dataset, entry.dice))
    by_case = {entry.case: entry for entry in ranked}
    return [by_case[case] for case in pick(list(by_case), count)]


def look(package: Path, cases: Sequence[Case]) -> Iterator[Entry]:
    """Ask the model about every image."""
    predictor, is_positional = open_asked(Job(package, None))
    ask = plain(predictor, is_positional=is_positional)
    for case in cases:
        pixels = read_image(case)
        truth = read_mask(case, (pixels.shape[0], pixels.shape[1]))
        try:
            prediction = ask(case, Image(pixels))
        except InputRejected as error:
            yield Entry(case, pixels, truth, None, str(error))
        else:
            yield Entry(case, pixels, truth, prediction, prediction.text)


def sheet(entries: Sequence[Entry], title: str, columns: int = COLUMNS) -> Picture.Image:
    """All entries, `columns` a row."""
    rows = -(-len(entries) // columns)
    font = ImageFont.load_default(12)
    whole = Picture.new("RGB", (columns * TILE, 30 + rows * (TILE + WORDS)), PAPER)
    ImageDraw.Draw(whole).text((6, 8), f"{title}. {HEAD}", INK, font)
    for i, entry in enumerate(entries):
        corner = (i % columns * TILE, 30 + i // columns * (TILE + WORDS))
        whole.paste(_tile(entry), corner)
        ImageDraw.Draw(whole).multiline_text((corner[0] + 4, corner[1] + TILE), _caption(entry), INK, font)
    return whole


def _tile(entry: Entry) -> Picture.Image:
    scale = (TILE - 4) / max(entry.pixels.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in entry.pixels.shape[1::-1])
    shown = np.array(Picture.fromarray(entry.pixels).resize(size, Picture.Resampling.LANCZOS))
    for mask, colour in ((entry.truth, TRUE), (entry.drawn, OURS)):
        if mask is not None and mask.any():
            shown[_outline(np.array(Picture.fromarray(mask).resize(size)))] = colour
    return Picture.fromarray(shown)


def _outline(mask: Mask) -> Mask:
    """The pixels of `mask` that have a neighbour outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _caption(entry: Entry) -> str:
    dice = "no outline known" if entry.dice is None else f"Dice {entry.dice:.2f}"
    said = entry.prediction.diagnosis if entry.prediction else None
    diagnosis = f"{said.label} ({said.confidence:.2f})" if said else "no diagnosis"
    head = f"{entry.case.dataset}: {dice}\nsays {diagnosis}; true: {entry.case.told_label or '-'}\n"
    return head + "\n".join(textwrap.wrap(entry.words, LETTERS)[:7])


def main() -> None:
    """Make the sheet of one package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--package", default="sim4seg-s", help="name of a shipped package, or a folder")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--columns", type=int, default=COLUMNS, help="images a row")
    parser.add_argument("--worst", action="store_true", help="of each data set, the lowest Dice")
    parser.add_argument("--outlines", action="store_true", help="no pixel of the images")
    options = parser.parse_args()
    package = PACKAGES / options.package if (PACKAGES / options.package).is_dir() else Path(options.package)
    cases = load_cases(options.data)
    entries = list(look(package, cases if options.worst else pick(cases, options.count)))
    if options.worst:
        entries = worst(entries, options.count)
    if options.outlines:
        entries = [entry.without_pixels() for entry in entries]
    version = open_package(package.parent, package.name).manifest.model.version
    sheet(entries, f"{package.name} {version}", options.columns).save(options.out, optimize=True)
    print(f"{len(entries)} images are in {options.out}")


if __name__ == "__main__":
    main()
