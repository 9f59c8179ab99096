"""Conversation template, special tokens and the closed answer wording, written and parsed in one place.

Training writes answers with `write_answer`; serving reads them with `parse_answer`. The wording is
closed on purpose: every sentence can be checked against the mask. Form after Sim4Seg's
"FT w/ diagnosis-CoT" answers (models.md 1.1).
"""

import re
from dataclasses import dataclass
from typing import Literal

PAD, BOS, EOS, IM_START, IM_END, SEG = "<pad>", "<bos>", "<eos>", "<im_start>", "<im_end>", "[SEG]"
SPECIAL_TOKENS: tuple[str, ...] = (PAD, BOS, EOS, IM_START, IM_END, SEG)  # ids 0..5, in this order
ANSWER_CUE = "\nASSISTANT:"
DIAGNOSES: tuple[str, ...] = (
    "benign",
    "malignant",
    "fracture",
    "no fracture",
    "polyp",
    "lung nodule",
    "melanoma",
    "not melanoma",
)
ZONES: tuple[str, ...] = (
    "centre",
    "upper left",
    "upper right",
    "lower left",
    "lower right",
    "upper middle",
    "lower middle",
    "left middle",
    "right middle",
)
TARGETS: dict[str, str] = {  # modality phrase -> target; empty where nothing is ever outlined
    "breast ultrasound image": "breast lesion",
    "cardiac magnetic resonance image": "left ventricular cavity",
    "bone radiograph": "fracture",
    "colonoscopy image": "polyp",
    "chest computed tomography image": "lung nodule",
    "peripheral nerve ultrasound image": "nerve",
    "dermoscopy image": "",
}
# The paper says [SEG] before the chain; a causal model's [SEG] then cannot know what the chain will say.
SegPlace = Literal["before", "after"]
REGION_SENTENCE = f"It is {SEG}."
NO_REGION_SENTENCE = "There is nothing to outline."
DIAGNOSIS_CUE = "the diagnosis is"
NO_DIAGNOSIS = "no diagnosis is made"

_REGION = re.compile(r"the region lies in the ([a-z ]+?) of the image and covers about (\d+) percent")
_MODALITY = re.compile(r"this is an? ([a-z ]+?)(?: and the target is the ([a-z ]+?))?\.")
_DIAGNOSIS = re.compile(rf"Finally, {DIAGNOSIS_CUE} ([a-z ]+?)\.")


@dataclass(frozen=True)
class Findings:
    """What an answer says about a region; `diagnosis` None where no disease is asked."""

    modality: str  # a key of TARGETS
    zone: str  # one of ZONES
    area_percent: int  # of the image, 0..100, rounded
    shape: str  # round | oval | irregular
    orientation: str  # e.g. "wider than tall"
    margin: str  # smooth | slightly irregular | irregular
    brightness: str  # darker than | brighter than | similar to
    texture: str  # homogeneous | moderately heterogeneous | heterogeneous
    diagnosis: str | None


@dataclass(frozen=True)
class ParsedAnswer:
    """The parts of an answer; None where a part is missing or not in the closed wording."""

    has_region: bool
    modality: str | None
    target: str | None
    zone: str | None
    area_percent: int | None
    diagnosis: str | None
    reasoning: str  # the sentences between the first and the last
    is_well_formed: bool  # every sentence the closed wording asks for is there


def prompt_text(query: str) -> str:
    """The text that follows the image: query, then the answer cue. `<im_end>` precedes it as a token."""
    return f"\nUSER: {query.strip()}{ANSWER_CUE}"


def write_answer(findings: Findings, seg_place: SegPlace = "before") -> str:
    """The closed answer for a region, starting with a space (it follows the answer cue)."""
    chain = (
        f" Firstly, this is a {findings.modality} and the target is the {TARGETS[findings.modality]}."
        f" Secondly, the region lies in the {findings.zone} of the image"
        f" and covers about {findings.area_percent} percent of it."
        f" Thirdly, its shape is {findings.shape} and {findings.orientation},"
        f" with a {findings.margin} margin."
        f" Fourthly, it is {findings.brightness} its surroundings and {findings.texture}."
        f" {_last_sentence(findings.diagnosis)}"
    )
    return _placed(REGION_SENTENCE, chain, seg_place)


def write_empty_answer(modality: str, diagnosis: str | None, seg_place: SegPlace = "before") -> str:
    """The closed answer where nothing is to be outlined, starting with a space."""
    chain = f" Firstly, this is a {modality}. {_last_sentence(diagnosis)}"
    return _placed(NO_REGION_SENTENCE, chain, seg_place)


def _placed(sentence: str, chain: str, seg_place: SegPlace) -> str:
    return f" {sentence}{chain}" if seg_place == "before" else f"{chain} {sentence}"


def _last_sentence(diagnosis: str | None) -> str:
    return f"Finally, {DIAGNOSIS_CUE} {diagnosis}." if diagnosis else f"Finally, {NO_DIAGNOSIS}."


def parse_answer(text: str) -> ParsedAnswer:
    """Take an answer apart. Never raises: what is missing is None and `is_well_formed` is False."""
    modality, target = _known_modality(text)
    zone, area_percent = _known_region(text)
    diagnosis = _known_diagnosis(text)
    has_region = SEG in text
    ends_well = diagnosis is not None or f"Finally, {NO_DIAGNOSIS}." in text
    says_region = zone is not None and "Thirdly, its shape is" in text and "Fourthly, it is" in text
    says_nothing = NO_REGION_SENTENCE in text
    body = says_region and target is not None if has_region else says_nothing
    return ParsedAnswer(
        has_region=has_region,
        modality=modality,
        target=target,
        zone=zone,
        area_percent=area_percent,
        diagnosis=diagnosis,
        reasoning=_reasoning(text),
        is_well_formed=body and modality is not None and ends_well,
    )


def _known_modality(text: str) -> tuple[str | None, str | None]:
    match = _MODALITY.search(text)
    if match is None or match[1] not in TARGETS:
        return None, None
    return match[1], match[2] if match[2] == TARGETS[match[1]] else None


def _known_region(text: str) -> tuple[str | None, int | None]:
    match = _REGION.search(text)
    if match is None or match[1] not in ZONES or int(match[2]) > 100:
        return None, None
    return match[1], int(match[2])


def _known_diagnosis(text: str) -> str | None:
    match = _DIAGNOSIS.search(text)
    return match[1] if match is not None and match[1] in DIAGNOSES else None


def _reasoning(text: str) -> str:
    start, end = text.find("Firstly,"), text.rfind("Finally,")
    if start < 0:
        return ""
    return text[start : end if end >= 0 else len(text)].strip()
