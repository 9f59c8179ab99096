"""prs-med-s and medseg-r-s as committed: whole, verified, the same twice, and looking where the lesion is.

How well they segment real images stands in their metrics.json; the picture here is synthetic.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dicom_node.samples_ultrasound import make_breast_ultrasound
from inference.contract import Image, Predictor, Prompt
from inference.errors import PackageTampered
from inference.positions import parse_position
from inference.runtime import list_models, open_predictor
from inference.runtime.medseg_r import MedSegRPredictor
from inference.runtime.model_repository import MANIFEST, open_package
from inference.settings import PACKAGES, InferenceSettings

NAMES = ("prs-med-s", "medseg-r-s")
QUESTION = Prompt("Where is the breast lesion in this image?")
CARDS = {"MODEL_CARD.md", "metrics.json", "parity.json", "training_log.md", "tokenizer.json"}
LIMIT_BYTES = 80 * 1000 * 1000  # of all shipped packages


@pytest.fixture(scope="module", params=NAMES)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return open_predictor(request.param, InferenceSettings(threads=1))


def ultrasound() -> tuple[Image, np.ndarray]:
    grey, truth = make_breast_ultrasound()
    return Image(np.repeat(grey[..., None], 3, axis=2)), truth


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def test_the_shipped_packages_are_whole_and_small_together() -> None:
    problems = {info.name: info.problem for info in list_models(InferenceSettings())}
    assert problems == {"medseg-r-s": None, "prs-med-s": None, "sim4seg-s": None}
    for name in NAMES:
        files = set(open_package(PACKAGES, name).manifest.files)
        assert files >= CARDS
        assert {path.name for path in (PACKAGES / name).iterdir()} == files | {MANIFEST}
    assert sum(path.stat().st_size for path in PACKAGES.rglob("*") if path.is_file()) <= LIMIT_BYTES


@pytest.mark.parametrize(
    ("name", "file_name"), [("prs-med-s", "mask_decoder.onnx"), ("medseg-r-s", "segmenter.onnx")]
)
def test_one_flipped_bit_is_refused(tmp_path: Path, name: str, file_name: str) -> None:
    shutil.copytree(PACKAGES / name, tmp_path / name, copy_function=os.symlink)
    target = tmp_path / name / file_name
    content = bytearray(target.read_bytes())
    content[len(content) // 3] ^= 1
    target.unlink()
    target.write_bytes(content)
    with pytest.raises(PackageTampered, match=file_name):
        open_predictor(name, InferenceSettings(model_repository=tmp_path, threads=1))


def test_the_lesion_is_outlined_the_same_twice(predictor: Predictor) -> None:
    image, truth = ultrasound()
    first, second = (predictor.predict(image, QUESTION) for _ in range(2))
    assert first.modality == "breast ultrasound image"
    assert overlap(first.mask, truth) > 0.6
    assert np.array_equal(first.mask, second.mask)
    assert first.text == second.text
    assert first.diagnosis is None, "neither of them was made to say one"


def test_the_position_is_said_in_words() -> None:
    image, _ = ultrasound()
    said = open_predictor("prs-med-s", InferenceSettings(threads=1)).predict(image, QUESTION)
    parsed = parse_position(said.text)
    assert parsed.zones, said.text
    assert not parsed.is_absent


def test_a_report_about_another_place_moves_no_finding_into_existence() -> None:
    image, truth = ultrasound()
    model = open_predictor("medseg-r-s", InferenceSettings(threads=1))
    assert isinstance(model, MedSegRPredictor)
    report = "The lesion lies in the upper left of the image. Its texture is homogeneous. Its shape is round."
    told = model.predict(image, Prompt(QUESTION.query, report))
    assert overlap(told.mask, truth) > 0.4
