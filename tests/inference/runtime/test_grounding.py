"""The mask has a say where an answer names a place, and nowhere else."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from dicom_node.samples_radiograph import make_leg_radiograph
from inference.contract import Image, Prompt
from inference.positions import parse_position
from inference.preprocess import ResizeLongestSide
from inference.prompts import ZONES, parse_answer
from inference.runtime import open_predictor
from inference.runtime.grounding import (
    Grounding,
    Slot,
    answer_slots,
    position_slots,
    position_words,
    region_words,
)
from inference.runtime.predictors import Sim4SegPredictor
from inference.runtime.prs_med import PrsMedPredictor
from inference.settings import PACKAGES, InferenceSettings
from inference.zones import centroid_of, percent_of, zone_of, zone_of_mask
from tests.inference.runtime.test_sim4seg_s import breast_ultrasound

TOKENIZER = Tokenizer.from_file(str(PACKAGES / "sim4seg-s" / "tokenizer.json"))
SENTENCE = " Secondly, the region lies in the"


def tokenise(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


def logits_of(**words: float) -> np.ndarray:
    """Logits of everything at 0 but the first tokens of `words`, whose blanks are underscores."""
    logits = np.zeros(TOKENIZER.get_vocab_size(), np.float64)
    for word, value in words.items():
        logits[tokenise(f" {word}")[0]] = value
    return logits


def told(**zones: float) -> Grounding:
    grounding = Grounding(answer_slots(tokenise))
    grounding.learn({"zone": {name.replace("_", " "): chance for name, chance in zones.items()}})
    return grounding


def chosen(grounding: Grounding, said: str, logits: np.ndarray) -> str:
    return str(TOKENIZER.decode([int(np.argmax(grounding.weigh(tokenise(said), logits)))])).strip()


def test_the_mask_corrects_the_model_where_a_zone_is_named() -> None:
    grounding = told(lower_left=0.9999, upper_left=0.0001)
    assert chosen(grounding, SENTENCE, logits_of(upper=3, lower=1)) == "lower"
    assert chosen(grounding, f"{SENTENCE} lower", logits_of(right=5, left=1)) == "left"


def test_a_mask_at_a_border_leaves_the_word_to_the_model() -> None:
    grounding = told(lower_left=0.5, upper_left=0.5)
    assert chosen(grounding, SENTENCE, logits_of(upper=3, lower=1)) == "upper"
    assert chosen(grounding, SENTENCE, logits_of(upper=1, lower=3)) == "lower"


def test_zones_that_share_a_word_are_counted_together() -> None:
    grounding = told(upper_left=0.3, upper_right=0.3, centre=0.4)
    assert chosen(grounding, SENTENCE, logits_of(upper=1, centre=1)) == "upper"


@pytest.mark.parametrize("said", ["", " Secondly, the region", f"{SENTENCE} upper left", " It lies in"])
def test_other_words_are_the_model_s_own(said: str) -> None:
    logits = logits_of(upper=3, lower=1)
    assert told(lower_left=1.0).weigh(tokenise(said), logits) is logits


def test_a_model_about_to_say_something_else_is_let_alone() -> None:
    logits = logits_of(margin=9, upper=3)
    assert told(lower_left=1.0).weigh(tokenise(SENTENCE), logits) is logits


def test_before_anything_is_drawn_no_word_is_touched() -> None:
    logits = logits_of(upper=3)
    assert Grounding(answer_slots(tokenise)).weigh(tokenise(SENTENCE), logits) is logits


def test_an_impossible_zone_can_still_be_said_if_the_model_sees_no_other() -> None:
    logits = np.full(TOKENIZER.get_vocab_size(), -1e6)
    logits[tokenise(" upper")[0]] = 0.0
    assert chosen(told(centre=1.0), SENTENCE, logits) == "upper"


def test_every_zone_can_be_reached_through_its_tokens() -> None:
    (slot, _) = answer_slots(tokenise)
    for zone in ZONES:
        said: tuple[int, ...] = ()
        while said != slot.phrases[zone]:
            (token,) = slot.options(said, {zone: 1.0}).keys() & {slot.phrases[zone][len(said)]}
            said = (*said, token)
        assert slot.said((*tokenise(SENTENCE), *said[:-1])) == said[:-1]


def test_a_slot_has_several_cues() -> None:
    slot = position_slots(tokenise)[1]
    assert isinstance(slot, Slot)
    assert slot.said(tokenise(" In the")) == slot.said(tokenise(" The polyp sits in the")) == ()
    assert slot.said(tokenise(" The polyp sits")) is None


def test_an_empty_mask_says_nothing() -> None:
    assert region_words(np.full((256, 256), -1.0, np.float32), ResizeLongestSide((300, 200), 256)) == {}


# ---- position answers

NOWHERE = np.zeros((40, 60), np.bool_)
SITS = " The polyp sits in the upper left"


def placed(mask: np.ndarray) -> Grounding:
    grounding = Grounding(position_slots(tokenise))
    grounding.learn(position_words(mask))
    return grounding


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((200, 200), np.bool_)
    mask[rows, columns] = True
    return mask


def finished(grounding: Grounding, said: str, count: int = 12) -> str:
    """`said` and what the mask alone would have it followed by: of the options the first, at equal logits."""
    ids, flat = list(tokenise(said)), np.zeros(TOKENIZER.get_vocab_size())
    for _ in range(count):
        weighed = grounding.weigh(ids, flat)
        if weighed is flat:
            break
        ids.append(int(np.argmax(weighed)))
    return str(TOKENIZER.decode(ids)).strip()


@pytest.mark.parametrize("certainty", [1.0, 1e6])
def test_nothing_lies_anywhere_where_nothing_was_outlined(certainty: float) -> None:
    assert chosen(placed(NOWHERE), "", logits_of(The=certainty)) in {"There", ""}, "a blank begins ' No'"
    assert parse_position(finished(placed(NOWHERE), " There")).is_absent
    assert chosen(placed(NOWHERE), " There is no", logits_of(polyp=certainty)) == "polyp"


def test_where_something_was_outlined_the_model_may_say_that_there_is_nothing() -> None:
    logits = logits_of(There=1)
    assert placed(box(slice(20, 60), slice(20, 60))).weigh((), logits) is logits


def test_near_the_middle_and_far_from_it_are_the_mask_s_words() -> None:
    far, near = placed(box(slice(10, 30), slice(10, 30))), placed(box(slice(70, 95), slice(70, 95)))
    assert chosen(far, f"{SITS},", logits_of(a=4, towards=1)) == "to"  # its first token
    assert chosen(near, f"{SITS},", logits_of(a=1, towards=4)) == "a"


def test_a_phrase_that_is_begun_is_finished() -> None:
    far = placed(box(slice(10, 30), slice(10, 30)))
    said = f"{SITS}, towards the"
    assert chosen(far, said, logits_of(middle=9)) == TOKENIZER.decode([tokenise(" edge")[0]]).strip()
    logits = logits_of(middle=9)
    assert far.weigh(tokenise(f"{SITS}, towards the edge."), logits) is logits


def test_an_empty_cue_stands_at_the_beginning_only() -> None:
    opening = position_slots(tokenise)[0]
    assert opening.said(()) == ()
    assert opening.said(tokenise(" There is")) == tokenise(" There is"), "a sentence that is begun"


# ---- the shipped packages


@pytest.fixture(scope="module")
def sim4seg_s() -> Sim4SegPredictor:
    opened = open_predictor("sim4seg-s", InferenceSettings(threads=1))
    assert isinstance(opened, Sim4SegPredictor)
    return opened


@pytest.mark.parametrize("centre", [(0.25, 0.25), (0.3, 0.72), (0.6, 0.28), (0.5, 0.5)])
def test_what_sim4seg_s_says_agrees_with_its_mask(
    sim4seg_s: Sim4SegPredictor, centre: tuple[float, float]
) -> None:
    prediction = sim4seg_s.predict(
        breast_ultrasound((400, 480), centre, (45, 60)), Prompt("Segment the breast lesion.")
    )
    said, shown = parse_answer(prediction.text), centroid_of(prediction.mask)
    assert shown is not None
    assert said.zone == zone_of(*shown)
    assert said.area_percent is not None
    assert abs(said.area_percent - percent_of(prediction.mask)) <= 1
    assert prediction.is_well_formed


def test_what_prs_med_s_says_agrees_with_its_mask() -> None:
    predictor = open_predictor("prs-med-s", InferenceSettings(threads=1))
    assert isinstance(predictor, PrsMedPredictor)
    for centre in ((0.25, 0.25), (0.3, 0.72), (0.7, 0.28)):
        image = breast_ultrasound((400, 480), centre, (45, 60))
        prediction = predictor.predict(image, Prompt("Where is the breast lesion?"))
        assert parse_position(prediction.text).zones == (zone_of_mask(prediction.mask),)


def test_what_prs_med_s_does_not_outline_it_does_not_place() -> None:
    predictor = open_predictor("prs-med-s", InferenceSettings(threads=1))
    grey, _ = make_leg_radiograph()
    image = Image(np.repeat(grey[:, :, None], 3, axis=2))
    prediction = predictor.predict(image, Prompt("Where is the fracture in this bone radiograph?"))
    assert not prediction.mask.any(), "another model draws here: find another image"
    assert parse_position(prediction.text).is_absent


def test_without_a_say_the_words_are_the_model_s_own(sim4seg_s: Sim4SegPredictor) -> None:
    image, prompt = breast_ultrasound((400, 480), (0.3, 0.72), (45, 60)), Prompt("Segment the breast lesion.")
    grounded = sim4seg_s.predict(image, prompt)
    sim4seg_s.is_grounded = False
    try:
        alone = sim4seg_s.predict(image, prompt)
    finally:
        sim4seg_s.is_grounded = True
    assert np.array_equal(alone.mask, grounded.mask)
    assert alone.diagnosis is not None
    assert parse_answer(alone.text).is_well_formed
    assert isinstance(image, Image)
