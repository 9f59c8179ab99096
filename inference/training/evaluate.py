"""Scores any Predictor - PyTorch, ONNX or TensorRT - on a dataset; prints one table, writes one JSON.

    python -m inference.training.evaluate --data ../shared/data/train --package sim4seg-s --json metrics.json

FOLDER is in the form of `data/train`: a manifest.csv and the images it names (datasets/folder.py); any data
sets, rows without a mask or a label too. The path is the served one: text is generated freely, [SEG] is
whatever state predicted it, the mask is scored at source resolution. Nothing is teacher-forced.
`--variants` adds what a family can be measured by: Sim4Seg with test-time scaling and its oracle; MedSeg-R
without each modulation, with reports made from the truth, and with those of other images.
`--unet weights.safetensors` scores the rival instead of a package.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import metrics
from inference.contract import Image, Prediction, Predictor, Prompt
from inference.datasets.folder import Case, load_cases, some_of_each
from inference.datasets.frames import read_image, read_mask
from inference.errors import InferenceError, InputRejected
from inference.postprocess import mask_at_source
from inference.runtime import open_predictor
from inference.runtime.acceptance import unsuitable_prediction
from inference.runtime.model_repository import open_package
from inference.runtime.predictors import Sim4SegPredictor
from inference.settings import PACKAGES, InferenceSettings
from inference.training.scoring import (
    FIVE_ZONES,
    NINE_ZONES,
    Score,
    gain_report,
    score_prediction,
    summarise,
)
from inference.training.variants import variants_of

NOTES = {
    "path": "free greedy generation, mask scored at source resolution; a refused image counts as no answer",
    "intervals": "95 % percentile bootstrap over images, 1000 rounds (images, not patients, are drawn)",
    "dice": "Dice@0.5 over images with something to outline; an answer without a region is an empty mask",
    "dice_gain": "of a variant: its Dice minus that of the plain answer to the same image, mean over images",
    "giou": "mean IoU over the same images; giou_with_absent adds the images with nothing to outline, 1 each "
    "where nothing was outlined",
    "ciou": "sum of intersections over sum of unions",
    "hd95": "pixels, larger of the two directions, where both masks have an outline (hd95_images)",
    "zone_accuracy": "the zone the text names is the zone of the true mask; no zone named is wrong",
    "text_mask_agreement": "the zone the text names is the zone of the mask drawn, where there are both",
    "zones_of_nothing": "images where the text names a zone although nothing was outlined",
    "absent_rejection": "share of images with nothing to outline where nothing was outlined",
    "auc": "where there are two labels; ece: 15 bins; majority_*: of always answering the commonest label",
}
COLUMNS = (
    ("dice", "Dice"), ("dice_gain", "gain"), ("giou", "gIoU"), ("ciou", "cIoU"), ("hd95", "HD95"),
    ("accuracy", "acc."), ("balanced_accuracy", "bal. acc."), ("auc", "AUC"), ("ece", "ECE"),
    ("zone_accuracy", "zone"), ("text_mask_agreement", "text=mask"), ("absent_rejection", "absent"),
)  # fmt: skip
Ask = Callable[[Case, Image], Prediction]


@dataclass(frozen=True)
class Job:
    """What a process needs to score its share."""

    package: Path | None  # the folder of a model package
    unet: Path | None  # or the rival's weights
    variant: str = ""


def score_case(ask: Ask, case: Case, *, is_positional: bool) -> Score:
    """Ask about one image and compare; a refusal scores as an empty answer and says why."""
    pixels = read_image(case)
    truth = read_mask(case, (pixels.shape[0], pixels.shape[1]))
    image, refusal = Image(pixels), ""
    try:
        prediction = ask(case, image)
    except InputRejected as error:
        refusal = str(error)
        prediction = unsuitable_prediction(image, refusal, 16)
    zones = FIVE_ZONES if is_positional else NINE_ZONES
    return replace(score_prediction(case, prediction, truth, zones), refusal=refusal)


def plain(predictor: Predictor, *, is_positional: bool) -> Ask:
    """Ask a predictor the question of the case, without a report."""
    return lambda case, image: predictor.predict(
        image, Prompt(case.position_query if is_positional else case.query)
    )


def evaluate(predictor: Predictor, cases: Sequence[Case], *, is_positional: bool = False) -> dict[str, Any]:
    """Score every case and report."""
    ask = plain(predictor, is_positional=is_positional)
    return report_of([score_case(ask, case, is_positional=is_positional) for case in cases])


def report_of(scores: Sequence[Score], before: Sequence[Score] = ()) -> dict[str, Any]:
    """The report, data set by data set, and all together; with what was gained over `before` if given."""
    datasets = sorted({score.dataset for score in scores})
    names_zones = any(score.zone_in_text for score in scores)

    def part(*names: str) -> dict[str, Any]:
        rows = [i for i, score in enumerate(scores) if score.dataset in names]
        gained = gain_report([scores[i] for i in rows], [before[i] for i in rows]) if before else {}
        return summarise([scores[i] for i in rows], names_zones=names_zones) | gained

    return {"datasets": {name: part(name) for name in datasets}, "all": part(*datasets)}


def open_asked(job: Job) -> tuple[Predictor, bool]:
    """The predictor of a job on one thread, and whether it answers questions about place only."""
    if job.unet is not None:
        from inference.training.unet_predictor import UnetPredictor  # noqa: PLC0415 - MONAI, only where wanted

        return UnetPredictor(job.unet), False
    if job.package is None:
        raise InferenceError("name a package or a U-Net's weights")
    settings = InferenceSettings(model_repository=job.package.parent, threads=1)
    predictor = open_predictor(job.package.name, settings)
    return predictor, type(predictor).__name__ == "PrsMedPredictor"


def score_share(job: Job, cases: Sequence[Case], everybody: Sequence[Case]) -> list[Score]:
    """Scores of some cases; for a process of its own. A variant may need to know all the others."""
    predictor, is_positional = open_asked(job)
    ask: Ask = plain(predictor, is_positional=is_positional)
    if job.variant:
        ask = variants_of(predictor)[job.variant](everybody)
    scores = [score_case(ask, case, is_positional=is_positional) for case in cases]
    return scores if gives_diagnoses(job) else [replace(score, truth=None) for score in scores]


def gives_diagnoses(job: Job) -> bool:
    """Whether the model was made to say one; otherwise there is none to score."""
    if job.package is None:
        return False
    return bool(open_package(job.package.parent, job.package.name).manifest.labels.diagnoses)


def score_in_processes(job: Job, cases: Sequence[Case], count: int) -> list[Score]:
    """Scores of all cases in their order, shared among `count` processes."""
    if count <= 1:
        return score_share(job, cases, cases)
    scores: list[Score | None] = [None] * len(cases)
    with ProcessPoolExecutor(count) as pool:
        shares = pool.map(
            score_share, [job] * count, [cases[i::count] for i in range(count)], [cases] * count
        )
        for i, share in enumerate(shares):
            scores[i::count] = share
    return [score for score in scores if score is not None]


def ablate_region(predictor: Sim4SegPredictor, cases: Iterable[Case]) -> dict[str, dict[str, float]]:
    """Dice with the model's region, with an empty one, and with one made from the truth; per data set.

    Image tokens of zeros give a constant map and so an empty region; image tokens that are the cells'
    covered share times the [SEG] state give the region of the truth. The graph stays the same.
    """
    dices: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for kind, value in _ablate(predictor, case).items():
            dices.setdefault(case.dataset, {}).setdefault(kind, []).append(value)
    return {name: {kind: float(np.mean(v)) for kind, v in kinds.items()} for name, kinds in dices.items()}


def _ablate(predictor: Sim4SegPredictor, case: Case) -> dict[str, float]:
    pixels = read_image(case)
    truth = read_mask(case, (pixels.shape[0], pixels.shape[1]))
    frame, square = predictor.fit(Image(pixels))
    question = predictor.conversation.question_ids(case.query)
    answer = predictor.answer(square, question, predictor.rules(max_new_tokens=128, is_stopped_at_seg=True))
    if answer.seg_embedding is None or not truth.any():
        return {}
    seg, grid = answer.seg_embedding[:1], predictor.manifest.region.grid
    cells = np.zeros((frame.side, frame.side), np.float32)
    height, width = frame.inner_hw
    cells[:height, :width] = frame.resize(truth.astype(np.uint8) * np.uint8(255)) / np.float32(255)
    step = frame.side // grid
    shares = cells.reshape(grid, step, grid, step).mean(axis=(1, 3)).reshape(-1, 1)
    tokens: dict[str, NDArray[np.float32]] = {
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


def full_report(options: argparse.Namespace) -> dict[str, Any]:
    """Everything the command was asked for."""
    folder = None if options.unet else package_folder(options.package, options.repository)
    job = Job(folder, options.unet)
    predictor, _ = open_asked(job)
    cases = load_cases(options.data, options.split, options.limit)
    scores = score_in_processes(job, cases, options.processes)
    report: dict[str, Any] = {
        "model": {"name": predictor.name, "version": predictor.version, "digest": predictor.digest},
        "notes": NOTES,
        "split": options.split,
        **report_of(scores),
    }
    some = some_of_each(cases, options.variant_limit) if options.variant_limit else cases
    plainly = dict(zip(cases, scores, strict=True))
    before = [plainly[case] for case in some]
    wanted = list(variants_of(predictor)) if options.variants == ["all"] else options.variants
    report["variants"] = {
        name: report_of(score_in_processes(replace(job, variant=name), some, options.processes), before)
        for name in wanted
    }
    if options.ablate and isinstance(predictor, Sim4SegPredictor):
        few = load_cases(options.data, options.split, options.ablate)
        report["region_ablation_dice"] = ablate_region(predictor, [case for case in few if case.mask])
    return report


def package_folder(package: str, repository: Path) -> Path:
    """The folder of a package, given by name in `repository` or by its path."""
    path = Path(package)
    return path.resolve() if (path / "model.toml").is_file() else repository / package


def table(report: dict[str, Any]) -> str:
    """The report as text: a line for each data set, all together, and every variant."""
    head = ["data set", "images", *(title for _, title in COLUMNS), "majority"]
    lines = [head]
    parts = {"": report, **{f" ({name})": one for name, one in report.get("variants", {}).items()}}
    for mark, part in parts.items():
        for name, scores in [*part["datasets"].items(), ("all", part["all"])]:
            majority = scores.get("majority_accuracy")
            cells = [_cell(scores.get(key), key) for key, _ in COLUMNS]
            lines.append(
                [name + mark, str(scores["images"]), *cells, "-" if majority is None else f"{majority:.3f}"]
            )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def _cell(score: dict[str, float] | None, key: str) -> str:
    if score is None:
        return "-"
    digits = 1 if key == "hd95" else 3
    return f"{score['mean']:.{digits}f} ({score['low']:.{digits}f}-{score['high']:.{digits}f})"


def main() -> None:
    """Score a package and write its metrics."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--package", help="name of a model package, or its folder")
    which.add_argument("--unet", type=Path, help="weights.safetensors of the rival")
    parser.add_argument("--json", type=Path, required=True, help="where the report goes")
    parser.add_argument("--repository", type=Path, default=PACKAGES, help="folder of the model packages")
    parser.add_argument("--split", default="auto", help="rows of this split; auto: all that are no training")
    parser.add_argument("--limit", type=int, help="images per data set; all if absent")
    parser.add_argument("--variants", nargs="*", default=[], help="names, or all")
    parser.add_argument("--variant-limit", type=int, help="images per data set for each variant")
    parser.add_argument("--ablate", type=int, default=0, help="images per data set for the region ablation")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    report = full_report(options)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
