"""The contract imports nothing heavy, and the stub keeps to it."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from inference import prompts
from inference.contract import Image, Predictor, Prompt
from tests.stub_engine import StubPredictor


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh Python that ran `statement`."""
    program = (
        f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(finished.stdout))


def image_with_a_dark_part() -> Image:
    pixels = np.full((60, 90, 3), 200, np.uint8)
    pixels[10:30, 20:50] = 10
    return Image(pixels)


def test_the_words_load_no_engine() -> None:
    loaded = loaded_by("import inference.contract, inference.errors, inference.settings")
    assert "numpy" in loaded
    assert not loaded & {"onnxruntime", "tokenizers", "torch", "pydicom", "sqlalchemy"}


def test_images_and_prompts_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Prompt("Where is it?").query = "Elsewhere?"  # type: ignore[misc]


def test_the_stub_outlines_the_dark_part() -> None:
    predictor: Predictor = StubPredictor()
    prediction = predictor.predict(image_with_a_dark_part(), Prompt("Where is the lesion?"))
    expected = np.zeros((60, 90), bool)
    expected[10:30, 20:50] = True
    assert np.array_equal(prediction.mask, expected)
    assert prediction.is_well_formed
    assert (prediction.modality, prediction.target) == ("breast ultrasound image", "breast lesion")
    assert prediction.diagnosis is not None
    chances = [prediction.diagnosis.confidence, *(chance for _, chance in prediction.diagnosis.alternatives)]
    assert sum(chances) == pytest.approx(1)
    assert prediction.region.shape == (16, 16)
    assert prediction.region[2:5, 4:8].all()


def test_the_stub_outlines_nothing_on_a_flat_image() -> None:
    prediction = StubPredictor().predict(Image(np.zeros((8, 9, 3), np.uint8)), Prompt("What?"))
    assert not prediction.has_region
    assert not prediction.mask.any()
    assert prediction.text.startswith("There is nothing to outline.")


@pytest.mark.parametrize("diagnosis", [*prompts.DIAGNOSES, None])
def test_the_stub_is_the_same_twice(diagnosis: str | None) -> None:
    stub = StubPredictor(diagnosis=diagnosis)
    image = image_with_a_dark_part()
    first, second = stub.segment([image, image], Prompt("What?"), None)
    assert first.text == second.text
    assert np.array_equal(first.mask, second.mask)
    assert (first.diagnosis.label if first.diagnosis else None) == diagnosis
