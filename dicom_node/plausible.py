"""Refuses predictions that cannot be meant: wrong shapes, numbers that are none, words outside the wording.

Nothing of such a prediction is published: the job ends FAILED with OUTPUT_INVALID and what was wrong.
"""

import math
from typing import Any, Final

import numpy as np

from inference.contract import Diagnosis, Image, Prediction
from inference.errors import OutputInvalid
from inference.prompts import DIAGNOSES, TARGETS

CODE: Final = "OUTPUT_INVALID"
MAX_TEXT: Final = 20_000  # characters
MAX_CELLS: Final = 256 * 256
TOLERANCE: Final = 1e-3  # of probabilities that should sum to 1


def require_plausible(prediction: Prediction, image: Image) -> Prediction:
    """Give the prediction back if it can be meant about `image`.

    Raises
    ------
    OutputInvalid
    """
    for problem in (
        _mask_problem(prediction, image),
        _cells_problem(prediction),
        _number_problem(prediction),
        _text_problem(prediction),
        _diagnosis_problem(prediction.diagnosis),
    ):
        if problem:
            raise OutputInvalid(f"{CODE}: {problem}; nothing was published.")
    return prediction


def _mask_problem(prediction: Prediction, image: Image) -> str:
    mask, expected = prediction.mask, image.pixels.shape[:2]
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        return "the mask is not of booleans"
    if mask.shape != expected:
        return f"the mask is {_size(mask)}, the image {expected[0]} x {expected[1]}"
    return "" if prediction.has_region or not mask.any() else "there is a mask without a region"


def _cells_problem(prediction: Prediction) -> str:
    similarity, region = prediction.similarity, prediction.region
    for cells in (similarity, region):
        if not isinstance(cells, np.ndarray) or cells.ndim != 2 or not 0 < cells.size <= MAX_CELLS:
            return "similarity or region is no grid of cells"
    if similarity.shape != region.shape or region.dtype != np.bool_ or similarity.dtype.kind != "f":
        return "similarity and region are not the same grid"
    if not np.isfinite(similarity).all() or similarity.min() < -TOLERANCE or similarity.max() > 1 + TOLERANCE:
        return "similarity is not between 0 and 1"
    return ""


def _number_problem(prediction: Prediction) -> str:
    if not _is_number(prediction.predicted_iou) or abs(prediction.predicted_iou) > 10:
        return "the predicted overlap is no number between 0 and 1"
    return "" if all(map(_is_number, prediction.seconds.values())) else "a time is no number"


def _text_problem(prediction: Prediction) -> str:
    for text in (prediction.text, prediction.reasoning):
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            return "the answer is no text of a length that is read"
        if not all(each.isprintable() or each == "\n" for each in text):
            return "the answer holds control characters"
    if prediction.target is not None and prediction.target not in TARGETS.values():
        return "the target is none that the wording knows"
    if prediction.modality is not None and prediction.modality not in TARGETS:
        return "the modality is none that the wording knows"
    return ""


def _diagnosis_problem(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return ""
    named = ((diagnosis.label, diagnosis.confidence), *diagnosis.alternatives)
    if any(label not in DIAGNOSES for label, _ in named):
        return "the diagnosis is none that the wording knows"
    if any(not _is_number(share) or not -TOLERANCE <= share <= 1 + TOLERANCE for _, share in named):
        return "a probability is not between 0 and 1"
    if sum(share for _, share in named) > 1 + TOLERANCE * len(named):
        return "the probabilities sum to more than 1"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and math.isfinite(value)


def _size(array: "np.ndarray[Any, Any]") -> str:
    return " x ".join(map(str, array.shape))
