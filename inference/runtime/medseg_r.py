"""MedSegRPredictor: an image, and a report where there is one, give a mask; no words are made."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from inference.contract import Image, Prediction, Prompt
from inference.postprocess import mask_at_source
from inference.prompts import TARGETS
from inference.reports import FIELDS, PRIOR_TOKENS, Priors, encode_priors, extract_priors
from inference.runtime.acceptance import refuse_another_kind, refuse_unsuitable
from inference.runtime.engine import Engine, GraphSpec, TensorSpec, require_output
from inference.runtime.generate import Floats
from inference.runtime.model_repository import Manifest
from inference.runtime.packaged import PackagedPredictor, Stopwatch
from inference.runtime.sim4seg_graphs import LOW_RES, floats
from inference.settings import InferenceSettings

MODALITIES: tuple[str, ...] = tuple(TARGETS)
# Of the model's own estimate of its mask's IoU; below it nothing is outlined. Hardly any image of its
# training had no target, so otherwise it outlines a fracture in every radiograph (its training_log.md).
LEAST_IOU = 0.15
MODULATIONS: tuple[str, ...] = ("spatial_attention", "dynamic_convolution", "deformable_sampling")


@dataclass(frozen=True)
class Engines:
    """One engine per graph; the field is the file name without `.onnx`."""

    segmenter: Engine


class MedSegRPredictor(PackagedPredictor):
    """MedSeg-R (arXiv 2506.18669) on one exported graph."""

    def _read_words(self, tokenizer_json: bytes, settings: InferenceSettings) -> None:
        del settings  # no words are made
        self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self.kept = np.ones(len(MODULATIONS), np.float32)

    def _graph_specs(self, manifest: Manifest) -> Mapping[str, GraphSpec]:
        return graph_specs(manifest)

    def _take_engines(self, engines: Mapping[str, Engine]) -> None:
        self.engines = Engines(**engines)

    def _run_once(self, black: Image) -> None:
        self.outline(black, Priors())

    def without(self, removed: Sequence[str]) -> "MedSegRPredictor":
        """The same on the same engine, without some of MODULATIONS: to measure what each is worth."""
        other = copy.copy(self)
        other.kept = np.array([name not in removed for name in MODULATIONS], np.float32)
        return other

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

    def outline(self, image: Image, priors: Priors) -> Prediction:
        """The mask that `priors` steer to, if the model believes it; all of them may be missing."""
        watch = Stopwatch(self._clock)
        with watch.stage("total"):
            with watch.stage("preprocess"):
                frame, pixels = self.fit(image)
                prior_ids = encode_priors(priors, self._tokenizer)[None]
            with watch.stage("segmenter"):
                logits, iou, kind = self._run(pixels, prior_ids)
            with watch.stage("postprocess"):
                mask = mask_at_source(logits, frame.source_hw) & (iou >= LEAST_IOU)
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
