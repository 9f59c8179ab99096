"""The words both sides speak: Image, Prompt, Prediction, Predictor; shapes, dtypes, ranges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Image:
    """One frame as a person would see it.

    `pixels` is (H, W, 3) uint8, RGB, display values 0..255 (modality look-up and window already applied).
    """

    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Prompt:
    """The clinical question asked of the image, never text from DICOM attributes; and an earlier report.

    `report` is for models that can read one (MedSeg-R), which take from it only the closed vocabulary of
    `inference.reports`; the others leave it alone.
    """

    query: str
    report: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The label the answer names, its probability, and what else was possible.

    `confidence` is 0..1: the softmax restricted to the first tokens of the closed labels, at the place
    where the answer names the diagnosis. `alternatives` are the other (label, probability) pairs, likeliest
    first; with `confidence` they sum to 1. A softmax is not a calibrated probability of disease.
    """

    label: str
    confidence: float
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a predictor says about one image."""

    mask: NDArray[np.bool_]  # (H, W) at source resolution; all False when there is no region
    has_region: bool  # the model emitted [SEG]; its mask may still be empty
    text: str  # the whole answer
    reasoning: str  # the sentences between the first and the last; "" when the answer was cut short
    diagnosis: Diagnosis | None  # None where no disease was asked, or none of the closed labels was said
    target: str | None  # what the mask outlines, e.g. "breast lesion"
    modality: str | None  # e.g. "breast ultrasound image"
    predicted_iou: float  # the mask decoder's own estimate, 0..1 nominally; 0 without a region
    similarity: NDArray[np.float32]  # (16, 16) cells of the padded square, 0..1; 0 without a region
    region: NDArray[np.bool_]  # (16, 16) the cells given to the mask decoder as its prompt
    seconds: dict[str, float]  # wall time per stage, and "total"
    is_well_formed: bool = True  # the answer has every sentence the closed wording asks for


class Predictor(Protocol):
    """Engines wired so that image and prompt give a prediction."""

    @property
    def name(self) -> str:
        """The model's name, e.g. "sim4seg-s"."""
        ...

    @property
    def version(self) -> str:
        """The model package's version, e.g. "0.1.0"."""
        ...

    @property
    def digest(self) -> str:
        """sha256 (64 hexadecimal digits) over the hashes of the package's files."""
        ...

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """Answer `prompt` about one image, and outline what the answer speaks of.

        Raises
        ------
        InputRejected
            If image or prompt cannot be answered; trying again will not help.
        OutputInvalid
            If an engine gave numbers that cannot be right (NaN, wrong shape).
        """
        ...

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """One prediction per image of a series, in order; each image is looked at for itself.

        With `like` (the prediction of the key frame) the answers end at [SEG]: mask, similarity and region
        are those of `predict`; reasoning, diagnosis, target and modality are told by the key frame only.
        """
        ...
