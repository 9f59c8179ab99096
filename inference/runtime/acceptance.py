"""Which images are answered: images that show something, of the kind that the answer speaks of."""

import numpy as np

from inference.contract import Image, Prediction
from inference.errors import InputRejected, UnsuitableImage
from inference.suitability import why_another_kind, why_unsuitable


def check_pixels(image: Image) -> None:
    """Raise InputRejected unless the pixels are (H, W, 3) uint8."""
    pixels = image.pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputRejected(
            f"An image must be (H, W, 3) uint8 RGB, not {pixels.dtype} of {pixels.shape}; convert it to "
            "display values first."
        )


def reason_against(image: Image) -> str | None:
    """Why nothing can be said about an image, as a sentence; None where something can.

    Raises
    ------
    InputRejected
        If it is no image at all.
    """
    check_pixels(image)
    reason = why_unsuitable(image.pixels)
    return f"Not suitable: {reason}" if reason else None


def refuse_unsuitable(image: Image) -> None:
    """Raise UnsuitableImage for an image that nothing can be said about."""
    if reason := reason_against(image):
        raise UnsuitableImage(reason)


def refuse_another_kind(image: Image, prediction: Prediction) -> None:
    """Raise UnsuitableImage where the answer speaks of a kind of image that this cannot be."""
    if reason := why_another_kind(image.pixels, prediction.modality):
        raise UnsuitableImage(f"Not suitable: {reason}")


def unsuitable_prediction(image: Image, reason: str, grid: int) -> Prediction:
    """An empty prediction whose text is the reason."""
    nowhere = np.zeros((grid, grid), np.float32)
    return Prediction(
        mask=np.zeros(image.pixels.shape[:2], np.bool_),
        has_region=False,
        text=reason,
        reasoning="",
        diagnosis=None,
        target=None,
        modality=None,
        predicted_iou=0.0,
        similarity=nowhere,
        region=nowhere > 0,
        seconds={"total": 0.0},
    )
