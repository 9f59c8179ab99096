"""What several reasoning paths cost: together, sharing image and question, against one and one after another.

    python -m inference.training.path_bench --package sim4seg-s --paths 4 --repeats 5

The goal: four paths together cost at most twice one. Sampled paths differ in length; all run to the longest.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from inference.contract import Image
from inference.runtime import open_predictor
from inference.runtime.benchmark import QUERY, speckle_image
from inference.runtime.generate import Sampling, generate_paths
from inference.runtime.predictors import Sim4SegPredictor
from inference.settings import PACKAGES, InferenceSettings


def seconds_of(predictor: Sim4SegPredictor, image: Image, samplings: list[Sampling | None]) -> float:
    """Wall seconds of answering on these paths together."""
    _, pixels = predictor.fit(image)
    question = predictor.conversation.question_ids(QUERY)
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


def measure(predictor: Sim4SegPredictor, paths: int, repeats: int) -> dict[str, float]:
    """Median seconds of one greedy path, of `paths` together, and of `paths` one after another."""
    image = speckle_image()
    several: list[Sampling | None] = [None, *(Sampling(seed=seed) for seed in range(1, paths))]
    one = statistics.median(seconds_of(predictor, image, [None]) for _ in range(repeats))
    together = statistics.median(seconds_of(predictor, image, several) for _ in range(repeats))
    apart = statistics.median(
        sum(seconds_of(predictor, image, [sampling]) for sampling in several) for _ in range(repeats)
    )
    return {
        "paths": paths,
        "one_s": one,
        "together_s": together,
        "apart_s": apart,
        "together_over_one": together / one,
        "apart_over_together": apart / together,
    }


def main() -> None:
    """Measure; one line for people, one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", default="sim4seg-s")
    parser.add_argument("--repository", type=Path, default=PACKAGES)
    parser.add_argument("--paths", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    predictor = open_predictor(options.package, InferenceSettings(model_repository=options.repository))
    if not isinstance(predictor, Sim4SegPredictor):
        parser.error(f"{options.package} does not reason in paths")
    found = measure(predictor, options.paths, options.repeats)
    times = {name: 1000 * found[name] for name in ("one_s", "together_s", "apart_s")}
    print(
        f"1 path {times['one_s']:.0f} ms, {options.paths} together {times['together_s']:.0f} ms "
        f"({found['together_over_one']:.2f}x), one after another {times['apart_s']:.0f} ms"
    )
    print(json.dumps({"benchmark": "paths", **found}))


if __name__ == "__main__":
    main()
