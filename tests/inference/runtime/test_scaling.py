"""Candidates are scored without the truth, votes are weighed, regions stay inside the image."""

import numpy as np
import pytest

from inference.contract import Diagnosis, Image, Prompt
from inference.errors import UnsuitableImage
from inference.runtime import open_predictor
from inference.runtime.model_repository import open_package
from inference.runtime.predictors import Region, Sim4SegPredictor
from inference.runtime.scaling import (
    ScaledPredictor,
    Scaling,
    agreement,
    best_cells,
    contrast,
    disturb,
    exchanged,
    oracle_mask,
    pooled,
    shift,
    vote,
)
from inference.settings import PACKAGES, InferenceSettings
from tests.inference.runtime.test_sim4seg_s import PROMPT, breast_ultrasound


def region(seed: int = 0, valid_rows: int = 16) -> Region:
    rng = np.random.default_rng(seed)
    similarity = rng.random((16, 16)).astype(np.float32)
    similarity[valid_rows:] = 0
    cells = np.zeros(256, np.bool_)
    cells[np.argsort(-similarity.reshape(-1))[:36]] = True
    return Region(np.where(cells.reshape(16, 16), 1, -1).repeat(16, 0).repeat(16, 1), 0.5, similarity,
                  cells.reshape(16, 16))  # fmt: skip


def test_disturbed_regions_differ_and_stay_inside() -> None:
    own, valid = region(valid_rows=10), np.zeros((16, 16), np.bool_)
    valid[:10] = True
    several = list(disturb(own, valid))
    assert len(several) == 7
    assert all(not (cells & ~valid).any() and 0 < cells.sum() <= 36 for cells in several)
    assert len({cells.tobytes() for cells in [own.cells, *several]}) == 8
    assert [int(cells.sum()) for cells in several[-2:]] == [24, 30]
    assert list(disturb(Region(own.logits, 0, own.similarity, own.cells & False), valid)) == []


def test_shift_loses_what_leaves_the_grid() -> None:
    cells = np.zeros((4, 4), np.bool_)
    cells[0, 3] = cells[2, 1] = True
    assert np.argwhere(shift(cells, 0, 1)).tolist() == [[2, 2]]
    assert np.argwhere(shift(cells, -1, 0)).tolist() == [[1, 1]]


def test_the_weakest_tenth_gives_way_to_the_next_best() -> None:
    own = region()
    got = exchanged(own, np.ones((16, 16), np.bool_))
    assert got.sum() == 36
    assert (got & own.cells).sum() == 32
    assert (best_cells(own, 32) & ~got).sum() == 0
    order = np.argsort(-own.similarity.reshape(-1))
    assert got.reshape(-1)[order[36:40]].all()


def test_votes_weigh() -> None:
    assert vote(["a", "b", "b"], [0.9, 0.5, 0.5]) == "b"
    assert vote(["a", "b", "b"], [0.9, 0.4, 0.4]) == "a"
    assert vote([None, "b"], [0.9, 0.4]) is None
    both = [Diagnosis("a", 0.6, (("b", 0.4),)), Diagnosis("b", 0.8, (("a", 0.2),))]
    assert pooled(both, "b") == Diagnosis("b", pytest.approx(0.6), (("a", pytest.approx(0.4)),))


def test_agreement_and_contrast() -> None:
    a = np.zeros((4, 4), np.bool_)
    a[:2] = True
    assert agreement([a, a, ~a], 0) == 0.5
    assert agreement([a], 0) == 0
    own = region()
    assert contrast(own) > 0.3
    assert contrast(Region(-own.logits, 0, own.similarity, own.cells)) == pytest.approx(-contrast(own))


@pytest.fixture(scope="module")
def predictor() -> Sim4SegPredictor:
    opened = open_predictor("sim4seg-s", InferenceSettings(model_repository=PACKAGES, threads=1))
    assert isinstance(opened, Sim4SegPredictor)
    return opened


def test_candidates_of_a_real_package(predictor: Sim4SegPredictor) -> None:
    image = breast_ultrasound((200, 300), (0.45, 0.5), (40, 60))
    scaled = ScaledPredictor(predictor, Scaling(paths=2, regions=3))
    made = scaled.candidates(image, PROMPT)
    assert len(made.answers) == 2
    plain = predictor.predict(image, PROMPT)
    assert predictor.conversation.text(made.answers[0].token_ids) == plain.text  # the first path is greedy
    own = [one for one in made.masks if one.path == 0]
    assert len(own) == 3
    assert np.array_equal(own[0].region.cells, plain.region)
    assert np.array_equal(own[1].region.cells, exchanged(own[0].region, np.add.outer(
        np.arange(16) < 11, np.zeros(16, np.bool_)) > 0))  # fmt: skip
    chosen = scaled.choose(made)
    assert chosen.mask.shape == (200, 300)
    assert chosen.text in {predictor.conversation.text(answer.token_ids) for answer in made.answers}
    truth = plain.mask
    assert np.array_equal(oracle_mask(made, truth), truth)  # the undisturbed candidate is the plain mask
    with pytest.raises(UnsuitableImage):
        scaled.predict(Image(np.zeros((50, 50, 3), np.uint8)), Prompt("q"))


def test_a_node_can_be_told_to_take_several_paths() -> None:
    plain = open_predictor("sim4seg-s", InferenceSettings(threads=1))
    several = open_predictor("sim4seg-s", InferenceSettings(threads=1, reasoning_paths=2, regions_per_path=3))
    assert isinstance(several, ScaledPredictor)
    assert several.version == f"{plain.version}+2x3"
    assert (several.name, len(several.digest)) == (plain.name, 64)
    other = ScaledPredictor(several.predictor, Scaling(2, 2))
    assert len({plain.digest, several.digest, other.digest}) == 3  # results of each have UIDs of their own
    prediction = several.predict(breast_ultrasound((300, 360), (0.4, 0.5), (45, 60)), PROMPT)
    assert prediction.is_well_formed
    assert prediction.mask.any()


def test_only_sim4seg_takes_several_paths() -> None:
    other = open_predictor("medseg-r-s", InferenceSettings(threads=1, reasoning_paths=4))
    assert other.version == open_package(PACKAGES, "medseg-r-s").manifest.model.version
