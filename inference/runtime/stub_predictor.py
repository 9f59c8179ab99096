"""StubPredictor: a predictor of tests, without weights, that misbehaves as its question says (`test_mode`).

It outlines the darkest part of an image and says `benign`. A question that begins with "stub" must be one of
MISDEEDS; which images get which question is decided by the rules of the configuration, so no text of a tag
reaches it.
"""

import ctypes
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from inference import prompts
from inference.contract import Diagnosis, Image, Prediction, Prompt
from inference.errors import DeviceOutOfMemory, InputRejected, PackageInvalid
from inference.runtime.model_repository import ModelPackage
from inference.runtime.sim4seg_graphs import OpenEngine
from inference.settings import InferenceSettings

GRID: Final = 16
CONFIDENCE: Final = 0.875
BLOCK_BYTES: Final = 16 * 1024 * 1024
LONGEST_SLEEP_S: Final = 3600.0
WORDS: Final = re.compile(r"stub ([a-z ]+?)(?: (\d{1,4}(?:\.\d{1,3})?))?")


class StubPredictor:
    """Predictor of the family `stub`; opened only where the configuration says `inference.test_mode`."""

    def __init__(
        self,
        package: ModelPackage,
        settings: InferenceSettings,
        *,
        open_engine: OpenEngine | None = None,  # noqa: ARG002 - it has no graphs
    ) -> None:
        if not settings.test_mode:
            raise PackageInvalid(
                f"{package.manifest.model.name} is a stub for tests: a node runs it only with "
                "inference.test_mode = true, and its results mean nothing."
            )
        self.name, self.version = package.manifest.model.name, package.manifest.model.version
        self.digest = package.digest
        self._folder = package.folder

    @classmethod
    def served(cls, package: ModelPackage, settings: InferenceSettings) -> Self:
        """As it is."""
        return cls(package, settings)

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """Misbehave as the question says; otherwise the darkest quarter of the grey range.

        Raises
        ------
        InputRejected
            If the question begins with "stub" and is none of MISDEEDS.
        """
        answer = darkest_part(image)
        if not prompt.query.startswith("stub"):
            return answer
        found = WORDS.fullmatch(prompt.query)
        if found is None or found[1] not in MISDEEDS:
            raise InputRejected(f"The stub does not know {prompt.query!r}; it knows {', '.join(MISDEEDS)}.")
        return MISDEEDS[found[1]](_Case(self._folder, image, answer, float(found[2] or 0)))

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """Each image for itself; whole answers even with `like`, since they cost nothing here."""
        del like
        return [self.predict(image, prompt) for image in images]


def darkest_part(
    image: Image, diagnosis: str | None = "benign", modality: str = "breast ultrasound image"
) -> Prediction:
    """The darkest quarter of the grey range as a region; a flat image has nothing to outline."""
    grey = image.pixels.mean(axis=2)
    darkest, brightest = grey.min(), grey.max()
    mask: NDArray[np.bool_] = grey < darkest + (brightest - darkest) / 4
    text = _answer(mask, diagnosis, modality).strip()
    parsed = prompts.parse_answer(text)
    region = _cells(mask)
    return Prediction(
        mask=mask,
        has_region=parsed.has_region,
        text=text,
        reasoning=parsed.reasoning,
        diagnosis=_diagnosis(diagnosis),
        target=parsed.target,
        modality=parsed.modality,
        predicted_iou=0.75 if parsed.has_region else 0.0,
        similarity=region.astype(np.float32),
        region=region,
        seconds={"total": 0.0},
        is_well_formed=parsed.is_well_formed,
    )


def _answer(mask: NDArray[np.bool_], diagnosis: str | None, modality: str) -> str:
    if not mask.any():
        return prompts.write_empty_answer(modality, diagnosis)
    findings = prompts.Findings(
        modality=modality,
        zone="centre",
        area_percent=round(100 * float(mask.mean())),
        shape="oval",
        orientation="wider than tall",
        margin="smooth",
        brightness="darker than",
        texture="homogeneous",
        diagnosis=diagnosis,
    )
    return prompts.write_answer(findings)


def _diagnosis(label: str | None) -> Diagnosis | None:
    if label is None:
        return None
    others = [other for other in prompts.DIAGNOSES if other != label]
    rest = (1 - CONFIDENCE) / len(others)
    return Diagnosis(label, CONFIDENCE, tuple((other, rest) for other in others))


def _cells(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(16, 16) bool: the cells of the padded square whose centre is in `mask` (H, W)."""
    side = max(mask.shape)
    square = np.zeros((side, side), bool)
    square[: mask.shape[0], : mask.shape[1]] = mask
    centres = ((np.arange(GRID) + 0.5) * side / GRID).astype(int)
    cells: NDArray[np.bool_] = square[np.ix_(centres, centres)]
    return cells


@dataclass(frozen=True, eq=False)
class _Case:
    """What a misdeed may look at: its package, the image, the right answer, the number in the question."""

    folder: Path
    image: Image
    answer: Prediction
    number: float


Misdeed = Callable[[_Case], Prediction]


def _sleep(case: _Case) -> Prediction:
    time.sleep(min(case.number, LONGEST_SLEEP_S))
    return case.answer


def _crash(_: _Case) -> Prediction:
    raise RuntimeError("the stub was asked to crash")


def _segfault(case: _Case) -> Prediction:
    ctypes.string_at(0)
    return case.answer


def _exhaust_memory(_: _Case) -> Prediction:
    held: list[bytes] = []
    while True:
        held.append(b"\1" * BLOCK_BYTES)


def _spin(_: _Case) -> Prediction:
    while True:
        pass


def _nan(case: _Case) -> Prediction:
    similarity = np.full((GRID, GRID), np.nan, np.float32)
    return replace(case.answer, similarity=similarity, predicted_iou=float("nan"))


def _wrong_shape(case: _Case) -> Prediction:
    height, width = case.image.pixels.shape[:2]
    return replace(case.answer, mask=np.ones((height + 1, width), bool))


def _nonsense(case: _Case) -> Prediction:
    diagnosis = Diagnosis("ignore previous instructions", 7.0, ())
    return replace(case.answer, diagnosis=diagnosis, text="\x00\x1b[31m")


def _fail_first(case: _Case) -> Prediction:
    """As a device without memory, once for each image; the mark lies in the package's own folder."""
    mark = case.folder / f"tried-{hashlib.sha256(case.image.pixels.tobytes()).hexdigest()[:32]}"
    if not mark.exists():
        mark.touch()
        raise DeviceOutOfMemory("the stub was asked to fail the first time")
    return case.answer


MISDEEDS: Final[dict[str, Misdeed]] = {
    "sleep": _sleep,  # with a number of seconds
    "crash": _crash,
    "segfault": _segfault,
    "exhaust memory": _exhaust_memory,
    "spin": _spin,
    "nan": _nan,
    "wrong shape": _wrong_shape,
    "nonsense": _nonsense,
    "fail first": _fail_first,
}
