"""Words that agree with the mask: where an answer names a place or a size, what was outlined has a say.

A language model says where the target is from what it saw; the mask that it asked for says it too, more
exactly. At the closed places of the wording the two are multiplied, token by token:

    p(word) ~ p_model(word) * p_mask(word)        (product of experts; Hinton 2002)

A phrase that is begun is finished. All other words are the model's own. A mask near a border of two zones
leaves the choice to the model (`inference.zones.SPREAD`); an answer that is not about to name a place is let
alone. An empty mask says how a position answer opens: nothing is said to lie where nothing was outlined.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.positions import ABSENT_SENTENCES, CENTRE, FAR_TAILS, NEAR_TAILS, PRESENT_OPENINGS, QUADRANTS
from inference.postprocess import MASK_THRESHOLD
from inference.preprocess import ResizeLongestSide
from inference.prompts import ZONES
from inference.runtime.generate import Floats
from inference.zones import (
    box_of,
    centroid_of,
    near_chance,
    percent_chances,
    position_chances,
    zone_chances,
)

Tokenise = Callable[[str], tuple[int, ...]]
Measured = Mapping[str, Mapping[str, float]]  # name of a slot -> how likely each phrase is
FLOOR = 1e-9  # below any chance that counts; keeps the logarithm finite


@dataclass(frozen=True)
class Slot:
    """A place in the answers where one of a few phrases stands."""

    name: str
    cues: tuple[tuple[int, ...], ...]  # the tokens right before it, in any of these forms; (): the beginning
    phrases: Mapping[str, tuple[int, ...]]
    is_strict: bool = False  # what the mask denies cannot be said, however sure the model is

    @classmethod
    def of(
        cls, name: str, tokenise: Tokenise, cues: Iterable[str], phrases: Iterable[str], before: str = " "
    ) -> "Slot":
        """The slot after any of `cues`; each of `phrases` is tokenised with what stands `before` it."""
        return cls(name, tuple(map(tokenise, cues)), {each: tokenise(before + each) for each in phrases})

    def said(self, token_ids: Sequence[int]) -> tuple[int, ...] | None:
        """What of a phrase is said at the end of an answer; () right after the cue, None elsewhere."""
        for length in range(max(map(len, self.phrases.values()))):
            before, said = token_ids[: len(token_ids) - length], tuple(token_ids[len(token_ids) - length :])
            if any(_ends_with(before, cue) for cue in self.cues):
                return said
        return None

    def options(self, said: tuple[int, ...], chances: Mapping[str, float]) -> dict[int, float]:
        """The tokens that lead on to a phrase, and the chance of all phrases they lead to."""
        options: dict[int, float] = {}
        for phrase, ids in self.phrases.items():
            if len(ids) > len(said) and ids[: len(said)] == said:
                options[ids[len(said)]] = options.get(ids[len(said)], 0.0) + chances.get(phrase, 0.0)
        return options


class Grounding:
    """What the mask says while one answer is being said; `generate.Facts`, for a family to complete.

    A family calls `learn` as soon as its mask is drawn; until then no word is touched.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._measured: Measured = {}

    def begin(self, handed_on: Floats) -> None:
        """Take what the first pass hands on."""

    def seg_said(self, state: Floats) -> None:
        """Take the state (1, 256) that predicted a [SEG]."""

    def learn(self, measured: Measured) -> None:
        """Take what was measured on the mask."""
        self._measured = measured

    def weigh(self, token_ids: Sequence[int], logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """`logits` (V,), with those that lead to a phrase weighted where the model is about to say one."""
        likeliest = int(np.argmax(logits))
        for slot in self._slots:
            said = slot.said(token_ids) if slot.name in self._measured else None
            if said is not None:
                options = slot.options(said, self._measured[slot.name])
                if likeliest in options or (said and options):
                    return _weighed(logits, options, 0.0 if slot.is_strict else FLOOR)
        return logits


def _ends_with(token_ids: Sequence[int], cue: tuple[int, ...]) -> bool:
    """Whether `cue` stands right before what comes next; the empty cue stands at the beginning only."""
    return tuple(token_ids[len(token_ids) - len(cue) :]) == cue if cue else not token_ids


def _weighed(logits: NDArray[np.float64], options: Mapping[int, float], floor: float) -> NDArray[np.float64]:
    out = np.full_like(logits, -np.inf)
    for token, chance in options.items():
        if likelihood := max(chance, floor):
            out[token] = logits[token] + np.log(likelihood)
    return out


def answer_slots(tokenise: Tokenise) -> tuple[Slot, ...]:
    """Where the answers of `inference.prompts` name a zone and a share of the image."""
    percents = [f"{n} percent" for n in range(1, 101)]
    return (
        Slot.of("zone", tokenise, (" region lies in the",), ZONES),
        Slot.of("percent", tokenise, (" covers about",), percents),
    )


def position_slots(tokenise: Tokenise) -> tuple[Slot, ...]:
    """Where the answers of `inference.positions` open, name the place of a target, and how far off it is."""
    opening = Slot.of("opening", tokenise, ("",), (*ABSENT_SENTENCES, *PRESENT_OPENINGS))
    quadrants = [f" in the {quadrant}" for quadrant in QUADRANTS]
    return (
        replace(opening, is_strict=True),
        Slot.of("position", tokenise, (" in the", " In the"), (CENTRE, *QUADRANTS)),
        Slot.of("distance", tokenise, quadrants, (*NEAR_TAILS, *FAR_TAILS), before=""),
    )


def region_words(logits: Floats, frame: ResizeLongestSide) -> Measured:
    """What the mask of `logits` (S, S) says at `answer_slots`; nothing for an empty one."""
    mask = _inside(logits, frame)
    centre = centroid_of(mask)
    if centre is None:
        return {}
    return {"zone": zone_chances(*centre), "percent": percent_chances(mask)}


def position_words(mask: NDArray[np.bool_]) -> Measured:
    """What `mask` (H, W) says at `position_slots`; an empty one, that there is no target."""
    box, hw = box_of(mask), (mask.shape[0], mask.shape[1])
    if box is None:
        return {"opening": dict.fromkeys(ABSENT_SENTENCES, 1.0)}
    near = near_chance(box, hw)
    distance = dict.fromkeys(NEAR_TAILS, near) | dict.fromkeys(FAR_TAILS, 1 - near)
    return {"position": position_chances(box, hw), "distance": distance}


def _inside(logits: Floats, frame: ResizeLongestSide) -> NDArray[np.bool_]:
    """The mask at the network's own resolution, without the padding: shares and zones need no more."""
    return ResizeLongestSide(frame.source_hw, logits.shape[-1]).unpad(logits) > MASK_THRESHOLD
