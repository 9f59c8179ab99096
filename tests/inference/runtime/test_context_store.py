"""What a graph said of an image is remembered by content: same numbers, no second run, bounded memory."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.contract import Image, Prompt
from inference.runtime import open_predictor
from inference.runtime.context_store import ContextStore, RememberingEngine, content_key
from inference.runtime.engine import Array, Tensors, TensorSpec
from inference.runtime.predictors import Sim4SegPredictor
from inference.runtime.scaling import ScaledPredictor
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package
from tests.inference.runtime.test_predictors import bright_box, same

FLOATS = TensorSpec("float32", (1, 2))
ITEM = 4 * 2  # bytes of what Doubling gives for one input of two numbers


class Doubling:
    """An engine that doubles; it counts its runs."""

    name = "doubling.onnx"
    inputs: Mapping[str, TensorSpec] = {"x": FLOATS}
    outputs: Mapping[str, TensorSpec] = {"y": FLOATS}

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: Tensors) -> dict[str, Array]:
        self.runs += 1
        return {"y": feeds["x"] * 2}

    def warm_up(self, feeds: Tensors) -> None:
        self.run(feeds)


def feeds(number: float) -> dict[str, Array]:
    return {"x": np.full((1, 2), number, np.float32)}


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 12))
def test_whatever_is_asked_the_answer_is_right_and_the_memory_bounded(
    asked: Sequence[int], most: int
) -> None:
    engine, store = Doubling(), ContextStore(most * ITEM)
    remembering = RememberingEngine(engine, store, "a")
    recent: list[int] = []  # what a list that drops the one used longest ago would hold
    for number in asked:
        before = engine.runs
        assert (remembering.run(feeds(number))["y"] == 2 * number).all()
        assert (engine.runs == before) == (number in recent)
        recent = [*(each for each in recent if each != number), number][-most or len(recent) + 1 :]
        recent = recent if most else []
        assert store.held_bytes == len(store) * ITEM == len(recent) * ITEM
    assert remembering.runs + remembering.remembered == len(asked)


def test_what_is_kept_cannot_be_changed() -> None:
    remembering = RememberingEngine(Doubling(), ContextStore(1 << 20), "a")
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            remembering.run(feeds(1))["y"][0, 0] = 7


def test_the_key_tells_content_shape_type_name_and_identity_apart() -> None:
    number = np.zeros((1, 4), np.float32)
    store = ContextStore(0)
    keys = {
        content_key(store, identity, {name: value})
        for identity in ("package one", "package two")
        for name in ("x", "z")
        for value in (
            number,
            number.reshape(2, 2),
            number.view(np.int32),
            number + 1,
            number.astype(np.float64),
        )
    }
    assert len(keys) == 20
    both = {"z": number.copy(), "x": number}
    assert content_key(store, "a", {"x": number, "z": number}) == content_key(store, "a", both)


def test_an_array_that_was_filled_anew_has_another_key() -> None:
    store = ContextStore(0)
    image = np.zeros((1, 256, 256), np.float32)
    first = store.digest_of(image)
    assert store.digest_of(image) == first
    image.flags.writeable = True
    image += 1
    assert store.digest_of(image) != first


def test_numbers_that_cannot_be_right_are_not_remembered() -> None:
    engine = Doubling()
    remembering = RememberingEngine(engine, ContextStore(1 << 20), "a")
    for _ in range(2):
        assert np.isnan(remembering.run(feeds(np.nan))["y"]).all()
    assert engine.runs == 2


@pytest.fixture
def served(settings: InferenceSettings) -> Sim4SegPredictor:
    opened = open_predictor("tiny", settings)
    assert isinstance(opened, Sim4SegPredictor)
    return opened


def encoder_runs(predictor: Sim4SegPredictor) -> int:
    assert predictor.serving is not None
    return predictor.serving.spared()["image_encoder"].runs


def test_a_second_question_runs_no_encoder_and_answers_the_same(
    served: Sim4SegPredictor, settings: InferenceSettings
) -> None:
    forgetful = open_predictor("tiny", settings.model_copy(update={"cache_mb": 0}))
    image, _ = bright_box((300, 200), (60, 40, 60, 60))
    before = encoder_runs(served)
    for query in (tiny_package.QUERY, "Where is the lesion?", "Is it malignant?"):
        assert same(served.predict(image, Prompt(query)), forgetful.predict(image, Prompt(query)))
    assert encoder_runs(served) == before + 1
    other, _ = bright_box((300, 200), (60, 40, 60, 61))
    served.predict(other, Prompt(tiny_package.QUERY))
    assert encoder_runs(served) == before + 2
    assert isinstance(forgetful, Sim4SegPredictor)
    assert encoder_runs(forgetful) == 3 + 1  # and the warm-up


def test_the_key_frame_of_a_series_and_test_time_scaling_cost_no_encoder(served: Sim4SegPredictor) -> None:
    boxes = [bright_box((64, 64), (8, 8, 20 + 4 * number, 30))[0] for number in range(3)]
    prompt = Prompt(tiny_package.QUERY)
    first = served.predict(boxes[1], prompt)
    served.segment([boxes[0], boxes[2]], prompt, first)
    before = encoder_runs(served)
    served.predict(boxes[2], prompt)
    ScaledPredictor(served).predict(boxes[2], Prompt("Where is the lesion?"))
    assert encoder_runs(served) == before


def test_little_memory_forgets_and_still_answers(settings: InferenceSettings) -> None:
    predictor = open_predictor("tiny", settings.model_copy(update={"cache_mb": 1}))
    assert isinstance(predictor, Sim4SegPredictor)
    image = Image(bright_box((64, 64), (8, 8, 30, 30))[0].pixels)
    before = encoder_runs(predictor)
    for _ in range(2):
        assert predictor.predict(image, Prompt(tiny_package.QUERY)).has_region
    assert encoder_runs(predictor) == before + 2  # an embedding takes four MiB
