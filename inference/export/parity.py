"""Fails the export when outputs or Dice move beyond the stated tolerance.

    python -m inference.export.parity --weights joint/weights.safetensors --data /path/to/data/train \
        --package inference/packages/sim4seg-s --version 0.1.0 --family sim4seg

Exports the graphs, compares each with PyTorch on real images, compares masks and texts end to end,
and writes parity.json. Nothing is written into the package unless every check passes.
"""

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference import metrics
from inference.contract import Image, Prediction, Prompt
from inference.datasets.folder import Case, load_cases
from inference.datasets.frames import read_image
from inference.errors import UnsuitableImage
from inference.export.families import FAMILIES, AnyPredictor
from inference.export.graphs import ExportSpec
from inference.export.package import write_manifest
from inference.export.to_onnx import export_model
from inference.models.checkpoints import sha256
from inference.reports import FIELDS, PRIOR_TOKENS
from inference.runtime.acceptance import unsuitable_prediction
from inference.runtime.engine import Engine
from inference.runtime.language_cache import AnswerCache
from inference.runtime.medseg_r import MedSegRPredictor
from inference.runtime.model_repository import ModelPackage, open_package
from inference.runtime.onnx_engine import OnnxEngine
from inference.runtime.prs_med import PrsMedPredictor
from inference.settings import InferenceSettings


@dataclass(frozen=True)
class Tolerance:
    """How far a package may stand from its PyTorch weights; ours."""

    relative_error: float = 0.01  # of each output: RMS of the difference over RMS of the output
    mask_dice: float = 0.9975  # mean Dice between the masks of the two, which is an IoU of 0.995, and
    lowest_mask_dice: float = 0.99  # the worst of them
    same_text: float = 1.0  # share of answers that are equal, word for word
    same_diagnosis: float = 1.0


UNGATED = Tolerance(math.inf, 0.0, 0.0, 0.0, 0.0)


class ParityError(Exception):
    """A package answers differently from the weights it was made of."""


