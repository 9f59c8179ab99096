"""Several jobs ask one model: each gets its own answer; what one of them breaks costs the others nothing."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.model_process import ModelAttempt, ModelProcess, ModelStopped
from dicom_node.predictors import WorkerModels, surplus
from dicom_node.settings import load_settings
from inference.contract import Image, Prediction, Prompt
from inference.runtime.stub_predictor import darkest_part
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package
from tests.stub_engine import write_stub_package

MIB = 1 << 20
PLAIN = "Is there a lesion?"
Asking = Future[Prediction]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stub that may misbehave, and a real package."""
    repository = write_stub_package(tmp_path_factory.mktemp("models"))
    tiny_package.write_package(repository / "tiny", tiny_package.train_tokenizer())
    return repository


@pytest.fixture(scope="module")
def opened(models: Path) -> Iterator[ModelProcess]:
    settings = InferenceSettings(model_repository=models, test_mode=True, threads=1)
    process = ModelProcess("sim4seg-s", settings, 400 * MIB, at_once=8)
    yield process
    process.close()


@pytest.fixture
def process(opened: ModelProcess) -> ModelProcess:
    opened.open()
    return opened


def image(number: int) -> Image:
    """No two have the same darkest part."""
    pixels = np.full((40, 30, 3), 200, np.uint8)
    pixels[number : number + 6, 5:20] = 10
    return Image(pixels)


def together(process: ModelProcess, asked: list[tuple[ModelAttempt, int, str]]) -> list[Asking]:
    """Ask all of it in one call to the process: the first question is held until the others wait."""
    pool, calls = ThreadPoolExecutor(len(asked) + 1), process._calls
    futures: list[Asking] = []
    with process._opening:  # which every call takes first
        held = pool.submit(ModelAttempt(process).predict, image(0), Prompt(PLAIN))
        while not calls._is_led:
            threading.Event().wait(0.001)
        for count, (attempt, number, query) in enumerate(asked, start=1):
            futures.append(pool.submit(attempt.predict, image(number), Prompt(query)))
            while len(calls._waiting) < count:
                threading.Event().wait(0.001)
    held.result(60)
    pool.shutdown(wait=False)
    return futures


def is_right(future: Asking, number: int) -> bool:
    return bool((future.result(60).mask == darkest_part(image(number)).mask).all())


def test_each_of_several_jobs_gets_the_answer_to_its_own_image(process: ModelProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(ModelAttempt(process).predict, image(number), Prompt(PLAIN)) for number in range(24)
        ]
        assert all(is_right(future, number) for number, future in enumerate(futures))


def test_a_crash_costs_only_the_job_that_asked_for_it(process: ModelProcess) -> None:
    asked = [(ModelAttempt(process), number, PLAIN) for number in range(1, 4)]
    first, bad, second, third = together(
        process, [asked[0], (ModelAttempt(process), 9, "stub segfault"), *asked[1:]]
    )
    with pytest.raises(ModelStopped, match="signal 11"):
        bad.result(60)
    assert all(is_right(future, number) for number, future in ((1, first), (2, second), (3, third)))


def test_a_job_that_hangs_is_ended_at_its_own_time(process: ModelProcess) -> None:
    slow = ModelAttempt(process, left_s=1.0)
    hung, fine = together(process, [(slow, 1, "stub sleep 100"), (ModelAttempt(process), 2, PLAIN)])
    with pytest.raises(ModelStopped):
        hung.result(60)
    assert is_right(fine, 2)


def test_a_job_that_is_cancelled_ends_alone(process: ModelProcess) -> None:
    cancelled = ModelAttempt(process)
    ended, fine = together(process, [(cancelled, 1, "stub sleep 100"), (ModelAttempt(process), 2, PLAIN)])
    while process.is_idle:  # until both are asked
        threading.Event().wait(0.01)
    cancelled.stop()
    with pytest.raises(ModelStopped):
        ended.result(60)
    assert is_right(fine, 2)
    with pytest.raises(ModelStopped, match="told to stop"):
        cancelled.predict(image(1), Prompt(PLAIN))


def test_a_second_question_costs_no_encoder_and_room_is_made(models: Path, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        f"[inference]\nmodel_repository = '{models}'\ntest_mode = true\nthreads = 1\n"
        "[jobs]\nall_models_memory_mb = 1\n"
    )
    worker_models = WorkerModels(load_settings(tmp_path))
    stub = worker_models.open("sim4seg-s")
    assert stub.predict(image(1), Prompt(PLAIN)).has_region
    tiny = worker_models.open("tiny", job_id="first")
    before = tiny.spared()["image_encoder"]["runs"]
    bright = Image(255 - image(3).pixels)
    for job_id in ("first", "second"):
        asked = worker_models.open("tiny", job_id=job_id)
        assert asked.predict(bright, Prompt(f"What does {job_id} see?")).has_region
        worker_models.forget(job_id)
    assert tiny.spared()["image_encoder"]["runs"] == before + 1
    assert worker_models._processes["sim4seg-s"].footprint_bytes == 0  # closed for the other
    assert worker_models._processes["tiny"].footprint_bytes > MIB
    assert stub.predict(image(1), Prompt(PLAIN)).has_region  # and opened again, for it is needed
    worker_models.close()


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), min_size=1), st.integers(0, 40))
def test_those_used_longest_ago_go_and_no_more_than_needed(footprints: dict[str, int], most: int) -> None:
    keep = list(footprints)[-1]
    gone = surplus(footprints, most, keep=keep)
    left = sum(footprint for name, footprint in footprints.items() if name not in gone)
    assert keep not in gone
    if gone:
        assert left + footprints[gone[-1]] > most  # without the last to go it would not fit
    if most:
        assert left <= max(most, footprints[keep])
    else:
        assert gone == []
