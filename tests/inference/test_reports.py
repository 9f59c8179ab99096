"""Priors are read out of reports as written, and out of a clinician's words where they are clear."""

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer

from inference.prompts import ZONES, Findings
from inference.reports import (
    FIELDS,
    PRIOR_TOKENS,
    Priors,
    closed_words,
    encode_priors,
    extract_priors,
    priors_of,
    write_report,
)
from inference.settings import PACKAGES

MODALITY = "breast ultrasound image"


def findings(zone: str, shape: str, margin: str, brightness: str, texture: str) -> Findings:
    return Findings(MODALITY, zone, 5, shape, "wider than tall", margin, brightness, texture, None)


CASES = [
    *itertools.product(
        ZONES[:3], ["round", "irregular"], ["smooth", "slightly irregular", "irregular"], ["darker than"],
        ["homogeneous", "moderately heterogeneous", "heterogeneous"],
    )
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read(case: tuple[str, str, str, str, str]) -> None:
    priors = priors_of(findings(*case))
    assert extract_priors(write_report(MODALITY, priors)) == priors


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_stays_missing(field: str) -> None:
    priors = priors_of(findings("upper left", "oval", "smooth", "similar to", "homogeneous")).without(field)
    assert getattr(priors, field) is None
    assert extract_priors(write_report(MODALITY, priors)) == priors


@pytest.mark.parametrize(
    ("report", "priors"),
    [
        ("", Priors()),
        ("Normal study.", Priors()),
        ("Mass in the upper outer quadrant of the left breast.", Priors()),  # the patient's side
        (
            "Hypoechoic, heterogeneous mass with spiculated margins.",
            Priors(None, "darker than its surroundings and heterogeneous", "with a irregular margin"),
        ),
        (
            "Ovoid lesion, circumscribed margin, bottom right of the image.",
            Priors("in the lower right of the image", None, "oval with a smooth margin"),
        ),
        ("The margin is not seen. Isoechoic.", Priors(None, "similar to its surroundings", None)),
    ],
)
def test_a_clinicians_words(report: str, priors: Priors) -> None:
    assert extract_priors(report) == priors


def test_tokens_of_each_field() -> None:
    tokenizer = Tokenizer.from_file(str(PACKAGES / "sim4seg-s" / "tokenizer.json"))
    ids = encode_priors(Priors("in the upper left of the image", None, "oval " * 40), tokenizer)
    assert ids.shape == (3, PRIOR_TOKENS)
    assert tokenizer.decode(ids[0][ids[0] > 0].tolist()) == " in the upper left of the image"
    assert not ids[1].any()
    assert (ids[2] > 0).all()
    assert ids.dtype == np.int64


@pytest.mark.parametrize("location", [None, *(f"in the {zone} of the image" for zone in ZONES)])
@pytest.mark.parametrize(
    "shape", [None, "round", "with a irregular margin", "oval with a slightly irregular margin"]
)
@pytest.mark.parametrize(
    "texture", [None, "heterogeneous", "similar to its surroundings and moderately heterogeneous"]
)
def test_closed_words_say_the_same_as_the_report(
    location: str | None, shape: str | None, texture: str | None
) -> None:
    priors = Priors(location, texture, shape)
    report = f"Mammary sonogram. {write_report('breast ultrasound image', priors)} BI-RADS 4."
    words = closed_words(report)
    assert extract_priors(words) == extract_priors(report)
    assert closed_words(words) == words
    assert "sonogram" not in words
