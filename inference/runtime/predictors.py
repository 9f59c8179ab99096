"""Sim4SegPredictor: engines wired so that image and prompt give a prediction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.contract import Diagnosis, Image, Prediction, Prompt
from inference.postprocess import mask_at_source
from inference.preprocess import ResizeLongestSide
from inference.prompts import EOS, SEG, parse_answer
from inference.runtime.acceptance import (
    reason_against,
    refuse_another_kind,
    refuse_unsuitable,
    unsuitable_prediction,
)
from inference.runtime.conversation import Conversation
from inference.runtime.engine import Array, Engine, GraphSpec, require_output
from inference.runtime.generate import Answer, DecodingRules, Facts, Floats, generate
from inference.runtime.grounding import Grounding, answer_slots, region_words
from inference.runtime.model_repository import Manifest
from inference.runtime.packaged import PackagedPredictor, Stopwatch
from inference.runtime.sim4seg_graphs import EMBEDDING, LOW_RES, STATE, Engines, graph_specs
from inference.settings import InferenceSettings


@dataclass(frozen=True, eq=False)
class Region:
    """What the mask decoder gives, in the padded square."""

    logits: Floats  # (256, 256)
    predicted_iou: float
    similarity: Floats  # (grid, grid), 0..1
    cells: NDArray[np.bool_]  # (grid, grid)


class Sim4SegPredictor(PackagedPredictor):
    """Sim4Seg (arXiv 2511.06665) on exported graphs: the answer, and the mask as soon as it asks for one.

    With `is_grounded` the mask has a say in the words that follow [SEG] (`inference.runtime.grounding`).
    """

    is_grounded = True

    def _read_words(self, tokenizer_json: bytes, settings: InferenceSettings) -> None:
        self.conversation = Conversation(tokenizer_json, self.manifest)
        self.slots = answer_slots(self.conversation.tokenise)
        self.max_new_tokens = settings.max_new_tokens or self.manifest.text.max_new_tokens

    def _graph_specs(self, manifest: Manifest) -> Mapping[str, GraphSpec]:
        return graph_specs(manifest)

    def _take_engines(self, engines: Mapping[str, Engine]) -> None:
        self.engines = Engines(**engines)

    def _run_once(self, black: Image) -> None:
        frame, pixels = self.fit(black)
        rules = self.rules(max_new_tokens=1, is_stopped_at_seg=False)
        answer = self.answer(pixels, self.conversation.question_ids("warm-up"), rules)
        self.find_region(self.embed(pixels), answer.image_tokens, np.ones((1, STATE), np.float32), frame)

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """Answer `prompt` about one image, and outline what the answer speaks of.

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
        prediction = self._predict(image, question, is_stopped_at_seg=False)
        refuse_another_kind(image, prediction)
        return prediction

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """One prediction per image of a series, in order; each image has its own language pass and region.

        Only the tokenised question is shared: the cache, the similarity and the [SEG] state all depend on the
        pixels, so nothing else could be used again without being wrong. With `like` (the key frame's
        prediction) answers end at [SEG]: the mask of `predict` for about four steps instead of about a
        hundred. Memory is bounded: of each image the boolean mask is kept, never its logits. An unsuitable
        image has an empty prediction that says why: one blank slice is no reason to refuse a series.
        """
        if like is None:
            return super().segment(images, prompt, like)
        question = self.conversation.question_ids(prompt.query)
        return [
            unsuitable_prediction(image, reason, self.manifest.region.grid)
            if (reason := reason_against(image))
            else self._predict(image, question, is_stopped_at_seg=True)
            for image in images
        ]

    def answer(
        self, pixels: Floats, question: NDArray[np.int64], rules: DecodingRules, facts: Facts | None = None
    ) -> Answer:
        """The language model's answer about `pixels` (1, 3, side, side) to `question` (1, T)."""
        prefill, step = self.engines.language_prefill, self.engines.language_step
        feeds: dict[str, Array] = {"pixels": pixels, "text_ids": question}
        answer = generate(prefill, step, feeds, rules=rules, clock=self._clock, facts=facts)
        cells = self.manifest.region.grid**2
        require_output(prefill.name, "image_tokens", answer.image_tokens, (cells, STATE))
        return answer

    def embed(self, pixels: Floats) -> Floats:
        """The image embedding (1, 256, 64, 64) float32 of `pixels` (1, 3, side, side)."""
        encoder = self.engines.image_encoder
        embedding = encoder.run({"pixels": pixels})["image_embedding"]
        return require_output(encoder.name, "image_embedding", embedding, EMBEDDING)

    def find_region(
        self, embedding: Floats, image_tokens: Floats, seg_embedding: Floats, frame: ResizeLongestSide
    ) -> Region:
        """RVLS2M and mask decoder: image tokens and [SEG] state choose cells, the cells prompt the mask.

        Of several [SEG] each asks for its own mask; the region outlined is what any of them covers.
        """
        valid_cells = frame.valid_cells(self.manifest.region.grid)
        return self.draw(embedding, image_tokens, seg_embedding, valid_cells)

    def draw(
        self, embedding: Floats, image_tokens: Floats, seg_embedding: Floats, valid_cells: Floats
    ) -> Region:
        """What `find_region` gives, with cells chosen among `valid_cells` (grid, grid), 0 or 1."""
        decoder, grid, count = self.engines.mask_decoder, self.manifest.region.grid, len(seg_embedding)
        out = decoder.run(
            {
                "image_embedding": embedding,
                "image_tokens": image_tokens,
                "seg_embedding": seg_embedding,
                "valid_cells": valid_cells,
            }
        )
        shapes = {
            "low_res_logits": (count, 1, LOW_RES, LOW_RES),
            "iou_predictions": (count, 1),
            "similarity": (count, grid, grid),
            "region": (count, grid, grid),
        }
        got = {key: require_output(decoder.name, key, out[key], shape) for key, shape in shapes.items()}
        return Region(
            logits=got["low_res_logits"][:, 0].max(axis=0),
            predicted_iou=float(got["iou_predictions"].mean()),
            similarity=got["similarity"].max(axis=0),
            cells=got["region"].max(axis=0) > 0,
        )

    def _predict(self, image: Image, question: NDArray[np.int64], *, is_stopped_at_seg: bool) -> Prediction:
        watch = Stopwatch(self._clock)
        with watch.stage("total"):
            with watch.stage("preprocess"):
                frame, pixels = self.fit(image)
            rules = self.rules(max_new_tokens=self.max_new_tokens, is_stopped_at_seg=is_stopped_at_seg)
            drawing = Drawing(self, frame, lambda: self.embed(pixels), watch)
            answer = self.answer(pixels, question, rules, drawing)
            drawn_s = sum(watch.seconds.values()) - watch.seconds["preprocess"]
            watch.seconds.update(language_prefill=answer.prefill_s, language_steps=answer.steps_s - drawn_s)
            with watch.stage("postprocess"):
                prediction = self.told(answer, frame, drawing.region)
        return replace(prediction, seconds=watch.seconds)

    def diagnosis_of(self, answer: Answer) -> Diagnosis | None:
        """The diagnosis an answer names, with its probability."""
        return self.conversation.diagnosis(
            answer, parse_answer(self.conversation.text(answer.token_ids)).diagnosis
        )

    def told(self, answer: Answer, frame: ResizeLongestSide, region: Region | None) -> Prediction:
        """What an answer and the region it asked for come to; None where it asked for none."""
        if region is None:
            shown, mask = _no_region(self.manifest.region.grid), np.zeros(frame.source_hw, np.bool_)
        else:
            shown, mask = region, mask_at_source(region.logits, frame.source_hw)
        return self._prediction(answer, shown, mask, {})

    def _prediction(
        self, answer: Answer, region: Region, mask: NDArray[np.bool_], seconds: dict[str, float]
    ) -> Prediction:
        text = self.conversation.text(answer.token_ids)
        parsed = parse_answer(text)
        return Prediction(
            mask=mask,
            has_region=answer.seg_embedding is not None,
            text=text,
            reasoning=parsed.reasoning,
            diagnosis=self.conversation.diagnosis(answer, parsed.diagnosis),
            target=parsed.target,
            modality=parsed.modality,
            predicted_iou=region.predicted_iou,
            similarity=region.similarity,
            region=region.cells,
            seconds=seconds,
            is_well_formed=parsed.is_well_formed or answer.is_stopped_at_seg,
        )

    def rules(self, *, max_new_tokens: int, is_stopped_at_seg: bool) -> DecodingRules:
        """When an answer of this package ends, and which tokens are looked at on the way."""
        return DecodingRules(
            eos_id=self.conversation.special_id(EOS),
            seg_id=self.conversation.special_id(SEG),
            max_new_tokens=max_new_tokens,
            label_ids=self.conversation.label_ids,
            is_stopped_at_seg=is_stopped_at_seg,
        )


