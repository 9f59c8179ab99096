"""The committed model package: whole, verified, the same twice, and looking where the lesion is.

How well it segments real images is measured in training and stands in its metrics.json; the picture here
is synthetic, so that these tests need nothing but the repository.
"""

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from dicom_node.samples_ultrasound import LESION_CENTRE, LESION_RADII, make_breast_ultrasound
from inference.contract import Image, Prediction, Prompt
from inference.errors import PackageTampered
from inference.prompts import TARGETS
from inference.runtime import list_models, open_predictor
from inference.runtime.batcher import MicroBatcher, Outputs
from inference.runtime.engine import Tensors
from inference.runtime.language_cache import LanguageSteps
from inference.runtime.model_repository import MANIFEST, open_package
from inference.runtime.predictors import Sim4SegPredictor
from inference.settings import PACKAGES, InferenceSettings

NAME = "sim4seg-s"
PROMPT = Prompt("Outline the breast lesion in this ultrasound image. Is it benign or malignant?")
LIMIT_BYTES = 40 * 1000 * 1000
CARDS = {"MODEL_CARD.md", "metrics.json", "parity.json", "training_log.md", "tokenizer.json"}


@pytest.fixture(scope="module")
def sim4seg_s() -> Sim4SegPredictor:
    opened = open_predictor(NAME, InferenceSettings(threads=1))
    assert isinstance(opened, Sim4SegPredictor)
    return opened


def breast_ultrasound(
    source_hw: tuple[int, int], centre: tuple[float, float], radii: tuple[int, int]
) -> Image:
    """The demonstration's ultrasound, moved and stretched: `centre` is a fraction of height and width."""
    grey, _ = make_breast_ultrasound()
    pad = 3 * max(grey.shape)
    wide = PILImage.fromarray(np.pad(grey, pad, mode="symmetric"))
    across, down = LESION_RADII[1] / radii[1], LESION_RADII[0] / radii[0]
    left = LESION_CENTRE[1] + pad - centre[1] * source_hw[1] * across
    top = LESION_CENTRE[0] + pad - centre[0] * source_hw[0] * down
    size = (source_hw[1], source_hw[0])
    matrix = (across, 0.0, left, 0.0, down, top)
    moved = wide.transform(size, PILImage.Transform.AFFINE, matrix, PILImage.Resampling.BILINEAR)
    return Image(np.repeat(np.asarray(moved)[..., None], 3, axis=2))


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean() / mask.shape[0]), float(columns.mean() / mask.shape[1])


def same(first: Prediction, second: Prediction) -> bool:
    return (first.text, first.diagnosis) == (second.text, second.diagnosis) and all(
        np.array_equal(getattr(first, part), getattr(second, part))
        for part in ("mask", "similarity", "region")
    )


def test_the_package_is_whole_and_small() -> None:
    (info,) = [model for model in list_models(InferenceSettings()) if model.name == NAME]
    assert info.problem is None
    files = set(open_package(PACKAGES, NAME).manifest.files)
    assert files >= CARDS
    on_disk = {path.name: path.stat().st_size for path in (PACKAGES / NAME).iterdir()}
    assert set(on_disk) == files | {MANIFEST}
    assert sum(on_disk.values()) <= LIMIT_BYTES


@pytest.mark.parametrize(
    "file_name",
    [
        "image_encoder.onnx",
        "language_prefill.onnx",
        "language_step.onnx",
        "mask_decoder.onnx",
        "tokenizer.json",
    ],
)
def test_one_flipped_bit_is_refused(tmp_path: Path, file_name: str) -> None:
    shutil.copytree(PACKAGES / NAME, tmp_path / NAME, copy_function=os.symlink)
    target = tmp_path / NAME / file_name
    content = bytearray(target.read_bytes())
    content[len(content) // 3] ^= 1
    target.unlink()
    target.write_bytes(content)
    with pytest.raises(PackageTampered, match=file_name):
        open_predictor(NAME, InferenceSettings(model_repository=tmp_path, threads=1))


def test_questions_that_take_their_steps_together_are_answered_as_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = open_predictor(NAME, InferenceSettings(threads=1, max_answers=4))
    joined: list[int] = []
    join = LanguageSteps.join
    monkeypatch.setattr(
        LanguageSteps, "join", lambda self, feeds: joined.append(len(feeds)) or join(self, feeds)
    )
    images = [breast_ultrasound((300, 400), (0.4, 0.3 + 0.1 * i), (40, 60)) for i in range(4)]
    alone = [predictor.predict(image, PROMPT) for image in images]
    joined.clear()
    monkeypatch.setattr(MicroBatcher, "run", met_at_the_first_step(len(images)))
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(lambda image: predictor.predict(image, PROMPT), images))
    assert len(joined) > 10
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.text == theirs.text
        assert (ours.mask ^ theirs.mask).sum() <= 0.002 * theirs.mask.sum()


