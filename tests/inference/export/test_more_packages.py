"""PRS-Med, MedSeg-R and LISA as packages: graphs equal modules, predictors answer behind the gate."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from inference.contract import Image, Prompt
from inference.datasets.folder import load_cases
from inference.errors import UnsuitableImage
from inference.export.families import FAMILIES
from inference.export.graphs import MaskDecoderGraph
from inference.export.parity import Terms, Tolerance, export_checked
from inference.models.medseg_r import MedSegR
from inference.models.prs_med import PrsMed
from inference.models.sim4seg import Sim4Seg
from inference.reports import Priors
from inference.runtime import open_predictor
from inference.runtime.medseg_r import MODULATIONS, MedSegRPredictor
from inference.runtime.model_repository import open_package
from inference.runtime.prs_med import PrsMedPredictor, expected_iou
from inference.settings import PACKAGES, InferenceSettings
from tests.inference.datasets import tiny_data
from tests.inference.export.test_export import TINY as TINY_SIM4SEG
from tests.inference.training.test_more_stages import MEDSEG, PRS

LOOSE = Tolerance(relative_error=0.1, mask_dice=0, lowest_mask_dice=0, same_text=0, same_diagnosis=0)
REPORT = (
    "Breast ultrasound image. The breast lesion is in the upper left of the image, oval with a smooth margin."
)


def lesion(hw: tuple[int, int] = (90, 140)) -> Image:
    """A dark disc in smooth speckle: nothing an unsuitable image would show."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    disc = (rows - hw[0] / 2) ** 2 + (columns - hw[1] / 2) ** 2 < (min(hw) / 4) ** 2
    grey = np.where(disc, 40, 120) + rows // 4 + rng.integers(-9, 9, hw)
    return Image(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))


def make(tmp: Path, family: str, model: nn.Module) -> Path:
    folder = tmp / f"{family.replace('_', '-')}-s"
    folder.mkdir()
    shutil.copy(PACKAGES / "sim4seg-s" / "tokenizer.json", folder)
    records = load_cases(tiny_data.write(tmp / "data") / "train")[:1]
    terms = Terms("1.0.0", int8=False, tolerance=LOOSE, family=family, top_k=0)
    report = export_checked(model, folder, records, terms)
    assert max(report["relative_error"].values()) < 0.01
    assert report["end_to_end"]["mask_dice"] > 0.99
    assert report["end_to_end"]["same_text"] == 1
    terms.write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def prs_med(tmp_path_factory: pytest.TempPathFactory) -> PrsMedPredictor:
    torch.manual_seed(2)  # with 0 two words tie, and noise decides
    folder = make(tmp_path_factory.mktemp("prs"), "prs_med", PrsMed(PRS))
    settings = InferenceSettings(model_repository=folder.parent, threads=1, max_new_tokens=12)
    opened = open_predictor(folder.name, settings)
    assert isinstance(opened, PrsMedPredictor)
    return opened


@pytest.fixture(scope="module")
def medseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = MedSegR(MEDSEG)
    for adapter in model.adapters.values():
        nn.init.constant_(adapter.gates, 0.7)
    return make(tmp_path_factory.mktemp("medseg"), "medseg_r", model)


def open_medseg(folder: Path, removed: tuple[str, ...] = ()) -> MedSegRPredictor:
    settings = InferenceSettings(model_repository=folder.parent, threads=1)
    return MedSegRPredictor(open_package(folder.parent, folder.name), settings).without(removed)


def test_prs_med_answers(prs_med: PrsMedPredictor) -> None:
    image = lesion()
    prediction = prs_med.predict(image, Prompt("Where is the lesion?"))
    assert prediction.mask.shape == image.pixels.shape[:2]
    assert prediction.text
    assert prediction.diagnosis is None
    assert 0 <= prediction.predicted_iou <= 1
    assert {"image_encoder", "language_prefill", "language_steps", "mask_decoder", "total"} <= set(
        prediction.seconds
    )


