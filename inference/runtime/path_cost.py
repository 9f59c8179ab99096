"""What several reasoning paths cost: together, sharing image and question, against one and one after another.

The goal: four paths together cost at most twice one. Sampled paths differ in length; all run to the longest.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from inference.contract import Image
from inference.runtime.generate import Sampling, generate_paths
from inference.runtime.predictors import Sim4SegPredictor

QUERY = "Is there a lesion in this image, and is it malignant?"
PATHS = 4


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
