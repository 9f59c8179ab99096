"""Dice, gIoU, cIoU, balanced accuracy, bootstrap intervals. Each one a pure function with its reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A mean (or other statistic) with its bootstrap interval."""

    mean: float
    low: float
    high: float


def dice(predicted: Mask, truth: Mask) -> float:
    """2 |A and B| / (|A| + |B|), 1 where both are empty (Dice 1945)."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else 1.0


def iou(predicted: Mask, truth: Mask) -> float:
    """|A and B| / |A or B|, 1 where both are empty (Jaccard 1901)."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def giou(pairs: Sequence[tuple[Mask, Mask]]) -> float:
    """Mean over images of IoU. LISA's and Sim4Seg's gIoU; not the box measure of the same name."""
    return float(np.mean([iou(predicted, truth) for predicted, truth in pairs]))


def ciou(pairs: Sequence[tuple[Mask, Mask]]) -> float:
    """Sum of intersections over sum of unions (LISA), 1 where nothing is marked anywhere."""
    overlap = sum(int((predicted & truth).sum()) for predicted, truth in pairs)
    union = sum(int((predicted | truth).sum()) for predicted, truth in pairs)
    return overlap / union if union else 1.0


def balanced_accuracy(predicted: Sequence[str | None], truth: Sequence[str]) -> float:
    """Mean over the true classes of their recall (Brodersen et al. 2010); no answer counts as wrong."""
    recalls = [
        np.mean([given == label for given, actual in zip(predicted, truth, strict=True) if actual == label])
        for label in sorted(set(truth))
    ]
    return float(np.mean(recalls))


def majority_accuracy(truth: Sequence[str]) -> float:
    """Plain accuracy of always answering the commonest class; its balanced accuracy is 1 / classes."""
    return max(truth.count(label) for label in set(truth)) / len(truth)


def bootstrap(
    count: int,
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    rounds: int = 1000,
    share: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic` over `count` cases drawn with replacement (Efron 1979).

    `statistic` takes the drawn indices (count,) and must bear any draw.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(rounds)]
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    return Interval(statistic(np.arange(count)), float(low), float(high))