class TorchEngine:
    """A graph's PyTorch module behind the runtime's Engine, so that both run the same served path."""

    def __init__(self, declared: Engine, spec: ExportSpec) -> None:
        self.name, self.inputs, self.outputs = declared.name, declared.inputs, declared.outputs
        self._spec = spec

    def warm_up(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Nothing here gets faster with use."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        with torch.no_grad():
            out = self._spec.module(
                *(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._spec.inputs)
            )
        tensors = out if isinstance(out, tuple) else (out,)
        return {name: tensor.numpy() for name, tensor in zip(self._spec.outputs, tensors, strict=True)}


def graph_errors(
    specs: Mapping[str, ExportSpec], package: AnyPredictor, pixels: Sequence[NDArray[np.float32]]
) -> dict[str, float]:
    """Relative RMS error per output, worst over `pixels` (1, 3, side, side)."""
    errors: dict[str, float] = {}
    for square in pixels:
        feeds = first_feeds(package, square)
        for name, spec in specs.items():
            engine: Engine = getattr(package.engines, Path(name).stem)
            want = TorchEngine(engine, spec).run(feeds)
            got = engine.run({key: feeds[key] for key in spec.inputs})
            for key, value in want.items():
                errors[f"{name}:{key}"] = max(
                    errors.get(f"{name}:{key}", 0.0), relative_error(got[key], value)
                )
            feeds |= want
            if name == "language_prefill.onnx":  # some tokens were said before the step
                feeds |= AnswerCache.having_said(want, 3).feeds(np.array([[10]], np.int64))
            feeds["seg_embedding"] = feeds.get("state_embedding", np.zeros((1, 256), np.float32))
    return errors


def first_feeds(package: AnyPredictor, square: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Inputs that no graph of the package makes itself, by name."""
    grid = package.manifest.region.grid
    feeds: dict[str, NDArray[Any]] = {
        "pixels": square,
        "valid_cells": np.ones((grid, grid), np.float32),
        "prior_ids": np.random.default_rng(0).integers(0, 300, (1, len(FIELDS), PRIOR_TOKENS)),
        "kept": np.ones(len(FIELDS), np.float32),
    }
    if not isinstance(package, MedSegRPredictor):
        feeds["text_ids"] = package.conversation.question_ids("Segment the lesion and give a diagnosis.")
    return feeds


def relative_error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """RMS of the difference over RMS of `want`."""
    scale = float(np.sqrt(np.mean(np.square(want, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(got - want, dtype=np.float64)))) / max(scale, 1e-12)


def end_to_end(package: AnyPredictor, reference: AnyPredictor, records: Sequence[Case]) -> dict[str, float]:
    """How alike two predictors answer the same questions."""
    dices, same_text, same_diagnosis = [], [], []
    for record in records:
        image = Image(read_image(record))
        is_positional = isinstance(package, PrsMedPredictor)
        prompt = Prompt(record.position_query if is_positional else record.query)
        ours, theirs = (_ask(predictor, image, prompt) for predictor in (package, reference))
        dices.append(metrics.dice(ours.mask, theirs.mask))
        same_text.append(ours.text == theirs.text)
        labels = [p.diagnosis.label if p.diagnosis else None for p in (ours, theirs)]
        same_diagnosis.append(labels[0] == labels[1])
    return {
        "images": float(len(records)),
        "mask_dice": float(np.mean(dices)),
        "lowest_mask_dice": float(np.min(dices)),
        "same_text": float(np.mean(same_text)),
        "same_diagnosis": float(np.mean(same_diagnosis)),
    }


def _ask(predictor: AnyPredictor, image: Image, prompt: Prompt) -> Prediction:
    """The prediction, or the refusal: both sides must refuse the same images."""
    try:
        return predictor.predict(image, prompt)
    except UnsuitableImage as error:
        return unsuitable_prediction(image, str(error), predictor.manifest.region.grid)


def check(errors: Mapping[str, float], alike: Mapping[str, float], tolerance: Tolerance) -> None:
    """Raise ParityError where an output or an answer moved too far.

    `region` is a set of cells chosen by rank: rounding may swap cells of equal merit, so it is judged
    by the masks it leads to.
    """
    worst = {
        name: e for name, e in errors.items() if e > tolerance.relative_error and not name.endswith(":region")
    }
    if worst:
        raise ParityError(f"outputs moved beyond {tolerance.relative_error}: {worst}")
    limits = asdict(tolerance)
    low = {name: value for name, value in alike.items() if name in limits and value < limits[name]}
    if low:
        raise ParityError(f"answers moved too far: {low}, allowed {limits}")


def reference_predictor(
    specs: Mapping[str, ExportSpec], package: ModelPackage, settings: InferenceSettings
) -> AnyPredictor:
    """The served path on PyTorch modules."""

    def open_engine(name: str, model: bytes) -> Engine:
        declared = OnnxEngine(
            name, model, execution_providers=settings.execution_providers, threads=settings.threads
        )
        return TorchEngine(declared, specs[name])

    family = FAMILIES[package.manifest.model.family]
    return family.predictor(package, settings, open_engine=open_engine)


@dataclass(frozen=True)
class Terms:
    """How a package is to be made."""

    version: str
    int8: bool
    tolerance: Tolerance
    family: str = "sim4seg"
    top_k: int = 36

    def write_manifest(self, folder: Path) -> None:
        """Write model.toml on these terms."""
        diagnoses = FAMILIES[self.family].diagnoses
        write_manifest(folder, self.version, family=self.family, top_k=self.top_k, diagnoses=diagnoses)


def export_checked(model: nn.Module, folder: Path, records: Sequence[Case], terms: Terms) -> dict[str, Any]:
    """Export `model` into `folder`, which holds tokenizer and cards, if it passes; returns the report."""
    int8, tolerance, family = terms.int8, terms.tolerance, FAMILIES[terms.family]
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / folder.name
        shutil.copytree(folder, trial)
        specs = export_model(
            model, trial, int8=int8, specs_of=family.specs, smallest_int8=family.smallest_int8
        )
        terms.write_manifest(trial)
        package = open_package(trial.parent, trial.name)
        settings = InferenceSettings(threads=torch.get_num_threads())
        predictor = family.predictor(package, settings)
        pixels = [
            predictor.fit(Image(read_image(record)))[1]
            for record in records[:: max(1, len(records) // 4)][:4]
        ]
        errors = graph_errors(specs, predictor, pixels)
        alike = end_to_end(predictor, reference_predictor(specs, package, settings), records)
        report = {
            "weights": "int8 for the largest, float16 for the rest" if int8 else "float16",
            "tolerance": asdict(tolerance),
            "relative_error": errors,
            "end_to_end": alike,
            "bytes": {name: (trial / name).stat().st_size for name in specs},
        }
        check(errors, alike, tolerance)
        for name in specs:
            shutil.copyfile(trial / name, folder / name)
    return report


def main() -> None:
    """Export a trained model into its package folder, behind the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("weights", "data", "package"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--family", choices=list(FAMILIES), default="sim4seg")
    parser.add_argument("--top-k", type=int, help="cells of the region prompt; 0 for a model without (LISA)")
    parser.add_argument("--float16", action="store_true", help="no 8-bit weights")
    parser.add_argument("--ungated", action="store_true", help="whatever it says: for rehearsals of training")
    parser.add_argument("--images", type=int, default=6, help="per data set, for the end-to-end comparison")
    options = parser.parse_args()
    records = load_cases(options.data, limit=options.images)
    family = FAMILIES[options.family]
    top_k = family.top_k if options.top_k is None else options.top_k
    tolerance = UNGATED if options.ungated else Tolerance()
    terms = Terms(options.version, not options.float16, tolerance, options.family, top_k)
    model = family.load(options.weights, top_k)
    report = export_checked(model, options.package, records, terms)
    report = {"checkpoint_sha256": sha256(options.weights), **report}
    (options.package / "parity.json").write_text(json.dumps(report, indent=1) + "\n")
    terms.write_manifest(options.package)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
