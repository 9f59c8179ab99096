"""Structured priors {location, texture, shape}: written into short reports, and read out of any report.

The reader knows a closed vocabulary with its clinical synonyms. A place counts only where it is said to be
a place *in the image*: "left breast" is the patient's side, and no pixel follows from it.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from inference.prompts import TARGETS, ZONES, Findings

FIELDS: tuple[str, ...] = ("location", "texture", "shape")
PRIOR_TOKENS = 16  # of each field; what is longer is cut

SHAPES = {"round": "round", "oval": "oval", "ovoid": "oval", "elliptical": "oval", "irregular": "irregular"}
MARGINS = {
    "smooth": "smooth",
    "circumscribed": "smooth",
    "well-defined": "smooth",
    "slightly irregular": "slightly irregular",
    "microlobulated": "slightly irregular",
    "irregular": "irregular",
    "indistinct": "irregular",
    "ill-defined": "irregular",
    "spiculated": "irregular",
    "angular": "irregular",
}
BRIGHTNESS = {
    "darker than": "darker than",
    "hypoechoic": "darker than",
    "anechoic": "darker than",
    "hypodense": "darker than",
    "hypointense": "darker than",
    "lucent": "darker than",
    "brighter than": "brighter than",
    "hyperechoic": "brighter than",
    "hyperdense": "brighter than",
    "hyperintense": "brighter than",
    "sclerotic": "brighter than",
    "similar to": "similar to",
    "isoechoic": "similar to",
    "isodense": "similar to",
    "isointense": "similar to",
}
TEXTURES = {
    "moderately heterogeneous": "moderately heterogeneous",
    "heterogeneous": "heterogeneous",
    "inhomogeneous": "heterogeneous",
    "homogeneous": "homogeneous",
}
ZONE_WORDS = {zone: zone for zone in ZONES} | {
    f"{row} {side}": f"{ours} {side}"
    for row, ours in (("top", "upper"), ("bottom", "lower"))
    for side in ("left", "right")
}
ZONE_WORDS |= {"center": "centre", "middle": "centre"}


@dataclass(frozen=True)
class Priors:
    """What a report says of one target; None where it says nothing."""

    location: str | None = None
    texture: str | None = None
    shape: str | None = None

    def without(self, *fields: str) -> "Priors":
        """The same with some of FIELDS left out."""
        return Priors(**{name: None if name in fields else getattr(self, name) for name in FIELDS})


def priors_of(findings: Findings) -> Priors:
    """The priors that measured findings give."""
    return Priors(
        location=f"in the {findings.zone} of the image",
        texture=f"{findings.brightness} its surroundings and {findings.texture}",
        shape=f"{findings.shape} with a {findings.margin} margin",
    )


def write_report(modality: str, priors: Priors) -> str:
    """A short report: what was examined, then a sentence with whatever of the priors is known."""
    first = f"{modality[0].upper()}{modality[1:]}."
    known = [text for text in (priors.location, priors.shape, priors.texture) if text]
    target = TARGETS.get(modality) or "lesion"
    return f"{first} The {target} is {', '.join(known)}." if known else first


def extract_priors(report: str) -> Priors:
    """The priors that a report states in words this project knows; never raises."""
    text = " ".join(report.lower().split())
    return Priors(_location(text), _texture(text), _shape(text))


def closed_words(report: str) -> str:
    """What a report says in words of the closed vocabulary alone; "" where it says nothing of it.

    `extract_priors` finds the same in it as in the report itself.
    """
    priors = extract_priors(report)
    return ", ".join(text for text in (priors.location, priors.shape, priors.texture) if text)


def _location(text: str) -> str | None:
    zone = _first(text, ZONE_WORDS, r" (?:part |quadrant |third )?of the (?:image|picture|frame)\b")
    return f"in the {zone} of the image" if zone else None


def _texture(text: str) -> str | None:
    brightness, evenness = _first(text, BRIGHTNESS), _first(text, TEXTURES)
    known = [f"{brightness} its surroundings" if brightness else "", evenness or ""]
    return " and ".join(filter(None, known)) or None


def _shape(text: str) -> str | None:
    margin = _first(text, MARGINS, r"(?:,? (?:and|or) [a-z-]+)? (?:margin|border|contour|outline)s?\b")
    shape = _first(text, SHAPES, r"(?! (?:margin|border|contour|outline))\b")
    known = [shape or "", f"with a {margin} margin" if margin else ""]
    return " ".join(filter(None, known)) or None


def _first(text: str, words: dict[str, str], after: str = r"\b") -> str | None:
    """The meaning of the earliest of `words` in `text` that `after` follows, the longer one first."""
    choices = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    match = re.search(rf"(?<![a-z-])({choices}){after}", text)
    return words[match[1]] if match else None


def encode_priors(priors: Priors, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """(3, PRIOR_TOKENS) int64: the tokens of each field in the order of FIELDS; all 0 where it is missing."""
    ids = np.zeros((len(FIELDS), PRIOR_TOKENS), np.int64)
    for row, name in enumerate(FIELDS):
        text = getattr(priors, name)
        if text:
            tokens = tokenizer.encode(f" {text}", add_special_tokens=False).ids[:PRIOR_TOKENS]
            ids[row, : len(tokens)] = tokens
    return ids
