"""What one image adds to a report, and what the scores of many say: tables of means with intervals."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference import metrics
from inference.contract import Prediction
from inference.datasets.folder import Case
from inference.positions import parse_position
from inference.prompts import parse_answer
from inference.zones import centroid_of, zone_of, zone_of_mask

Mask = NDArray[np.bool_]
POSITIVE = ("malignant", "fracture", "melanoma")  # of two labels, the one whose probability AUC ranks
ABSENT_LABELS = frozenset({"no fracture"})
BINS = 15  # of the calibration error (Guo et al. 2017)
FLOATS = ("dice", "giou")


@dataclass(frozen=True, eq=False)
class Score:
    """What one image adds to the report."""

    dataset: str
    patient: str
    has_mask: bool  # the truth of the mask is known
    is_absent: bool  # and there is nothing to outline
    has_region: bool  # something was outlined
    dice: float
    iou: float
    overlap: int  # pixels
    union: int  # pixels
    hd95: float | None  # pixels; None where one of the two masks is empty
    truth: str | None
    diagnosis: str | None
    confidence: float
    chances: dict[str, float]  # of every closed label
    is_well_formed: bool
    zone_in_text: str | None
    zone_of_truth: str | None
    zone_of_mask: str | None
    refusal: str  # why the predictor would not answer; "" where it did
    seconds: float


@dataclass(frozen=True)
class ZoneRule:
    """How a family says places: what its text names, and what a mask would be called."""

    said: Callable[[str], str | None]
    of_mask: Callable[[Mask], str | None]


def _centroid_zone(mask: Mask) -> str | None:
    centre = centroid_of(mask)
    return None if centre is None else zone_of(*centre)


def _said_position(text: str) -> str | None:
    zones = parse_position(text).zones
    return zones[0] if len(zones) == 1 else None


NINE_ZONES = ZoneRule(lambda text: parse_answer(text).zone, _centroid_zone)  # Sim4Seg's wording
FIVE_ZONES = ZoneRule(_said_position, zone_of_mask)  # PRS-Med's


def score_prediction(case: Case, prediction: Prediction, truth: Mask, zones: ZoneRule) -> Score:
    """Compare; `truth` (H, W) is all False where it is not known, which `case.mask` tells."""
    mask, said = prediction.mask, zones.said(prediction.text)
    given = prediction.diagnosis
    return Score(
        dataset=case.dataset,
        patient=case.patient,
        has_mask=case.mask is not None,
        is_absent=(case.mask is not None and not truth.any()) or case.label in ABSENT_LABELS,
        has_region=prediction.has_region and bool(mask.any()),
        dice=metrics.dice(mask, truth),
        iou=metrics.iou(mask, truth),
        overlap=int((mask & truth).sum()),
        union=int((mask | truth).sum()),
        hd95=hd95(mask, truth),
        truth=case.label,
        diagnosis=given.label if given else None,
        confidence=given.confidence if given else 0.0,
        chances={given.label: given.confidence, **dict(given.alternatives)} if given else {},
        is_well_formed=prediction.is_well_formed,
        zone_in_text=said,
        zone_of_truth=zones.of_mask(truth) if case.mask is not None else None,
        zone_of_mask=zones.of_mask(mask),
        refusal="",
        seconds=prediction.seconds.get("total", 0.0),
    )


def hd95(predicted: Mask, truth: Mask) -> float | None:
    """95th percentile of the distances between the outlines, the larger of the two directions, pixels.

    None where one of them is empty, for then there is no distance (as MONAI's HausdorffDistanceMetric).
    """
    if not predicted.any() or not truth.any():
        return None
    ours, theirs = (mask & ~ndimage.binary_erosion(mask) for mask in (predicted, truth))
    to_theirs = ndimage.distance_transform_edt(~theirs)[ours]
    to_ours = ndimage.distance_transform_edt(~ours)[theirs]
    return float(max(np.percentile(to_theirs, 95), np.percentile(to_ours, 95)))


def summarise(scores: Sequence[Score], *, names_zones: bool) -> dict[str, Any]:
    """The report of one data set, or of all; `names_zones`: it is of a model whose words name places."""
    report: dict[str, Any] = {
        "images": len(scores),
        "refused": sum(bool(score.refusal) for score in scores),
        "well_formed_rate": float(np.mean([score.is_well_formed for score in scores])),
        "region_rate": float(np.mean([score.has_region for score in scores])),
        "median_seconds": float(np.median([score.seconds for score in scores])),
    }
    report |= mask_report(scores) | (zone_report(scores) if names_zones else {}) | absent_report(scores)
    known = [score for score in scores if score.truth]
    report["images_with_label"] = len(known)
    if len({score.truth for score in known}) > 1:
        report |= diagnosis_report(known)
    return report


def mask_report(scores: Sequence[Score]) -> dict[str, Any]:
    """Dice, gIoU and cIoU over images with something to outline; gIoU with the empty ones beside it."""
    known = [score for score in scores if score.has_mask]
    outlined = [score for score in known if not score.is_absent]
    report: dict[str, Any] = {"images_with_mask": len(outlined)}
    if not outlined:
        return report
    table = np.array([(score.dice, score.iou, score.overlap, score.union) for score in outlined])

    def pooled(rows: NDArray[np.int64]) -> float:
        return float(table[rows, 2].sum() / max(1.0, table[rows, 3].sum()))

    report |= {
        "dice": mean_interval([score.dice for score in outlined]),
        "giou": mean_interval([score.iou for score in outlined]),
        "ciou": asdict(metrics.bootstrap(len(outlined), pooled)),
    }
    if len(known) > len(outlined):
        report["giou_with_absent"] = mean_interval([score.iou for score in known])
    distances = [score.hd95 for score in outlined if score.hd95 is not None]
    if distances:
        report |= {"hd95": mean_interval(distances), "hd95_images": len(distances)}
    return report


def gain_report(scores: Sequence[Score], before: Sequence[Score]) -> dict[str, Any]:
    """How much Dice rose from `before` to `scores`, image by image; both are of the same images in one order.

    The interval is of the differences, so it is narrower than what two intervals beside each other tell.
    """
    pairs = zip(scores, before, strict=True)
    gains = [now.dice - then.dice for now, then in pairs if now.has_mask and not now.is_absent]
    return {"dice_gain": mean_interval(gains)} if gains else {}


def zone_report(scores: Sequence[Score]) -> dict[str, Any]:
    """How often the zone in the text is that of the true mask, and that of the mask drawn."""
    report: dict[str, Any] = {
        "zones_of_nothing": sum(bool(s.zone_in_text and not s.zone_of_mask) for s in scores)
    }
    asked = [score for score in scores if score.zone_of_truth]
    if asked:
        report["zone_accuracy"] = mean_interval([s.zone_in_text == s.zone_of_truth for s in asked])
    both = [score for score in scores if score.zone_in_text and score.zone_of_mask]
    if both:
        report["text_mask_agreement"] = mean_interval([s.zone_in_text == s.zone_of_mask for s in both])
    return report


def absent_report(scores: Sequence[Score]) -> dict[str, Any]:
    """How often nothing is outlined where there is nothing."""
    absent = [score for score in scores if score.is_absent]
    if not absent:
        return {}
    return {
        "absent_images": len(absent),
        "absent_rejection": mean_interval([not score.has_region for score in absent]),
    }


def diagnosis_report(scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, their baselines, AUC where there are two labels, calibration error."""
    truth = [score.truth or "" for score in scores]
    given = [score.diagnosis for score in scores]

    def balanced(rows: NDArray[np.int64]) -> float:
        return metrics.balanced_accuracy([given[i] for i in rows], [truth[i] for i in rows])

    right = [a == b for a, b in zip(given, truth, strict=True)]
    report = {
        "balanced_accuracy": asdict(metrics.bootstrap(len(scores), balanced)),
        "majority_balanced_accuracy": 1 / len(set(truth)),
        "accuracy": mean_interval(right),
        "majority_accuracy": metrics.majority_accuracy(truth),
        "ece": asdict(metrics.bootstrap(len(scores), lambda rows: calibration_error(scores, rows))),
        "recall": {label: _recall(given, truth, label) for label in sorted(set(truth))},
        "answers": dict(Counter(str(label) for label in given)),
    }
    positive = [label for label in POSITIVE if label in truth]
    if len(set(truth)) == 2 and len(positive) == 1:
        chances = np.array([positive_chance(score, positive[0], set(truth)) for score in scores])
        is_positive = np.array([label == positive[0] for label in truth])
        auc = metrics.bootstrap(len(scores), lambda rows: area_under_curve(chances[rows], is_positive[rows]))
        report["auc"] = asdict(auc)
    return report


def positive_chance(score: Score, positive: str, labels: set[str]) -> float:
    """The probability of `positive` among `labels`; a half where nothing was answered."""
    total = sum(score.chances.get(label, 0.0) for label in labels)
    return score.chances.get(positive, 0.0) / total if total > 0 else 0.5


def area_under_curve(chances: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float:
    """Chance that a positive ranks above a negative, ties counting half (Hanley & McNeil 1982).

    A half where one of the two is missing, which a bootstrap draw may bring.
    """
    above, below = chances[is_positive], chances[~is_positive]
    if not above.size or not below.size:
        return 0.5
    return float((above[:, None] > below).mean() + 0.5 * (above[:, None] == below).mean())


def calibration_error(scores: Sequence[Score], rows: NDArray[np.int64]) -> float:
    """Expected calibration error of the diagnosis's confidence, 15 bins of equal width."""
    confidence = np.array([scores[i].confidence for i in rows])
    right = np.array([scores[i].diagnosis == scores[i].truth for i in rows])
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in set(bins.tolist())
    ]
    return float(sum(gaps))


def mean_interval(values: Sequence[float] | Sequence[bool]) -> dict[str, Any]:
    """Mean with its bootstrap interval, and of how many."""
    table = np.asarray(values, np.float64)
    interval = metrics.bootstrap(len(table), lambda rows: float(table[rows].mean()))
    return {**asdict(interval), "count": len(table)}


def _recall(given: Sequence[str | None], truth: Sequence[str], label: str) -> float:
    return float(np.mean([a == label for a, b in zip(given, truth, strict=True) if b == label]))
