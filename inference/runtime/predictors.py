"""Sim4SegPredictor: engines wired so that image and prompt give a prediction."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.contract import Image, Prediction, Prompt
from inference.errors import InputRejected
from inference.postprocess import mask_at_source
from inference.preprocess import ResizeLongestSide, fit
from inference.prompts import EOS, SEG, parse_answer
from inference.runtime.conversation import Conversation
from inference.runtime.engine import Array, Engine, require_output
from inference.runtime.generate import Answer, DecodingRules, Floats, generate
from inference.runtime.model_repository import ModelPackage
from inference.runtime.onnx_engine import OnnxEngine
from inference.runtime.sim4seg_graphs import EMBEDDING, LOW_RES, STATE, OpenEngine, open_engines
from inference.settings import InferenceSettings

Clock = Callable[[], float]


@dataclass(frozen=True, eq=False)
class Region:
    """What the mask decoder gives, in the padded square."""

    logits: Floats  # (256, 256)
    predicted_iou: float
    similarity: Floats  # (grid, grid), 0..1
    cells: NDArray[np.bool_]  # (grid, grid)


class Sim4SegPredictor:
    """Sim4Seg (arXiv 2511.06665) on exported graphs: the answer first, then the mask it asks for."""

    def __init__(
        self,
        package: ModelPackage,
        settings: InferenceSettings,
        *,
        clock: Clock = time.perf_counter,
        open_engine: OpenEngine | None = None,
    ) -> None:
        """Load the four graphs of `package`, check that they fit together, and run each once.

        Raises
        ------
        PackageTampered, PackageInvalid, EngineRejected, OutputInvalid
        """
        self.manifest = package.manifest
        self.name, self.version = self.manifest.model.name, self.manifest.model.version
        self.digest = package.digest
        self.conversation = Conversation(package.read(self.manifest.text.tokenizer), self.manifest)
        self.engines = open_engines(package, open_engine or _on_onnx_runtime(settings))
        self.max_new_tokens = settings.max_new_tokens or self.manifest.text.max_new_tokens
        self._clock = clock
        self.warm_up()

    def warm_up(self) -> None:
        """Run every graph once on a black image: the first real image is not the slow one, misfits show now.

        Raises
        ------
        OutputInvalid
        """
        side = self.manifest.input.side
        frame, pixels = self.fit(Image(np.zeros((side, side, 3), np.uint8)))
        rules = self._rules(max_new_tokens=1, is_stopped_at_seg=False)
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
        return self._predict(image, question, is_stopped_at_seg=False)

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """One prediction per image of a series, in order; each image has its own language pass and region.

        Only the tokenised question is shared: the cache, the similarity and the [SEG] state all depend on the
        pixels, so nothing else could be used again without being wrong. With `like` (the key frame's
        prediction) answers end at [SEG]: the mask of `predict` for about four steps instead of about a
        hundred. Memory is bounded: of each image the boolean mask is kept, never its logits.
        """
        question = self.conversation.question_ids(prompt.query)
        return [self._predict(image, question, is_stopped_at_seg=like is not None) for image in images]

    def fit(self, image: Image) -> tuple[ResizeLongestSide, Floats]:
        """Check an image; give its frame and the network input (1, 3, side, side) float32.

        Raises
        ------
        InputRejected
        """
        pixels = image.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputRejected(
                f"An image must be (H, W, 3) uint8 RGB, not {pixels.dtype} of {pixels.shape}; convert it to "
                "display values first."
            )
        square = self.manifest.input
        return fit(pixels, square.side, mean=square.mean, std=square.std)

    def answer(self, pixels: Floats, question: NDArray[np.int64], rules: DecodingRules) -> Answer:
        """The language model's answer about `pixels` (1, 3, side, side) to `question` (1, T)."""
        engines = self.engines
        feeds: dict[str, Array] = {"pixels": pixels, "text_ids": question}
        answer = generate(
            engines.language_prefill, engines.language_step, feeds, rules=rules, clock=self._clock
        )
        cells = self.manifest.region.grid**2
        require_output(engines.language_prefill.name, "image_tokens", answer.image_tokens, (cells, STATE))
        return answer

    def embed(self, pixels: Floats) -> Floats:
        """The image embedding (1, 256, 64, 64) float32 of `pixels` (1, 3, side, side)."""
        encoder = self.engines.image_encoder
        embedding = encoder.run({"pixels": pixels})["image_embedding"]
        return require_output(encoder.name, "image_embedding", embedding, EMBEDDING)

    def find_region(
        self, embedding: Floats, image_tokens: Floats, seg_embedding: Floats, frame: ResizeLongestSide
    ) -> Region:
        """RVLS2M and mask decoder: image tokens and [SEG] state choose cells, the cells prompt the mask."""
        decoder, grid = self.engines.mask_decoder, self.manifest.region.grid
        out = decoder.run(
            {
                "image_embedding": embedding,
                "image_tokens": image_tokens,
                "seg_embedding": seg_embedding,
                "valid_cells": frame.valid_cells(grid),
            }
        )
        name = decoder.name
        return Region(
            logits=require_output(name, "low_res_logits", out["low_res_logits"], (1, 1, LOW_RES, LOW_RES))[
                0, 0
            ],
            predicted_iou=float(
                require_output(name, "iou_predictions", out["iou_predictions"], (1, 1))[0, 0]
            ),
            similarity=require_output(name, "similarity", out["similarity"], (1, grid, grid))[0],
            cells=require_output(name, "region", out["region"], (1, grid, grid))[0] > 0,
        )

    def _predict(self, image: Image, question: NDArray[np.int64], *, is_stopped_at_seg: bool) -> Prediction:
        watch = _Stopwatch(self._clock)
        with watch.stage("total"):
            with watch.stage("preprocess"):
                frame, pixels = self.fit(image)
            rules = self._rules(max_new_tokens=self.max_new_tokens, is_stopped_at_seg=is_stopped_at_seg)
            answer = self.answer(pixels, question, rules)
            watch.seconds.update(language_prefill=answer.prefill_s, language_steps=answer.steps_s)
            if answer.seg_embedding is None:
                grid = self.manifest.region.grid
                region, mask = _no_region(grid), np.zeros(frame.source_hw, np.bool_)
            else:
                with watch.stage("image_encoder"):
                    embedding = self.embed(pixels)
                with watch.stage("mask_decoder"):
                    region = self.find_region(embedding, answer.image_tokens, answer.seg_embedding, frame)
                with watch.stage("postprocess"):
                    mask = mask_at_source(region.logits, frame.source_hw)
        return self._prediction(answer, region, mask, watch.seconds)

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

    def _rules(self, *, max_new_tokens: int, is_stopped_at_seg: bool) -> DecodingRules:
        return DecodingRules(
            eos_id=self.conversation.special_id(EOS),
            seg_id=self.conversation.special_id(SEG),
            max_new_tokens=max_new_tokens,
            label_ids=self.conversation.label_ids,
            is_stopped_at_seg=is_stopped_at_seg,
        )


def _no_region(grid: int) -> Region:
    nowhere = np.zeros((grid, grid), np.float32)
    return Region(np.zeros((0, 0), np.float32), 0.0, nowhere, nowhere > 0)


def _on_onnx_runtime(settings: InferenceSettings) -> OpenEngine:
    def open_engine(name: str, model: bytes) -> Engine:
        return OnnxEngine(
            name, model, execution_providers=settings.execution_providers, threads=settings.threads
        )

    return open_engine


@dataclass
class _Stopwatch:
    """Wall seconds per stage."""

    clock: Clock
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = self.clock()
        yield
        self.seconds[name] = self.clock() - started
