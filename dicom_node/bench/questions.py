"""What the second question about an image costs: the image side is remembered, the answer is made anew."""

import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.model_process import ModelAttempt
from inference.contract import Image, Prompt

FIRST, SECOND = "Is there a lesion in this image, and is it malignant?", "Where is the lesion?"
Spared = dict[str, dict[str, float]]  # graph -> what it was spared

ENCODER = "image_encoder"
UNSEEN = 1 << 20  # seeds from here on are of questions, those below of whole jobs


@dataclass(frozen=True)
class Asked:
    """Medians over images, in milliseconds, of the image encoder's stage and of everything."""

    images: int
    first_ms: float
    second_ms: float
    key_ms: float  # mean for one question, of telling contents apart: it is part of the second, too
    first_over_second: float | None  # to second_ms + key_ms; None where no image was encoded
    whole_first_ms: float  # the same of all that the model did
    whole_second_ms: float
    encoder_runs: int  # of these twice as many questions


def measure_questions(model: ModelAttempt, image: Image, rounds: int) -> Asked:
    """Ask two questions about each of `rounds` variants of `image` that the model has not seen."""
    before, pairs = model.spared(), []
    for seed in range(UNSEEN, UNSEEN + rounds):
        fresh = Image(unlike(image.pixels, seed))
        pairs.append([model.predict(fresh, Prompt(query)).seconds for query in (FIRST, SECOND)])
    both = [pair for pair in pairs if all(ENCODER in seconds for seconds in pair)]
    first, second = (_median_ms([pair[turn] for pair in both], ENCODER) for turn in (0, 1))
    after = model.spared()
    key_ms = _key_ms(after, before) / (2 * rounds)
    return Asked(
        images=rounds,
        first_ms=first,
        second_ms=second,
        key_ms=round(key_ms, 3),
        first_over_second=round(first / (second + key_ms), 1) if both else None,
        whole_first_ms=_median_ms([pair[0] for pair in pairs], "total"),
        whole_second_ms=_median_ms([pair[1] for pair in pairs], "total"),
        encoder_runs=int(_runs(after) - _runs(before)),
    )


def sentence(asked: Asked) -> str:
    """The same for people."""
    times = "-" if asked.first_over_second is None else f"{asked.first_over_second:.0f} times"
    return (
        f"Second question about an image: encoder stage {asked.first_ms:.2f} ms to {asked.second_ms:.2f} ms, "
        f"with {asked.key_ms:.2f} ms to know the image again ({times}); all of the model "
        f"{asked.whole_first_ms:.0f} ms to {asked.whole_second_ms:.0f} ms; "
        f"{asked.encoder_runs} encoder runs for {2 * asked.images} questions."
    )


def unlike(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """`pixels` with some levels raised by one: another content of the same look, which no model has seen."""
    raised = np.random.default_rng(seed).integers(0, 2, pixels.shape[:2], np.uint8)
    brighter: NDArray[np.uint8] = np.minimum(pixels, 254) + raised.reshape(
        raised.shape + (1,) * (pixels.ndim - raised.ndim)
    )
    return brighter


def _runs(spared: Spared) -> float:
    return spared.get(ENCODER, {}).get("runs", 0)


def _key_ms(after: Spared, before: Spared) -> float:
    return 1000 * sum(after[graph]["key_s"] - before[graph]["key_s"] for graph in after)


def _median_ms(seconds: list[dict[str, float]], stage: str) -> float:
    return round(1000 * statistics.median(each[stage] for each in seconds), 3) if seconds else 0.0
