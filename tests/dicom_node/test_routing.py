import time
from dataclasses import replace

import pytest
from pydantic import ValidationError

from dicom_node.default_routes import DEFAULT_ROUTES
from dicom_node.routing import Route, SeriesAttributes, choose_route
from inference.prompts import TARGETS

ULTRASOUND = SeriesAttributes(
    modality="US",
    body_part="BREAST",
    sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.6.1"}),
    descriptions=("Left breast", "Screening"),
    calling_ae="SCANNER",
    is_own_result=False,
)


def route(**conditions: object) -> Route:
    return Route.model_validate({"name": "rule", "model": "m", "query": "q", **conditions})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, "breast-ultrasound"),
        ({"body_part": "breast "}, "breast-ultrasound"),
        ({"body_part": "THYROID"}, None),
        ({"modality": "MR", "body_part": "HEART"}, "cardiac-mr"),
        ({"modality": "MR", "body_part": "CARDIAC"}, "cardiac-mr"),
        ({"modality": "MR", "body_part": "BRAIN"}, None),
        ({"modality": "DX", "body_part": "HAND"}, "bone-radiograph"),
        ({"modality": "CR", "body_part": ""}, "bone-radiograph"),
        ({"modality": "DX", "body_part": "CHEST"}, None),
        ({"modality": "ES", "body_part": "COLON"}, "endoscopy"),
        (
            {"modality": "XC", "body_part": "", "sop_classes": frozenset({"1.2.840.10008.5.1.4.1.1.77.1.1"})},
            "endoscopy-photograph",
        ),
        ({"modality": "CT", "body_part": "CHEST"}, "chest-ct"),
        ({"modality": "CT", "body_part": "HEAD"}, None),
        ({"modality": "XC", "body_part": "SKIN"}, "dermoscopy"),
        ({"modality": "SEG"}, None),
    ],
)
def test_the_default_rules(changes: dict[str, object], rule: str | None) -> None:
    choice = choose_route(replace(ULTRASOUND, **changes), DEFAULT_ROUTES)
    assert (choice.route.name if choice.route else None) == rule


def test_the_first_rule_that_matches_wins() -> None:
    rules = (route(name="ct", modality=("CT",)), route(name="first"), route(name="second"))
    choice = choose_route(ULTRASOUND, rules)
    assert choice.route is rules[1]
    assert choice.why_not == ("ct: modality is not CT",)


def test_own_results_never_match() -> None:
    assert choose_route(replace(ULTRASOUND, is_own_result=True), (route(),)).route is None


@pytest.mark.parametrize(
    ("conditions", "why"),
    [
        ({"modality": ("CT", "MR")}, "modality is not CT or MR"),
        ({"body_part": ("HEART",)}, "body part is not HEART"),
        ({"not_body_part": ("BREAST",)}, "body part is one of BREAST"),
        ({"sop_class": ("1.2.3",)}, "SOP Class is not listed"),
        ({"calling_ae": ("OTHER",)}, "calling AE is not OTHER"),
        ({"description": "thyroid"}, "no description matches the expression"),
    ],
)
def test_why_a_rule_does_not_match_is_said_without_the_series_texts(
    conditions: dict[str, object], why: str
) -> None:
    choice = choose_route(ULTRASOUND, (route(**conditions),))
    assert (choice.route, choice.why_not) == (None, (f"rule: {why}",))


def test_descriptions_match_by_expression_in_any_case() -> None:
    assert choose_route(ULTRASOUND, (route(description=r"\bBREAST\b"),)).route is not None
    assert choose_route(ULTRASOUND, (route(description="^screen"),)).route is not None


def test_a_description_is_looked_at_only_so_far() -> None:
    long = replace(ULTRASOUND, descriptions=("x" * 1000 + "needle",))
    started = time.perf_counter()
    assert choose_route(long, (route(description="needle"),)).route is None
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("conditions", [{"modalty": ("US",)}, {"description": "("}, {"query": ""}])
def test_a_rule_that_says_nothing_sensible_is_refused(conditions: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        route(**conditions)


def test_the_default_rules_ask_for_targets_the_model_knows() -> None:
    assert {rule.target for rule in DEFAULT_ROUTES} <= set(TARGETS.values())
