"""Answers of several questions that take their steps together say what each would have said alone."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference.errors import DeviceOutOfMemory
from inference.export.full_size_check import Step
from inference.export.graphs import step_spec
from inference.export.to_onnx import export_graph
from inference.models.lvlm import LanguageConfig, LanguageModel
from inference.runtime.batcher import DeviceTurn, MicroBatcher
from inference.runtime.engine import AroundEngine, Engine, Tensors
from inference.runtime.generate import Answer, DecodingRules, Sampling, generate_paths
from inference.runtime.language_cache import AnswerCache, LanguageSteps, cache_names
from inference.runtime.onnx_engine import OnnxEngine

CONFIG = LanguageConfig(vocabulary=24, width=32, depth=2, heads=4, mlp_width=48, kv_heads=2)
EOS, SEG = 2, 5


class First:
    """A first pass over nothing but a prompt, in PyTorch."""

    name = "first"

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @torch.no_grad()
    def run(self, feeds: Tensors) -> dict[str, Any]:
        """text_ids (1, T)."""
        states, kept = self.model(self.model.embed_tokens(torch.from_numpy(feeds["text_ids"])))
        caches = [part.numpy() for layer in kept for part in layer]
        last = states[:, -1]
        return {
            "logits": self.model.lm_head(last).numpy(), "state_embedding": last.numpy(),
            "image_tokens": np.zeros((1, 1), np.float32),
            **dict(zip(cache_names(CONFIG.depth, "prefix"), caches, strict=True)),
        }  # fmt: skip


class Counting(AroundEngine):
    """The step, its batches counted; slow enough that others wait for it."""

    def __init__(self, engine: Engine, most: int = 99) -> None:
        super().__init__(engine)
        self.batches: list[int] = []
        self.most = most

    def run(self, feeds: Tensors) -> dict[str, Any]:
        """As the engine's, unless there are more rows than `most`."""
        rows = len(feeds["token_ids"])
        if rows > self.most:
            raise DeviceOutOfMemory("too many")
        self.batches.append(rows)
        threading.Event().wait(0.003)
        return self._engine.run(feeds)

    def warm_up(self, feeds: Tensors) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(CONFIG).eval()


@pytest.fixture(scope="module")
def graph(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("step") / "language_step.onnx"
    export_graph(step_spec(Step(model), CONFIG, ("logits", "state_embedding")), path)
    return path


@pytest.fixture
def step(graph: Path) -> Counting:
    return Counting(OnnxEngine("language_step.onnx", graph.read_bytes(), threads=1))


def answers(model: LanguageModel, step: Engine, seed: int, paths: int = 1) -> list[Answer]:
    rng = np.random.default_rng(seed)
    text = rng.integers(6, 24, (1, 3 + seed % 5))
    samplings = [None, *(Sampling(temperature=1.5, seed=seed + path) for path in range(1, paths))]
    rules = DecodingRules(EOS, SEG, 6 + 3 * (seed % 4))
    first: Any = First(model)
    return generate_paths(
        first, step, {"text_ids": text}, rules=rules, clock=lambda: 0.0, samplings=samplings
    )


def side_by_side(model: LanguageModel, step: Engine, paths: Sequence[int]) -> list[list[Answer]]:
    found: dict[int, list[Answer]] = {}

    def ask(seed: int) -> None:
        found[seed] = answers(model, step, seed, paths[seed])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[seed] for seed in range(len(paths))]


def same(ours: Sequence[Answer], theirs: Sequence[Answer]) -> None:
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("paths", [[1] * 8, [2] * 6, [1, 2, 1, 3, 1, 2]], ids=["one", "two", "mixed"])
def test_together_they_say_what_each_says_alone(
    model: LanguageModel, step: Counting, paths: list[int]
) -> None:
    alone = [answers(model, step, seed, count) for seed, count in enumerate(paths)]
    step.batches.clear()
    batcher = MicroBatcher(step, DeviceTurn(), max_batch=8, joining=LanguageSteps())
    for ours, theirs in zip(side_by_side(model, batcher, paths), alone, strict=True):
        same(ours, theirs)
    assert max(step.batches) > max(paths)
    assert sum(step.batches) < sum(paths) * 20


def test_where_memory_ends_fewer_go_together(model: LanguageModel, step: Counting) -> None:
    alone = [answers(model, step, seed) for seed in range(8)]
    step.batches.clear()
    step.most = 2
    batcher = MicroBatcher(step, DeviceTurn(), max_batch=8, joining=LanguageSteps())
    for ours, theirs in zip(side_by_side(model, batcher, [1] * 8), alone, strict=True):
        same(ours, theirs)
    assert max(step.batches) == 2


def test_prefixes_are_joined_anew_only_when_somebody_comes_or_goes() -> None:
    joining = LanguageSteps()
    feeds = [step_feeds(length) for length in (3, 5, 4)]
    first = joining.join(feeds)
    assert first["prefix_keys.0"].shape == (3, 1, 5, 2)
    assert joining.join(feeds)["prefix_keys.0"] is first["prefix_keys.0"]
    fewer = joining.join(feeds[::2])
    assert fewer["prefix_keys.0"].shape == (2, 1, 4, 2)
    assert fewer["prefix_lengths"].tolist() == [3, 4]
    assert (fewer["prefix_values.0"][0, :, 3:] == 0).all()


def test_what_was_said_stands_at_the_end_and_is_taken_apart_again() -> None:
    joining = LanguageSteps()
    feeds = [step_feeds(4, said=0), step_feeds(4, said=2)]
    together = joining.join(feeds)
    assert together["past_lengths"].tolist() == [0, 2]
    assert (together["past_keys.0"][0] == 0).all()
    longer = np.arange(12, dtype=np.float32).reshape(2, 1, 3, 2)
    parts = joining.split({"present_keys.0": longer, "logits": np.array([[1.0], [2.0]])}, feeds)
    assert parts[0]["present_keys.0"].tolist() == longer[:1, :, 2:].tolist()
    assert parts[1]["present_keys.0"].tolist() == longer[1:].tolist()
    assert [part["logits"].tolist() for part in parts] == [[[1.0]], [[2.0]]]


def step_feeds(length: int, said: int = 1) -> Mapping[str, Any]:
    first = {name: np.ones((1, 1, length, 2), np.float32) for name in cache_names(1, "prefix")}
    return AnswerCache.having_said(first, said).feeds(np.array([[7]], np.int64))
