"""The report counts what a predictor that always says the same gets right."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from inference.contract import Diagnosis, Image, Prediction, Prompt
from inference.datasets.folder import load_cases
from inference.errors import InputRejected
from inference.prompts import Findings, write_answer
from inference.training.evaluate import (
    evaluate,
    package_folder,
    plain,
    report_of,
    score_case,
    table,
)
from inference.training.scoring import Score, area_under_curve, hd95
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
            diagnosis=Diagnosis("benign", 0.9, (("malignant", 0.1),)), target=None, modality=None,
            predicted_iou=0.5,
            similarity=np.zeros((16, 16), np.float32), region=np.zeros((16, 16), np.bool_), seconds={},
        )  # fmt: skip

    def segment(self, images: list[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        return [self.predict(image, prompt) for image in images]


class Refuser(BrightPart):
    """Refuses everything."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        raise InputRejected("Not suitable: it is a test.")


def test_the_report_of_a_known_predictor(tmp_path: Path) -> None:
    cases = load_cases(tiny_data.write(tmp_path, ROWS) / "train")
    report = evaluate(BrightPart(), cases)
    busbra, kvasir = report["datasets"]["busbra"], report["datasets"]["kvasirseg"]
    assert busbra["images"] == busbra["images_with_mask"] == busbra["images_with_label"] == 3
    assert busbra["dice"]["mean"] == busbra["giou"]["mean"] == busbra["ciou"]["mean"] == 1
    assert busbra["hd95"]["mean"] == 0
    assert busbra["dice"]["count"] == busbra["hd95_images"] == 3
    assert busbra["balanced_accuracy"]["mean"] == busbra["majority_balanced_accuracy"] == 0.5
    assert busbra["accuracy"]["mean"] == busbra["majority_accuracy"] == pytest.approx(2 / 3)
    assert busbra["ece"]["mean"] == pytest.approx(0.9 - 2 / 3)
    assert busbra["auc"]["mean"] == 0.5  # it always says the same
    assert busbra["recall"] == {"benign": 1.0, "malignant": 0.0}
    assert 0 <= busbra["zone_accuracy"]["mean"] == busbra["text_mask_agreement"]["mean"] < 1
    assert "balanced_accuracy" not in kvasir  # one class says nothing
    assert report["all"]["images"] == 4
    text = table(report)
    assert text.splitlines()[0].split()[:2] == ["data", "set"]
    assert "1.000 (1.000-1.000)" in text


def test_nothing_to_outline_is_to_be_left_alone(tmp_path: Path) -> None:
    rows = (("val", "fracatlas", "f1", "no fracture", ""), ("val", "fracatlas", "f2", "fracture", ""))
    root = tiny_data.write(tmp_path, rows)
    PILImage.new("L", (120, 90)).save(root / "train" / "f1-mask.png")
    cases = load_cases(root / "train")
    report = evaluate(BrightPart(), cases)["datasets"]["fracatlas"]
    assert report["absent_images"] == 1
    assert report["absent_rejection"]["mean"] == 0  # the bright part is there all the same
    assert report["giou"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "count": 1}
    assert report["giou_with_absent"]["mean"] == 0.5
    refused = evaluate(Refuser(), cases)["datasets"]["fracatlas"]
    assert refused["refused"] == 2
    assert refused["absent_rejection"]["mean"] == 1
    assert refused["giou"]["mean"] == 0
    assert refused["giou_with_absent"]["mean"] == 0.5
    assert refused["accuracy"]["mean"] == 0


def test_rows_without_mask_or_label_and_of_unknown_sets(tmp_path: Path) -> None:
    rows = (("test", "elsewhere", "e1", "benign", ""), ("test", "elsewhere", "e2", "", ""))
    root = tiny_data.write(tmp_path, rows)
    manifest = root / "train" / "manifest.csv"
    text = manifest.read_text().replace("train/e1-mask.png", "")
    manifest.write_text(text)
    report = evaluate(BrightPart(), load_cases(root / "train"))["datasets"]["elsewhere"]
    assert report["images"] == 2
    assert report["images_with_mask"] == 1
    assert report["images_with_label"] == 1
    assert report["dice"]["count"] == 1


def test_what_a_variant_gains_is_counted_image_by_image(tmp_path: Path) -> None:
    cases = load_cases(tiny_data.write(tmp_path, ROWS) / "train")

    def scores(*predictors: BrightPart) -> list[Score]:
        asked = [plain(predictor, is_positional=False) for predictor in predictors]
        return [score_case(ask, case, is_positional=False) for ask, case in zip(asked, cases, strict=True)]

    right, wrong = BrightPart(), Refuser()
    before, now = scores(wrong, wrong, right, right), scores(right, wrong, right, wrong)
    report = report_of(now, before)
    assert report["datasets"]["busbra"]["dice_gain"]["mean"] == pytest.approx(1 / 3)
    assert report["datasets"]["kvasirseg"]["dice_gain"]["mean"] == -1
    assert report["all"]["dice_gain"] == {"mean": 0.0, "low": -0.75, "high": 0.75, "count": 4}
    assert "dice_gain" not in report_of(now)["all"]


def test_outlines_apart() -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[10:20, 10:20] = True
    moved = np.roll(mask, 7, axis=1)
    assert hd95(mask, moved) == 7
    assert hd95(mask, mask) == 0
    assert hd95(mask, mask & False) is None


def test_ranks_and_calibration() -> None:
    chances, is_positive = np.array([0.9, 0.8, 0.3, 0.3]), np.array([True, False, True, False])
    assert area_under_curve(chances, is_positive) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert area_under_curve(chances, np.array([True] * 4)) == 0.5


def test_a_package_by_name_or_by_folder(tmp_path: Path) -> None:
    assert package_folder("tiny", tmp_path) == tmp_path / "tiny"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.toml").touch()
    assert package_folder(str(tmp_path / "here"), Path("elsewhere")) == tmp_path / "here"
