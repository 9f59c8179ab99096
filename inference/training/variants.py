"""What else a family is measured by: without something it has, with several paths, with reports told.

A variant is made for all cases together, since shuffling needs to know them, and then asked case by case.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from inference.contract import Image, Prediction, Predictor, Prompt
from inference.datasets.folder import Case
from inference.datasets.frames import read_image, read_mask
from inference.datasets.measure import measure
from inference.datasets.report_guided import NOTHING, shuffled
from inference.reports import FIELDS, Priors, priors_of
from inference.runtime.medseg_r import MODULATIONS, MedSegRPredictor
from inference.runtime.predictors import Sim4SegPredictor
from inference.runtime.prs_med import PrsMedPredictor
from inference.runtime.scaling import ScaledPredictor, oracle_mask

Ask = Callable[[Case, Image], Prediction]
Variant = Callable[[Sequence[Case]], Ask]


def variants_of(predictor: Predictor) -> dict[str, Variant]:
    """Name of each variant of this predictor's family -> how it is made."""
    if isinstance(predictor, PrsMedPredictor):
        return {"words_alone": lambda _: _words_alone(predictor)}
    if isinstance(predictor, Sim4SegPredictor):
        return {
            "words_alone": lambda _: _words_alone(predictor),
            "test_time_scaling": lambda _: _scaled(predictor),
            "test_time_scaling_oracle": lambda _: _oracle(predictor),
        }
    if isinstance(predictor, MedSegRPredictor):
        return _medseg_variants(predictor)
    return {}


def _words_alone(predictor: Sim4SegPredictor | PrsMedPredictor) -> Ask:
    """The language model's own words: the mask has no say in them."""

    def ask(case: Case, image: Image) -> Prediction:
        predictor.is_grounded = False
        query = case.position_query if isinstance(predictor, PrsMedPredictor) else case.query
        return predictor.predict(image, Prompt(query))

    return ask


def _scaled(predictor: Sim4SegPredictor) -> Ask:
    scaled = ScaledPredictor(predictor)
    return lambda case, image: scaled.predict(image, Prompt(case.query))


def _oracle(predictor: Sim4SegPredictor) -> Ask:
    """The paper's choice, by the truth: an upper bound of what choosing could reach, not a result."""
    scaled = ScaledPredictor(predictor)

    def ask(case: Case, image: Image) -> Prediction:
        made = scaled.candidates(image, Prompt(case.query))
        truth = read_mask(case, (image.pixels.shape[0], image.pixels.shape[1]))
        told = [predictor.diagnosis_of(answer) for answer in made.answers]
        right = [one for one in told if one and one.label == case.label]
        mask = oracle_mask(made, truth)
        return replace(
            scaled.choose(made),
            mask=mask,
            has_region=bool(mask.any()),
            diagnosis=right[0] if right else told[0],
        )

    return ask


def _medseg_variants(predictor: MedSegRPredictor) -> dict[str, Variant]:
    """All but the last are asked with reports made from the truth, so that there is a gain to lose."""

    def told(removed: tuple[str, ...] = (), hidden: tuple[str, ...] = ()) -> Variant:
        return lambda _: _told(predictor.without(removed), lambda case: true_priors(case).without(*hidden))

    return {
        "told": told(),
        **{f"told_without_{name}": told((name,)) for name in MODULATIONS},
        **{f"told_all_but_{field}": told(hidden=(field,)) for field in FIELDS},
        "told_texture_only": told(hidden=("location", "shape")),
        "shuffled": lambda cases: _shuffled(predictor, cases),
    }


def _told(predictor: MedSegRPredictor, priors: Callable[[Case], Priors]) -> Ask:
    return lambda case, image: predictor.outline(image, priors(case))


def _shuffled(predictor: MedSegRPredictor, cases: Sequence[Case]) -> Ask:
    """Each image is told of another image of its own data set."""
    dealt: dict[tuple[str, str], Priors] = {}
    for dataset in sorted({case.dataset for case in cases}):
        own = [case for case in cases if case.dataset == dataset]
        for case, priors in zip(own, shuffled([true_priors(one) for one in own]), strict=True):
            dealt[dataset, case.name] = priors
    return _told(predictor, lambda case: dealt[case.dataset, case.name])


def true_priors(case: Case) -> Priors:
    """What a report made from the truth says: measured on the true mask, so it leaks."""
    if case.mask is None or case.modality is None:
        return NOTHING
    pixels = read_image(case)
    mask = read_mask(case, (pixels.shape[0], pixels.shape[1]))
    if not np.any(mask):
        return NOTHING
    return priors_of(measure(mask, pixels, case.modality, case.label))
