"""What several answers cost together, against one and one after another.

Reasoning paths of one question share image and question; the goal: four together cost at most twice one.
Sampled paths differ in length; all run to the longest. Questions about several images share steps of the
language model alone, and the cores.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from inference.contract import Image, Predictor, Prompt
from inference.runtime.generate import Sampling, generate_paths
from inference.runtime.predictors import Sim4SegPredictor

QUERY = "Is there a lesion in this image, and is it malignant?"
PATHS = 4
IMAGES = 4


@dataclass(frozen=True)
class PathCost:
    """Median seconds of one greedy path, of `paths` together, and of `paths` one after another."""

    paths: int
    one_s: float
    together_s: float
    apart_s: float
    together_over_one: float
    apart_over_together: float


def measure_paths(
    predictor: Sim4SegPredictor, image: Image, repeats: int, paths: int = PATHS, query: str = QUERY
) -> PathCost:
    """Answer in all three ways, by turns."""
    several: list[Sampling | None] = [None, *(Sampling(seed=seed) for seed in range(1, paths))]
    one, together, apart = [], [], []
    for _ in range(max(1, repeats)):
        one.append(_seconds(predictor, image, query, several[:1]))
        together.append(_seconds(predictor, image, query, several))
        apart.append(sum(_seconds(predictor, image, query, [sampling]) for sampling in several))
    one_s, together_s, apart_s = (statistics.median(each) for each in (one, together, apart))
    return PathCost(paths, one_s, together_s, apart_s, together_s / one_s, apart_s / together_s)


def _seconds(
    predictor: Sim4SegPredictor, image: Image, query: str, samplings: Sequence[Sampling | None]
) -> float:
    """Wall seconds of answering on these paths together."""
    _, pixels = predictor.fit(image)
    question = predictor.conversation.question_ids(query)
    started = time.perf_counter()
    generate_paths(
        predictor.engines.language_prefill,
        predictor.engines.language_step,
        {"pixels": pixels, "text_ids": question},
        rules=predictor.rules(max_new_tokens=predictor.max_new_tokens, is_stopped_at_seg=False),
        clock=time.perf_counter,
        samplings=samplings,
    )
    return time.perf_counter() - started


@dataclass(frozen=True)
class ImageCost:
    """Median seconds of questions about `images` images, side by side and one after another."""

    images: int
    together_s: float
    apart_s: float
    apart_over_together: float


def measure_images(
    predictor: Predictor, image: Image, repeats: int, images: int = IMAGES, query: str = QUERY
) -> ImageCost:
    """Ask about `images` images that nothing is remembered of, in both ways, by turns."""
    prompt = Prompt(query)

    def answer(asked: Image) -> None:
        predictor.predict(asked, prompt)

    def together(asked: Sequence[Image]) -> None:
        with ThreadPoolExecutor(images) as pool:
            list(pool.map(answer, asked))

    def apart(asked: Sequence[Image]) -> None:
        for each in asked:
            answer(each)

    seconds: dict[Callable[[Sequence[Image]], None], list[float]] = {together: [], apart: []}
    for turn in range(max(1, repeats)):
        for way, (measure, taken) in enumerate(seconds.items()):
            asked = [_moved(image, 1 + (2 * turn + way) * images + each) for each in range(images)]
            started = time.perf_counter()
            measure(asked)
            taken.append(time.perf_counter() - started)
    both = statistics.median(seconds[together]), statistics.median(seconds[apart])
    return ImageCost(images, *both, both[1] / both[0])


def _moved(image: Image, columns: int) -> Image:
    """The same moved aside by some columns: another content, as hard as it was."""
    return Image(np.ascontiguousarray(np.roll(image.pixels, columns, axis=1)))