def test_the_question_steers_prs_med_and_the_answers_length_does_not(prs_med: PrsMedPredictor) -> None:
    image = lesion()
    question = prs_med.conversation.question_ids("Where is the lesion?")
    masks = [prs_med._answer(image, question, max_new_tokens=count).mask for count in (1, 12)]
    assert np.array_equal(*masks)
    other = prs_med.conversation.question_ids("Is there a polyp? Say so.")
    frame, pixels = prs_med.fit(image)
    states = [
        prs_med.engines.language_prefill.run({"pixels": pixels, "text_ids": ids})["hidden_states"]
        for ids in (question, other)
    ]
    logits = [prs_med.draw(prs_med.embed(pixels), state)[0] for state in states]
    assert not np.allclose(*logits)
    assert frame.source_hw == image.pixels.shape[:2]


def test_a_blank_image_of_a_series_is_passed_over(prs_med: PrsMedPredictor) -> None:
    blank = Image(np.zeros((80, 80, 3), np.uint8))
    with pytest.raises(UnsuitableImage, match="blank"):
        prs_med.predict(blank, Prompt("Where?"))
    first, second = prs_med.segment([blank, lesion()], Prompt("Where?"), None)
    assert first.text.startswith("Not suitable")
    assert not first.has_region
    assert second.mask.shape == (90, 140)


def test_expected_iou() -> None:
    sure = np.full((4, 4), -40, np.float32)
    assert expected_iou(sure) == 0
    sure[:2] = 40
    assert expected_iou(sure) == pytest.approx(1)
    assert expected_iou(sure / 40) < 0.7


@pytest.mark.parametrize(("iou", "is_drawn"), [(0.14, False), (0.16, True)])
def test_medseg_r_outlines_nothing_that_it_does_not_believe(
    medseg: Path, monkeypatch: pytest.MonkeyPatch, iou: float, is_drawn: bool
) -> None:
    predictor, image = open_medseg(medseg), lesion()
    logits = np.full((256, 256), 5, np.float32)
    monkeypatch.setattr(predictor, "_run", lambda *_: (logits, iou, 0))
    prediction = predictor.outline(image, Priors())
    assert prediction.has_region is is_drawn
    assert prediction.mask.all() == is_drawn
    assert (prediction.text == "Nothing is outlined.") is not is_drawn


def test_medseg_r_reads_a_report_and_does_without(medseg: Path) -> None:
    predictor, image = open_medseg(medseg), lesion()
    plain = predictor.predict(image, Prompt("Segment."))
    assert plain.mask.shape == image.pixels.shape[:2]
    ids = [np.zeros((1, 3, 16), np.int64), np.full((1, 3, 16), 9)]
    pixels = predictor.fit(image)[1]
    logits = [predictor._run(pixels, one)[0] for one in ids]
    assert not np.allclose(*logits)
    told = predictor.predict(image, Prompt("Segment.", report=REPORT))
    assert told.text in (f"The {told.target} is outlined.", "Nothing is outlined.", "The target is outlined.")


def test_each_modulation_can_be_removed_at_run_time(medseg: Path) -> None:
    image, ids = lesion(), np.full((1, 3, 16), 9)
    everything, *others = (open_medseg(medseg, removed) for removed in ((), *((n,) for n in MODULATIONS)))
    pixels = everything.fit(image)[1]
    whole = everything._run(pixels, ids)[0]
    for predictor in others:
        assert not np.allclose(predictor._run(pixels, ids)[0], whole)


def test_lisas_graph_knows_no_region() -> None:
    torch.manual_seed(1)
    model = Sim4Seg(replace(TINY_SIM4SEG, top_k=0)).eval()
    embedding, seg, tokens = torch.randn(1, 256, 64, 64), torch.randn(2, 256), torch.randn(256, 256)
    with torch.no_grad():
        graph = MaskDecoderGraph(model, (64, 64)).eval()
        masks, iou, _, region = graph(embedding, tokens, seg, torch.ones(16, 16))
        own = model.draw(embedding.expand(2, -1, -1, -1), seg, torch.ones(2, 16, 16))
    assert not region.any()
    torch.testing.assert_close((masks, iou), own, rtol=1e-4, atol=1e-5)


def test_every_family_can_be_opened() -> None:
    from inference.runtime import FAMILIES as SERVED

    assert set(FAMILIES) <= set(SERVED)
    for family in FAMILIES.values():
        assert SERVED[family.name][1] == family.predictor.__name__
