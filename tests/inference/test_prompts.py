"""The closed wording says what was found, and can be read back."""

from dataclasses import replace

import pytest

from inference.prompts import (
    ANSWER_CUE,
    DIAGNOSES,
    SEG,
    SPECIAL_TOKENS,
    TARGETS,
    ZONES,
    Findings,
    parse_answer,
    prompt_text,
    write_answer,
    write_empty_answer,
)

FINDINGS = Findings(
    modality="breast ultrasound image",
    zone="upper left",
    area_percent=7,
    shape="oval",
    orientation="wider than tall",
    margin="slightly irregular",
    brightness="darker than",
    texture="moderately heterogeneous",
    diagnosis="malignant",
)


@pytest.mark.parametrize("diagnosis", [*DIAGNOSES, None])
@pytest.mark.parametrize("zone", ZONES)
def test_what_is_written_is_read_back(diagnosis: str | None, zone: str) -> None:
    parsed = parse_answer(write_answer(replace(FINDINGS, diagnosis=diagnosis, zone=zone)))
    assert parsed.is_well_formed
    assert parsed.has_region
    assert (parsed.zone, parsed.diagnosis, parsed.area_percent) == (zone, diagnosis, 7)
    assert (parsed.modality, parsed.target) == ("breast ultrasound image", "breast lesion")
    assert parsed.reasoning.startswith("Firstly, this is a breast ultrasound image")
    assert "Finally" not in parsed.reasoning


@pytest.mark.parametrize("modality", TARGETS)
def test_an_empty_answer_is_read_back(modality: str) -> None:
    parsed = parse_answer(write_empty_answer(modality, "no fracture"))
    assert parsed.is_well_formed
    assert not parsed.has_region
    assert (parsed.modality, parsed.diagnosis, parsed.zone) == (modality, "no fracture", None)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_an_answer_cut_short_never_raises_and_is_not_well_formed(cut: int) -> None:
    text = write_answer(FINDINGS)
    parsed = parse_answer(text[:cut])
    assert parsed.is_well_formed == (cut >= len(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("malignant", "mildly worrying"),
        ("upper left", "far corner"),
        ("about 7", "about 700"),
        ("breast lesion", "liver lesion"),
        ("breast ultrasound", "liver ultrasound"),
        ("Fourthly, it is", "Well, it is"),
    ],
)
def test_words_outside_the_closed_wording_are_not_taken_over(old: str, new: str) -> None:
    parsed = parse_answer(write_answer(FINDINGS).replace(old, new))
    assert not parsed.is_well_formed
    values = (parsed.diagnosis, parsed.zone, parsed.target, parsed.modality, parsed.area_percent)
    assert new not in map(str, values)
    assert 700 not in values


def test_the_cue_ends_the_prompt_and_the_specials_are_in_order() -> None:
    assert prompt_text("  Where? ") == "\nUSER: Where?" + ANSWER_CUE
    assert SPECIAL_TOKENS == ("<pad>", "<bos>", "<eos>", "<im_start>", "<im_end>", "[SEG]")
    assert write_answer(FINDINGS).startswith(f" It is {SEG}.")
