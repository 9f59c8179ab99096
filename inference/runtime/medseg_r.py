"""MedSegRPredictor: an image, and a report where there is one, give a mask; no words are made."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from inference.contract import Image, Prediction, Prompt
from inference.postprocess import mask_at_source
from inference.preprocess import ResizeLongestSide
from inference.prompts import TARGETS
from inference.reports import FIELDS, PRIOR_TOKENS, Priors, encode_priors, extract_priors
from inference.runtime.engine import Engine, GraphSpec, TensorSpec, require_output
from inference.runtime.generate import Floats
from inference.runtime.model_repository import Manifest, ModelPackage
from inference.runtime.predictors import (
    Clock,
    Stopwatch,
    fit_image,
    on_onnx_runtime,
    refuse_another_kind,
    refuse_unsuitable,
    segment_each,
)
from inference.runtime.sim4seg_graphs import LOW_RES, OpenEngine, floats, open_graphs
from inference.settings import InferenceSettings

MODALITIES: tuple[str, ...] = tuple(TARGETS)
MODULATIONS: tuple[str, ...] = ("spatial_attention", "dynamic_convolution", "deformable_sampling")


@dataclass(frozen=True)
class Engines:
    """One engine per graph; the field is the file name without `.onnx`."""

    segmenter: Engine


class MedSegRPredictor:
    """MedSeg-R (arXiv 2506.18669) on one exported graph."""

    def __init__(
        self,
        package: ModelPackage,
        settings: InferenceSettings,
        *,
        clock: Clock = time.perf_counter,
        open_engine: OpenEngine | None = None,
    ) -> None:
        """Load the graph of `package`, check it, and run it once.

        Raises
        ------
        PackageTampered, PackageInvalid, EngineRejected, OutputInvalid
        """
        self.manifest = package.manifest
        self.name, self.version = self.manifest.model.name, self.manifest.model.version
        self.digest = package.digest
        self._tokenizer = Tokenizer.from_buffer(package.read(self.manifest.text.tokenizer))
        engines = open_graphs(package, graph_specs(self.manifest), open_engine or on_onnx_runtime(settings))
        self.engines = Engines(**engines)
        self.kept = np.ones(len(MODULATIONS), np.float32)
        self._clock = clock
        self.warm_up()

    def without(self, removed: Sequence[str]) -> "MedSegRPredictor":
        """The same on the same engine, without some of MODULATIONS: to measure what each is worth."""
        other = copy.copy(self)
        other.kept = np.array([name not in removed for name in MODULATIONS], np.float32)
        return other

    def warm_up(self) -> None:
        """Run the graph once on a black image.

        Raises
        ------
        OutputInvalid
        """
        side = self.manifest.input.side
        self.outline(Image(np.zeros((side, side, 3), np.uint8)), Priors())

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """Outline the target of one image; `prompt.report` steers where it has anything to say.

        Raises
        ------
        InputRejected
            If the image cannot be answered; trying again will not help.
        OutputInvalid
            If the engine gave numbers that cannot be right (NaN, wrong shape).
        DeviceOutOfMemory
        """
        refuse_unsuitable(image)
        prediction = self.outline(image, extract_priors(prompt.report))
        refuse_another_kind(image, prediction)
        return prediction

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:  # noqa: ARG002 - nothing of the key frame is needed
        """One prediction per image of a series; an unsuitable image has an empty one that says why."""
        return segment_each(self, images, prompt)

    def fit(self, image: Image) -> tuple[ResizeLongestSide, Floats]:
        """Check an image; give its frame and the network input (1, 3, side, side) float32.

        Raises
        ------
        InputRejected
        """
        return fit_image(image, self.manifest)

    def outline(self, image: Image, priors: Priors) -> Prediction:
        """The mask that `priors` steer to; all of them may be missing."""
        watch = Stopwatch(self._clock)
        with watch.stage("total"):
            with watch.stage("preprocess"):
                frame, pixels = self.fit(image)
                prior_ids = encode_priors(priors, self._tokenizer)[None]
            with watch.stage("segmenter"):
                logits, iou, kind = self._run(pixels, prior_ids)
            with watch.stage("postprocess"):
                mask = mask_at_source(logits, frame.source_hw)
        return self._prediction(mask, iou, MODALITIES[kind], watch.seconds)

    def _run(self, pixels: Floats, prior_ids: NDArray[np.int64]) -> tuple[Floats, float, int]:
        engine = self.engines.segmenter
        out = engine.run({"pixels": pixels, "prior_ids": prior_ids, "kept": self.kept})
        shape = (1, 1, LOW_RES, LOW_RES)
        logits = require_output(engine.name, "low_res_logits", out["low_res_logits"], shape)
        iou = require_output(engine.name, "iou_predictions", out["iou_predictions"], (1, 1))
        kinds = require_output(engine.name, "kind_logits", out["kind_logits"], (1, len(MODALITIES)))
        return logits[0, 0], float(iou[0, 0]), int(kinds.argmax())

    def _prediction(
        self, mask: NDArray[np.bool_], iou: float, modality: str, seconds: dict[str, float]
    ) -> Prediction:
        nowhere = np.zeros((self.manifest.region.grid,) * 2, np.float32)
        has_region, target = bool(mask.any()), TARGETS[modality] or None
        return Prediction(
            mask=mask,
            has_region=has_region,
            text=f"The {target or 'target'} is outlined." if has_region else "Nothing is outlined.",
            reasoning="",
            diagnosis=None,
            target=target,
            modality=modality,
            predicted_iou=iou if has_region else 0.0,
            similarity=nowhere,
            region=nowhere > 0,
            seconds=seconds,
        )


def graph_specs(manifest: Manifest) -> Mapping[str, GraphSpec]:
    """What the graph must take and give, for the package's square."""
    side = manifest.input.side
    return {
        "segmenter": GraphSpec(
            {
                "pixels": floats(1, 3, side, side),
                "prior_ids": TensorSpec("int64", (1, len(FIELDS), PRIOR_TOKENS)),
                "kept": floats(len(MODULATIONS)),
            },
            {
                "low_res_logits": floats(1, 1, LOW_RES, LOW_RES),
                "iou_predictions": floats(1, 1),
                "kind_logits": floats(1, len(MODALITIES)),
            },
        )
    }
