"""The report counts what a predictor that always says the same gets right."""

from pathlib import Path

import numpy as np
import pytest

from inference.contract import Diagnosis, Image, Prediction, Prompt
from inference.datasets.frames import read_image
from inference.datasets.m3ds import load_records
from inference.prompts import Findings, write_answer
from inference.training.evaluate import evaluate, validation_records, zone_agrees
from tests.inference.datasets import tiny_data

ROWS = (
    ("val", "busbra", "b1", "benign", "p1"),
    ("val", "busbra", "b2", "benign", "p2"),
    ("val", "busbra", "b3", "malignant", "p3"),
    ("val", "kvasirseg", "k1", "polyp", ""),
)
TEXT = write_answer(
    Findings(
        "breast ultrasound image",
        "upper left",
        5,
        "oval",
        "wider than tall",
        "smooth",
        "darker than",
        "homogeneous",
        "benign",
    )
)


class BrightPart:
    """Outlines what is bright, which on these pictures is the truth, and always says benign."""

    name, version, digest = "bright", "1", "0" * 64

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        assert prompt.query
        return Prediction(
            mask=image.pixels[..., 0] > 120, has_region=True, text=TEXT, reasoning="",
            diagnosis=Diagnosis("benign", 0.9, ()), target=None, modality=None, predicted_iou=0.5,
            similarity=np.zeros((16, 16), np.float32), region=np.zeros((16, 16), np.bool_), seconds={},
        )  # fmt: skip

    def segment(self, images: list[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        return [self.predict(image, prompt) for image in images]


def test_the_report_of_a_known_predictor(tmp_path: Path) -> None:
    records = load_records(tiny_data.write(tmp_path, ROWS))
    report = evaluate(BrightPart(), records)
    busbra, kvasir = report["datasets"]["busbra"], report["datasets"]["kvasirseg"]
    assert busbra["images"] == 3
    assert busbra["dice"]["mean"] == busbra["giou"]["mean"] == busbra["ciou"]["mean"] == 1
    assert busbra["balanced_accuracy"]["mean"] == busbra["majority_balanced_accuracy"] == 0.5
    assert busbra["accuracy"]["mean"] == busbra["majority_accuracy"] == pytest.approx(2 / 3)
    assert busbra["recall"] == {"benign": 1.0, "malignant": 0.0}
    assert "balanced_accuracy" not in kvasir  # one class says nothing
    assert report["well_formed_rate"] == 1


def test_zone_in_text_against_mask(tmp_path: Path) -> None:
    (record, *_) = load_records(tiny_data.write(tmp_path, ROWS))
    prediction = BrightPart().predict(Image(read_image(record)), Prompt("q"))
    mask = np.zeros((90, 90), np.bool_)
    assert zone_agrees(prediction) in (True, False)
    object.__setattr__(prediction, "mask", mask)
    assert zone_agrees(prediction) is None
    mask[5:10, 5:10] = True
    assert zone_agrees(prediction) is True


def test_some_of_each_data_set_are_the_same_each_time(tmp_path: Path) -> None:
    root = tiny_data.write(tmp_path, ROWS)
    some = validation_records(root, 1)
    assert [record.dataset for record in some] == ["busbra", "kvasirseg"]
    assert some == validation_records(root, 1)
    assert len(validation_records(root, None)) == 4
