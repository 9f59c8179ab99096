"""Position questions and answers of PRS-Med: wordings of our own, written and parsed in one place.

Zones are the paper's five (arXiv 2505.11872, "Clinical Action Zones"), in this project's words: they are
places in the image, not in the patient.
"""

import re
from dataclasses import dataclass

from inference.prompts import TARGETS

CENTRE = "centre"
QUADRANTS: tuple[str, ...] = ("upper left", "upper right", "lower left", "lower right")
POSITIONS: tuple[str, ...] = (CENTRE, *QUADRANTS, *(f"{zone} {CENTRE}" for zone in QUADRANTS))

# {target}: what the mask shows; {modality}: the phrase of inference.prompts.TARGETS.
QUESTIONS: tuple[str, ...] = (
    "Where is the {target} in this {modality}?",
    "Where does the {target} lie?",
    "In which part of the image is the {target}?",
    "Please tell me where the {target} is.",
    "Point out the place of the {target}.",
    "Which quadrant of the {modality} holds the {target}?",
    "Can you locate the {target} in this {modality}?",
    "Locate the {target}.",
    "Give the position of the {target} in the image.",
    "What is the position of the {target}?",
    "Describe where in the frame the {target} can be found.",
    "On which side of the image do you see the {target}?",
    "Is the {target} in the upper or in the lower half, left or right?",
    "Find the {target} and say where it is.",
    "I am looking for the {target} in this {modality}. Where should I look?",
    "Which area of this {modality} shows the {target}?",
    "Where would you place a marker for the {target}?",
    "State the zone of the {target}.",
    "Name the region of the picture that contains the {target}.",
    "Does the {target} lie in the middle or towards a corner?",
    "Tell me the location of the {target} seen here.",
    "Could you say in which corner the {target} sits, if in any?",
    "Outline the {target} and name its place.",
    "Segment the {target} and describe its position.",
    "Mark the {target}. Where is it?",
    "Where exactly in the image has the {target} been captured?",
    "Which zone is taken up by the {target}?",
    "How is the {target} placed within this {modality}?",
    "Looking at this {modality}, where is the {target}?",
    "For the report I need the place of the {target}.",
    "Please give the image zone in which the {target} appears.",
    "What part of this {modality} is affected?",
    "Where is the finding?",
    "Where is the abnormality in this {modality}?",
    "Which part of the image should be looked at first?",
    "Where is the target structure?",
    "Say whether the {target} is up, down, left, right or in the middle.",
    "Upper left, upper right, lower left, lower right or centre: where is the {target}?",
    "Show the {target} and tell where it lies.",
    "To which quadrant does the {target} belong?",
    "A colleague asks where the {target} is. What do you answer?",
    "In this {modality}, what is the place of the {target}?",
    "Where can the {target} be made out?",
    "Read this {modality} and report the position of the {target}.",
    "At what place of the picture does the {target} show?",
    "Which section of the image contains the {target}?",
    "Where do you suspect the {target}?",
    "Is there a {target}, and where?",
    "Is a {target} visible? If so, in which zone?",
    "Where in the field of view is the {target}?",
    "Give me the rough place of the {target}.",
    "Position of the {target}, please.",
    "Where has the {target} come to lie in this image?",
    "Tell the zone and outline the {target}.",
)
# The released generator has two files of wordings, for targets near the middle and far from it.
NEAR_ANSWERS: tuple[str, ...] = (
    "The {target} lies in the {zone} of the image, near its middle.",
    "The {target} is found in the {zone}, not far from the middle.",
    "In the {zone}: the {target} is close to the middle.",
    "The {target} sits in the {zone}, a short way from the middle.",
)
FAR_ANSWERS: tuple[str, ...] = (
    "The {target} lies in the {zone} of the image, away from its middle.",
    "The {target} is found in the {zone}, well off the middle.",
    "In the {zone}: the {target} is far from the middle.",
    "The {target} sits in the {zone}, towards the edge.",
)
CENTRE_ANSWERS: tuple[str, ...] = (
    "The {target} lies in the {zone} of the image.",
    "The {target} is found in the {zone}.",
    "In the {zone}: the {target} covers the middle.",
    "The {target} sits in the {zone}.",
)
FIRST_OF_TWO = "The first {target} lies in the {zone} of the image"
SECOND_OF_TWO = "the second one lies in the {zone}."
ABSENT_ANSWERS: tuple[str, ...] = (
    "No {target} is seen in this image.",
    "There is no {target} in this image.",
)


def _tails(templates: tuple[str, ...]) -> tuple[str, ...]:
    """What follows the zone, where it holds no other word that the image decides."""
    tails = (template.partition("{zone}")[2] for template in templates)
    return tuple(tail for tail in tails if "{" not in tail)


NEAR_TAILS, FAR_TAILS = _tails(NEAR_ANSWERS), _tails(FAR_ANSWERS)
PRESENT_OPENINGS = tuple(
    dict.fromkeys(
        template.split(maxsplit=1)[0] for template in (*NEAR_ANSWERS, *FAR_ANSWERS, *CENTRE_ANSWERS)
    )
)
# Of every target that has a name, and of any other.
ABSENT_SENTENCES = tuple(
    template.format(target=target)
    for template in ABSENT_ANSWERS
    for target in dict.fromkeys([*filter(None, TARGETS.values()), "lesion"])
)

_ZONE = re.compile(r"\b(?:(upper|lower) (left|right)(?: centre)?|centre)\b")
_ABSENT = re.compile(r"\b(?:No [a-z ]+ is seen|There is no [a-z ]+) in this image\b")


@dataclass(frozen=True)
class ParsedPosition:
    """What an answer says about place; no zones and not absent: it is not in our wording."""

    zones: tuple[str, ...]  # of POSITIONS, in the order they are said; two for a pair of lungs
    is_absent: bool  # the answer says that there is no target

    @property
    def is_well_formed(self) -> bool:
        """Whether the answer says exactly one of the two: where, or that there is none."""
        return bool(self.zones) != self.is_absent and len(self.zones) <= 2


def parse_position(text: str) -> ParsedPosition:
    """Take a position answer apart; never raises."""
    return ParsedPosition(
        tuple(match[0] for match in _ZONE.finditer(text)), is_absent=_ABSENT.search(text) is not None
    )


def write_position(template: str, target: str, zone: str = "") -> str:
    """An answer, starting with a space (it follows the answer cue)."""
    return " " + template.format(target=target, zone=zone)


def write_two_positions(target: str, zones: tuple[str, str]) -> str:
    """The answer for a pair, its two sentences joined as the released generator does (". ")."""
    first = FIRST_OF_TWO.format(target=target, zone=zones[0])
    return f" {first}. {SECOND_OF_TWO.format(zone=zones[1])}"
