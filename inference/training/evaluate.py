"""Scores any Predictor - PyTorch, ONNX or TensorRT - on a dataset; writes one JSON.

    python -m inference.training.evaluate --package inference/packages/sim4seg-s \
        --data /path/to/data --out metrics.json

The path is the served one: text is generated freely, [SEG] is whatever state predicted it, the mask
is scored at source resolution. Nothing is teacher-forced.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import metrics
from inference.contract import Image, Prediction, Predictor, Prompt
from inference.datasets.frames import read_image, read_mask
from inference.datasets.m3ds import KINDS, Record, load_records
from inference.datasets.measure import equal_moments, zone_of
from inference.datasets.splits import hash_order
from inference.postprocess import mask_at_source
from inference.prompts import parse_answer
from inference.runtime.model_repository import open_package
from inference.runtime.predictors import Sim4SegPredictor
from inference.settings import InferenceSettings

NOTES = {
    "path": "free greedy generation, first query of each data set, mask scored at source resolution",
    "intervals": "95 % percentile bootstrap over images, 1000 rounds (images, not patients, are drawn)",
    "dice": "over images with a mask; an answer without [SEG] counts as an empty mask",
}


@dataclass(frozen=True, eq=False)
class Score:
    """What one image adds to the report."""

    dataset: str
    has_mask: bool
    has_region: bool
    dice: float
    iou: float
    overlap: int  # pixels
    union: int  # pixels
    truth: str | None
    diagnosis: str | None
    confidence: float
    is_well_formed: bool
    is_zone_right: bool | None  # the zone the text names is the zone of the mask drawn
    seconds: float


def query_of(record: Record) -> str:
    """The question put to every image of a data set: its first wording."""
    return KINDS[record.dataset].queries[0]


def score_record(predictor: Predictor, record: Record) -> Score:
    """Ask `predictor` about one image and compare."""
    pixels = read_image(record)
    truth = read_mask(record, (pixels.shape[0], pixels.shape[1]))
    started = time.perf_counter()
    prediction = predictor.predict(Image(pixels), Prompt(query_of(record)))
    seconds = time.perf_counter() - started
    return Score(
        dataset=record.dataset,
        has_mask=record.mask is not None,
        has_region=prediction.has_region,
        dice=metrics.dice(prediction.mask, truth),
        iou=metrics.iou(prediction.mask, truth),
        overlap=int((prediction.mask & truth).sum()),
        union=int((prediction.mask | truth).sum()),
        truth=record.diagnosis,
        diagnosis=prediction.diagnosis.label if prediction.diagnosis else None,
        confidence=prediction.diagnosis.confidence if prediction.diagnosis else 0.0,
        is_well_formed=parse_answer(prediction.text).is_well_formed,
        is_zone_right=zone_agrees(prediction),
        seconds=seconds,
    )


def zone_agrees(prediction: Prediction) -> bool | None:
    """Whether the zone in the text is the zone of the mask; None where there is no text zone or no mask."""
    zone = parse_answer(prediction.text).zone
    if zone is None or not prediction.mask.any():
        return None
    rows, columns = np.nonzero(prediction.mask)
    y, x = equal_moments(rows, columns).centre_yx
    return zone == zone_of(y / prediction.mask.shape[0], x / prediction.mask.shape[1])


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """The report of one data set."""
    outlined = [score for score in scores if score.has_mask]
    report: dict[str, Any] = {
        "images": len(scores),
        "well_formed_rate": float(np.mean([score.is_well_formed for score in scores])),
        "region_rate": float(np.mean([score.has_region for score in scores])),
        "median_seconds": float(np.median([score.seconds for score in scores])),
    }
    zones = [score.is_zone_right for score in scores if score.is_zone_right is not None]
    if zones:
        report["zone_agreement"] = float(np.mean(zones))
    if outlined:
        report |= {"images_with_mask": len(outlined), **_mask_report(outlined)}
    labels = {score.truth for score in scores if score.truth}
    if len(labels) > 1:
        report |= _diagnosis_report([score for score in scores if score.truth])
    return report


def _mask_report(scores: Sequence[Score]) -> dict[str, Any]:
    table = np.array([(score.dice, score.iou, score.overlap, score.union) for score in scores])

    def pooled(rows: NDArray[np.int64]) -> float:
        return float(table[rows, 2].sum() / max(1.0, table[rows, 3].sum()))

    count = len(scores)
    return {
        "dice": asdict(metrics.bootstrap(count, lambda rows: float(table[rows, 0].mean()))),
        "giou": asdict(metrics.bootstrap(count, lambda rows: float(table[rows, 1].mean()))),
        "ciou": asdict(metrics.bootstrap(count, pooled)),
    }


def _diagnosis_report(scores: Sequence[Score]) -> dict[str, Any]:
    truth = [score.truth or "" for score in scores]
    given = [score.diagnosis for score in scores]

    def balanced(rows: NDArray[np.int64]) -> float:
        return metrics.balanced_accuracy([given[i] for i in rows], [truth[i] for i in rows])

    right = np.array([a == b for a, b in zip(given, truth, strict=True)])
    return {
        "balanced_accuracy": asdict(metrics.bootstrap(len(scores), balanced)),
        "majority_balanced_accuracy": 1 / len(set(truth)),
        "accuracy": asdict(metrics.bootstrap(len(scores), lambda rows: float(right[rows].mean()))),
        "majority_accuracy": metrics.majority_accuracy(truth),
        "recall": {
            label: metrics.balanced_accuracy(*_of_class(given, truth, label)) for label in sorted(set(truth))
        },
        "answers": dict(Counter(str(label) for label in given)),
    }


def _of_class(given: list[str | None], truth: list[str], label: str) -> tuple[list[str | None], list[str]]:
    rows = [i for i, actual in enumerate(truth) if actual == label]
    return [given[i] for i in rows], [label] * len(rows)


def ablate_region(predictor: Sim4SegPredictor, records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Dice with the model's region, with an empty one, and with one made from the truth; per data set.

    Image tokens of zeros give a constant map and so an empty region; image tokens that are the cells'
    covered share times the [SEG] state give the region of the truth. The graph stays the same.
    """
    dices: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for kind, value in _ablate(predictor, record).items():
            dices.setdefault(record.dataset, {}).setdefault(kind, []).append(value)
    return {name: {kind: float(np.mean(v)) for kind, v in kinds.items()} for name, kinds in dices.items()}


