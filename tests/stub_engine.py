"""A deterministic predictor without weights: outlines the darkest part and always gives the same answer.

For tests of the node only. Where another process must open a model package by name, write one with
`tests.inference.runtime.tiny_package` instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from inference import prompts
from inference.contract import Diagnosis, Image, Prediction, Prompt

GRID = 16
CONFIDENCE = 0.875


@dataclass
class StubPredictor:
    """Says `diagnosis` about everything; a flat image has nothing to outline. `asked` keeps the queries."""

    name: str = "stub"
    version: str = "0.0.1"
    digest: str = "5b" * 32
    diagnosis: str | None = "benign"
    modality: str = "breast ultrasound image"
    asked: list[str] = field(default_factory=list)

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """The darkest quarter of the grey range, if there is a range."""
        self.asked.append(prompt.query)
        grey = image.pixels.mean(axis=2)
        darkest, brightest = grey.min(), grey.max()
        mask = grey < darkest + (brightest - darkest) / 4
        text = self._answer(mask).strip()
        parsed = prompts.parse_answer(text)
        region = _region(mask)
        return Prediction(
            mask=mask,
            has_region=parsed.has_region,
            text=text,
            reasoning=parsed.reasoning,
            diagnosis=self._diagnosis(),
            target=parsed.target,
            modality=parsed.modality,
            predicted_iou=0.75 if parsed.has_region else 0.0,
            similarity=region.astype(np.float32),
            region=region,
            seconds={"total": 0.0},
            is_well_formed=parsed.is_well_formed,
        )

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """Each image for itself; whole answers even with `like`, since they cost nothing here."""
        del like
        return [self.predict(image, prompt) for image in images]

    def _answer(self, mask: np.ndarray) -> str:
        if not mask.any():
            return prompts.write_empty_answer(self.modality, self.diagnosis)
        return prompts.write_answer(
            prompts.Findings(
                modality=self.modality,
                zone="centre",
                area_percent=round(100 * float(mask.mean())),
                shape="oval",
                orientation="wider than tall",
                margin="smooth",
                brightness="darker than",
                texture="homogeneous",
                diagnosis=self.diagnosis,
            )
        )

    def _diagnosis(self) -> Diagnosis | None:
        if self.diagnosis is None:
            return None
        others = [label for label in prompts.DIAGNOSES if label != self.diagnosis]
        rest = (1 - CONFIDENCE) / len(others)
        return Diagnosis(self.diagnosis, CONFIDENCE, tuple((label, rest) for label in others))


def _region(mask: np.ndarray) -> np.ndarray:
    """(16, 16) bool: the cells of the padded square whose centre is in `mask` (H, W)."""
    side = max(mask.shape)
    square = np.zeros((side, side), bool)
    square[: mask.shape[0], : mask.shape[1]] = mask
    centres = ((np.arange(GRID) + 0.5) * side / GRID).astype(int)
    return square[np.ix_(centres, centres)]