def met_at_the_first_step(count: int) -> Callable[[MicroBatcher, Tensors], Outputs]:
    """MicroBatcher.run, where the first step of each of `count` threads waits for that of all others."""
    meeting, mine, run = threading.Barrier(count), threading.local(), MicroBatcher.run

    def meet_and_run(batcher: MicroBatcher, feeds: Tensors) -> Outputs:
        if batcher.name == "language_step.onnx" and not hasattr(mine, "has_met"):
            mine.has_met = True
            meeting.wait(60)
        return run(batcher, feeds)

    return meet_and_run


def test_a_breast_lesion_is_found_and_told(sim4seg_s: Sim4SegPredictor) -> None:
    prediction = sim4seg_s.predict(breast_ultrasound((400, 520), (0.42, 0.5), (60, 95)), PROMPT)
    assert prediction.is_well_formed, prediction.text
    assert (prediction.modality, prediction.target) == (
        "breast ultrasound image",
        TARGETS["breast ultrasound image"],
    )
    assert prediction.has_region
    assert prediction.diagnosis is not None
    assert prediction.diagnosis.label in {"benign", "malignant"}
    assert 0 < prediction.diagnosis.confidence <= 1
    area = np.pi * 60 * 95
    assert 0.4 * area < prediction.mask.sum() < 2.5 * area


def test_the_same_image_gives_the_same_prediction(sim4seg_s: Sim4SegPredictor) -> None:
    image = breast_ultrasound((400, 520), (0.42, 0.5), (60, 95))
    first = sim4seg_s.predict(image, PROMPT)
    assert same(first, sim4seg_s.predict(image, PROMPT))
    reopened = open_predictor(NAME, InferenceSettings(threads=1))
    assert same(first, reopened.predict(image, PROMPT))


@pytest.mark.parametrize("source_hw", [(300, 640), (640, 300), (480, 480)])
def test_the_mask_follows_the_lesion(sim4seg_s: Sim4SegPredictor, source_hw: tuple[int, int]) -> None:
    radii = (int(0.1 * source_hw[0]), int(0.24 * source_hw[1]))
    for centre in ((0.35, 0.3), (0.35, 0.7), (0.6, 0.5)):
        prediction = sim4seg_s.predict(breast_ultrasound(source_hw, centre, radii), PROMPT)
        assert prediction.mask.shape == source_hw
        assert prediction.mask.any()
        assert np.allclose(centre_of(prediction.mask), centre, atol=0.08)


def test_a_frame_of_a_series_has_the_mask_of_its_own_prediction(sim4seg_s: Sim4SegPredictor) -> None:
    images = [breast_ultrasound((300, 300), (0.4, across), (40, 55)) for across in (0.35, 0.6)]
    key, other = (sim4seg_s.predict(image, PROMPT) for image in images)
    (frame,) = sim4seg_s.segment(images[1:], PROMPT, key)
    assert other.mask.any()
    assert np.array_equal(frame.mask, other.mask)
    assert frame.diagnosis is None


def test_no_lesion_is_seen_in_the_padding(sim4seg_s: Sim4SegPredictor) -> None:
    prediction = sim4seg_s.predict(breast_ultrasound((200, 600), (0.5, 0.5), (40, 60)), PROMPT)
    assert prediction.has_region
    assert not prediction.similarity[6:].any()  # 200 of 600 rows: five and a third of sixteen cells
    assert not prediction.region[6:].any()


def test_any_question_gives_an_answer(sim4seg_s: Sim4SegPredictor) -> None:
    image = breast_ultrasound((123, 77), (0.5, 0.5), (20, 25))
    prediction = sim4seg_s.predict(image, Prompt("Qu'est-ce que c'est? 何ですか"))
    assert prediction.mask.shape == (123, 77)
    assert prediction.text