class Drawing(Grounding):
    """Draws the region of an answer as soon as it says [SEG]; `region` is that of all [SEG] so far."""

    def __init__(
        self,
        predictor: Sim4SegPredictor,
        frame: ResizeLongestSide,
        embed: Callable[[], Floats],
        watch: Stopwatch,
    ) -> None:
        """`embed` gives the image embedding when it is wanted: an answer without [SEG] needs none."""
        super().__init__(predictor.slots)
        self._predictor, self._frame, self._embed, self._watch = predictor, frame, embed, watch
        self._states: list[Floats] = []
        self._image_tokens = np.zeros((0, STATE), np.float32)
        self.region: Region | None = None

    def begin(self, handed_on: Floats) -> None:
        """Keep the image tokens."""
        self._image_tokens = handed_on

    def seg_said(self, state: Floats) -> None:
        """Draw what all [SEG] so far ask for, and let the mask have its say."""
        self._states.append(state)
        predictor, watch = self._predictor, self._watch
        with watch.stage("image_encoder"):
            embedding = self._embed()
        with watch.stage("mask_decoder"):
            states = np.concatenate(self._states)
            self.region = predictor.find_region(embedding, self._image_tokens, states, self._frame)
        if predictor.is_grounded:
            self.learn(region_words(self.region.logits, self._frame))


def _no_region(grid: int) -> Region:
    nowhere = np.zeros((grid, grid), np.float32)
    return Region(np.zeros((0, 0), np.float32), 0.0, nowhere, nowhere > 0)
