"""Scores against counts done by hand."""

import numpy as np
import pytest

from inference import metrics

EMPTY = np.zeros((4, 4), np.bool_)
LEFT, TOP = EMPTY.copy(), EMPTY.copy()
LEFT[:, :2] = True
TOP[:2] = True


def test_overlap_by_hand() -> None:
    assert metrics.dice(LEFT, TOP) == pytest.approx(0.5)
    assert metrics.iou(LEFT, TOP) == pytest.approx(4 / 12)
    assert metrics.dice(LEFT, LEFT) == metrics.iou(LEFT, LEFT) == 1
    assert metrics.dice(LEFT, EMPTY) == metrics.iou(LEFT, EMPTY) == 0


def test_empty_and_empty_is_right() -> None:
    assert metrics.dice(EMPTY, EMPTY) == metrics.iou(EMPTY, EMPTY) == metrics.ciou([(EMPTY, EMPTY)]) == 1


def test_giou_is_a_mean_and_ciou_a_quotient_of_sums() -> None:
    pairs = [(LEFT, TOP), (EMPTY, EMPTY), (EMPTY, TOP)]
    assert metrics.giou(pairs) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert metrics.ciou(pairs) == pytest.approx(4 / 20)


def test_balanced_accuracy_weighs_classes_alike() -> None:
    truth = ["a"] * 8 + ["b"] * 2
    assert metrics.balanced_accuracy(["a"] * 10, truth) == 0.5
    assert metrics.majority_accuracy(truth) == 0.8
    assert metrics.balanced_accuracy([*["a"] * 8, "b", None], truth) == 0.75


def test_bootstrap_covers_the_mean_and_is_the_same_twice() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 200)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    first = metrics.bootstrap(200, mean)
    assert first == metrics.bootstrap(200, mean)
    assert first.low < first.mean < first.high
    assert first.high - first.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.2)
