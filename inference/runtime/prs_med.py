"""PrsMedPredictor: where is it? The answer in words, and the mask that question and image ask for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.contract import Image, Prediction, Prompt
from inference.positions import parse_position
from inference.postprocess import mask_at_source
from inference.preprocess import ResizeLongestSide
from inference.prompts import EOS, TARGETS
from inference.runtime.acceptance import refuse_another_kind, refuse_unsuitable
from inference.runtime.conversation import Conversation
from inference.runtime.engine import FREE, Array, Engine, GraphSpec, TensorSpec, require_output
from inference.runtime.generate import DecodingRules, Floats, generate
from inference.runtime.grounding import Grounding, position_slots, position_words
from inference.runtime.model_repository import Manifest
from inference.runtime.packaged import PackagedPredictor, Stopwatch
from inference.runtime.sim4seg_graphs import EMBEDDING, LOW_RES, cache_specs, floats, step_inputs
from inference.settings import InferenceSettings

MODALITIES: tuple[str, ...] = tuple(TARGETS)
NO_SEG = -1  # PRS-Med has no [SEG] token


@dataclass(frozen=True)
class Engines:
    """One engine per graph; the field is the file name without `.onnx`."""

    image_encoder: Engine
    language_prefill: Engine
    language_step: Engine
    mask_decoder: Engine


class PrsMedPredictor(PackagedPredictor):
    """PRS-Med (arXiv 2505.11872) on exported graphs.

    The mask is conditioned on the states of image and question, which the first pass hands on; the answer
    that follows cannot change it. An answer that says there is no target empties the mask. With `is_grounded`
    the mask has a say in the words that name a place, and where it is empty the answer says that there is no
    target (`inference.runtime.grounding`).
    """

    is_grounded = True

    def _read_words(self, tokenizer_json: bytes, settings: InferenceSettings) -> None:
        self.conversation = Conversation(tokenizer_json, self.manifest)
        self.slots = position_slots(self.conversation.tokenise)
        self.max_new_tokens = settings.max_new_tokens or self.manifest.text.max_new_tokens

    def _graph_specs(self, manifest: Manifest) -> Mapping[str, GraphSpec]:
        return graph_specs(manifest)

    def _take_engines(self, engines: Mapping[str, Engine]) -> None:
        self.engines = Engines(**engines)

    def _run_once(self, black: Image) -> None:
        self._answer(black, self.conversation.question_ids("warm-up"), max_new_tokens=1)

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """Answer `prompt` about one image, and outline what it asks for.

        Raises
        ------
        InputRejected
            If image or prompt cannot be answered; trying again will not help.
        OutputInvalid
            If an engine gave numbers that cannot be right (NaN, wrong shape).
        DeviceOutOfMemory
        """
        question = self.conversation.question_ids(prompt.query)
        refuse_unsuitable(image)
        prediction = self._answer(image, question, max_new_tokens=self.max_new_tokens)
        refuse_another_kind(image, prediction)
        return prediction

    def _answer(self, image: Image, question: NDArray[np.int64], *, max_new_tokens: int) -> Prediction:
        watch = Stopwatch(self._clock)
        with watch.stage("total"):
            with watch.stage("preprocess"):
                frame, pixels = self.fit(image)
            rules = DecodingRules(
                eos_id=self.conversation.special_id(EOS),
                seg_id=NO_SEG,
                max_new_tokens=max_new_tokens,
                handed_on="hidden_states",
            )
            feeds: dict[str, Array] = {"pixels": pixels, "text_ids": question}
            drawing = Drawing(self, frame, pixels, watch)
            prefill, step = self.engines.language_prefill, self.engines.language_step
            answer = generate(prefill, step, feeds, rules=rules, clock=self._clock, facts=drawing)
            drawn_s = sum(watch.seconds.values()) - watch.seconds["preprocess"]
            watch.seconds.update(language_prefill=answer.prefill_s, language_steps=answer.steps_s - drawn_s)
        return self._prediction(self.conversation.text(answer.token_ids), drawing, watch.seconds)

    def embed(self, pixels: Floats) -> Floats:
        """The image embedding (1, 256, 64, 64) float32 of `pixels` (1, 3, side, side)."""
        encoder = self.engines.image_encoder
        embedding = encoder.run({"pixels": pixels})["image_embedding"]
        return require_output(encoder.name, "image_embedding", embedding, EMBEDDING)

    def draw(self, embedding: Floats, states: Floats) -> tuple[Floats, int]:
        """Mask logits (256, 256) for the states (1, S, C) of image and question; the kind of image."""
        decoder = self.engines.mask_decoder
        out = decoder.run({"image_embedding": embedding, "hidden_states": states})
        shape = (1, 1, LOW_RES, LOW_RES)
        logits = require_output(decoder.name, "low_res_logits", out["low_res_logits"], shape)
        kinds = require_output(decoder.name, "kind_logits", out["kind_logits"], (1, len(MODALITIES)))
        return logits[0, 0], int(kinds.argmax())

    def _prediction(self, text: str, drawing: "Drawing", seconds: dict[str, float]) -> Prediction:
        parsed = parse_position(text)
        logits, kind = drawing.logits, drawing.kind
        shown = drawing.mask & (not parsed.is_absent)
        nowhere = np.zeros((self.manifest.region.grid,) * 2, np.float32)
        return Prediction(
            mask=shown,
            has_region=bool(shown.any()),
            text=text,
            reasoning="",
            diagnosis=None,
            target=TARGETS[MODALITIES[kind]] or None,
            modality=MODALITIES[kind],
            predicted_iou=expected_iou(logits) if shown.any() else 0.0,
            similarity=nowhere,
            region=nowhere > 0,
            seconds=seconds,
            is_well_formed=parsed.is_well_formed,
        )


class Drawing(Grounding):
    """Draws before the first word: `logits` (256, 256), `mask` (H, W), and `kind`, a place in MODALITIES."""

    def __init__(
        self, predictor: PrsMedPredictor, frame: ResizeLongestSide, pixels: Floats, watch: Stopwatch
    ) -> None:
        super().__init__(predictor.slots)
        self._predictor, self._frame, self._pixels, self._watch = predictor, frame, pixels, watch
        self.logits, self.kind = np.zeros((LOW_RES, LOW_RES), np.float32), 0
        self.mask = np.zeros(frame.source_hw, np.bool_)

    def begin(self, handed_on: Floats) -> None:
        """Draw what the states of image and question ask for, and let the mask have its say."""
        with self._watch.stage("image_encoder"):
            embedding = self._predictor.embed(self._pixels)
        with self._watch.stage("mask_decoder"):
            self.logits, self.kind = self._predictor.draw(embedding, handed_on)
        with self._watch.stage("postprocess"):
            self.mask = mask_at_source(self.logits, self._frame.source_hw)
        if self._predictor.is_grounded:
            self.learn(position_words(self.mask))


def expected_iou(logits: Floats) -> float:
    """The IoU that the logits themselves expect: PRS-Med has no head for it.

    With p the chance of each pixel: sum of p inside the mask, over its area and the sum of p outside.
    """
    chances = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -50, 50)))
    inside = logits > 0
    union = inside.sum() + chances[~inside].sum()
    return float(chances[inside].sum() / union) if inside.any() else 0.0


def graph_specs(manifest: Manifest) -> Mapping[str, GraphSpec]:
    """What each graph must take and give, for the package's square."""
    side = manifest.input.side
    pixels, embedding = floats(1, 3, side, side), floats(*EMBEDDING)
    depth, logits, states = manifest.text.layers, floats(1, None), floats(1, FREE, None)
    return {
        "image_encoder": GraphSpec({"pixels": pixels}, {"image_embedding": embedding}),
        "language_prefill": GraphSpec(
            {"pixels": pixels, "text_ids": TensorSpec("int64", (1, FREE))},
            {"logits": logits, "hidden_states": states, **cache_specs(depth, "prefix")},
        ),
        "language_step": GraphSpec(
            step_inputs(depth),
            {"logits": logits, **cache_specs(depth, "present")},
        ),
        "mask_decoder": GraphSpec(
            {"image_embedding": embedding, "hidden_states": states},
            {"low_res_logits": floats(1, 1, LOW_RES, LOW_RES), "kind_logits": floats(1, len(MODALITIES))},
        ),
    }
