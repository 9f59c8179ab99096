"""Whether a faster engine says what the plain one says - embeddings, masks, words - or is refused."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference.contract import Image, Prediction, Prompt
from inference.errors import UnsuitableImage
from inference.metrics import iou
from inference.runtime.gate_report import GateReport
from inference.runtime.packaged import PackagedPredictor


def compare(
    candidate: PackagedPredictor, plain: PackagedPredictor, images: Sequence[Image], prompt: Prompt
) -> GateReport:
    """Set `candidate` beside `plain` on every image.

    Raises
    ------
    OutputInvalid, DeviceOutOfMemory
        If the candidate cannot answer at all.
    """
    cosines, ious, texts = [], [], []
    for image in images:
        cosines.append(_cosine(_embedding(candidate, image), _embedding(plain, image)))
        ours, theirs = _answer(candidate, image, prompt), _answer(plain, image, prompt)
        ious.append(_iou(ours, theirs))
        texts.append(_words(ours) == _words(theirs))
    known = [cosine for cosine in cosines if cosine is not None]
    return GateReport(
        images=len(images),
        embedding_cosine=min(known) if known else None,
        mask_iou=min(ious),
        is_text_same=all(texts),
    )


def _embedding(predictor: PackagedPredictor, image: Image) -> NDArray[np.float64] | None:
    encoder = predictor.image_encoder
    if encoder is None:
        return None
    _, pixels = predictor.fit(image)
    return encoder.run({"pixels": pixels})["image_embedding"].reshape(-1).astype(np.float64)


def _cosine(ours: NDArray[np.float64] | None, theirs: NDArray[np.float64] | None) -> float | None:
    """NaN where either is, which no gate lets pass."""
    if ours is None or theirs is None:
        return None
    return float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


def _answer(predictor: PackagedPredictor, image: Image, prompt: Prompt) -> Prediction | str:
    try:
        return predictor.predict(image, prompt)
    except UnsuitableImage as error:  # an answer too, and one to be equal
        return str(error)


def _iou(ours: Prediction | str, theirs: Prediction | str) -> float:
    if isinstance(ours, str) or isinstance(theirs, str):
        return float(isinstance(ours, str) == isinstance(theirs, str))
    return iou(ours.mask, theirs.mask)


def _words(answer: Prediction | str) -> str:
    return answer if isinstance(answer, str) else answer.text