def _ablate(predictor: Sim4SegPredictor, record: Record) -> dict[str, float]:
    pixels = read_image(record)
    truth = read_mask(record, (pixels.shape[0], pixels.shape[1]))
    frame, square = predictor.fit(Image(pixels))
    question = predictor.conversation.question_ids(query_of(record))
    answer = predictor.answer(square, question, predictor._rules(max_new_tokens=16, is_stopped_at_seg=True))  # noqa: SLF001
    if answer.seg_embedding is None:
        return {}
    seg, side = answer.seg_embedding, frame.side
    cells = np.zeros((side, side), np.float32)
    height, width = frame.inner_hw
    cells[:height, :width] = frame.resize(truth.astype(np.uint8) * np.uint8(255)) / np.float32(255)
    grid = predictor.manifest.region.grid
    shares = cells.reshape(grid, side // grid, grid, side // grid).mean(axis=(1, 3)).reshape(-1, 1)
    tokens = {
        "own": answer.image_tokens,
        "none": answer.image_tokens * 0,
        "truth": (shares * seg).astype(np.float32),
    }
    embedding = predictor.embed(square)
    found = {kind: predictor.find_region(embedding, value, seg, frame) for kind, value in tokens.items()}
    return {
        kind: metrics.dice(mask_at_source(region.logits, frame.source_hw), truth)
        for kind, region in found.items()
    }


def evaluate(predictor: Predictor, records: Sequence[Record]) -> dict[str, Any]:
    """Score every record and report."""
    return report_of([score_record(predictor, record) for record in records])


def report_of(scores: Sequence[Score]) -> dict[str, Any]:
    """The whole report, data set by data set."""
    datasets = sorted({score.dataset for score in scores})
    reports = {name: summarise([score for score in scores if score.dataset == name]) for name in datasets}
    return {
        "notes": NOTES,
        "well_formed_rate": float(np.mean([score.is_well_formed for score in scores])),
        "datasets": reports,
    }


def open_onnx(folder: Path) -> Sim4SegPredictor:
    """The package in `folder` on ONNX Runtime, one thread."""
    return Sim4SegPredictor(open_package(folder.parent, folder.name), InferenceSettings(threads=1))


def score_share(folder: Path, records: Sequence[Record]) -> list[Score]:
    """Scores of some records; for a process of its own."""
    predictor = open_onnx(folder)
    return [score_record(predictor, record) for record in records]


def score_in_processes(folder: Path, records: Sequence[Record], count: int) -> list[Score]:
    """Scores of all records, shared among `count` processes."""
    with ProcessPoolExecutor(count) as pool:
        shares = pool.map(score_share, [folder] * count, [records[i::count] for i in range(count)])
        return [score for share in shares for score in share]


def validation_records(data: Path, limit: int | None) -> list[Record]:
    """All validation records, or `limit` of each data set, picked by the hash of their names."""
    records = [record for record in load_records(data) if record.split == "val"]
    if limit is None:
        return records
    names = {
        (dataset, name)
        for dataset in {record.dataset for record in records}
        for name in hash_order(r.name for r in records if r.dataset == dataset)[:limit]
    }
    return [record for record in records if (record.dataset, record.name) in names]


def main() -> None:
    """Score a package and write its metrics.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("package", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="images per data set; all if absent")
    parser.add_argument("--ablate", type=int, default=50, help="images per data set for the region ablation")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    predictor = open_onnx(options.package)
    records = validation_records(options.data, options.limit)
    report: dict[str, Any] = {
        "model": {"name": predictor.name, "version": predictor.version},
        **report_of(score_in_processes(options.package, records, options.processes)),
    }
    some = [r for r in validation_records(options.data, options.ablate) if r.mask is not None]
    report["region_ablation_dice"] = ablate_region(predictor, some)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
