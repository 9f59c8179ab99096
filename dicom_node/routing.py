"""4 JOB. Which model and prompt for which series: declared rules, first match wins; never our own results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_PATTERN_LENGTH = 200  # characters of a rule's regular expression
MAX_DESCRIPTION_LENGTH = 128  # characters of a description that a rule looks at; LO holds 64

Codes = Annotated[tuple[str, ...], Field(max_length=200)]


@dataclass(frozen=True)
class SeriesAttributes:
    """What the rules may look at; free text is compared here and goes nowhere else."""

    modality: str
    body_part: str
    sop_classes: frozenset[str]
    descriptions: tuple[str, ...]  # series description, study description
    calling_ae: str
    is_own_result: bool


class Route(BaseModel):
    """One declared rule: every condition that is given must hold; an empty one always holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, description="Name of the rule; stands in jobs and logs.")
    modality: Codes = Field(default=(), description="Modality (0008,0060) is one of these; empty = any.")
    body_part: Codes = Field(
        default=(), description="Body Part Examined (0018,0015) is one of these; empty = any."
    )
    not_body_part: Codes = Field(
        default=(), description="Body Part Examined (0018,0015) is none of these; empty = no exclusion."
    )
    sop_class: Codes = Field(
        default=(), description="SOP Class UID of an instance of the series is one of these; empty = any."
    )
    description: str = Field(
        default="",
        max_length=MAX_PATTERN_LENGTH,
        description="Regular expression searched in series and study description, case ignored; empty = any.",
    )
    calling_ae: Codes = Field(default=(), description="AE title of the sender is one of these; empty = any.")
    model: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the model package to run."
    )
    query: str = Field(
        min_length=1,
        max_length=400,
        description="Clinical question for the model; never taken from DICOM tags.",
    )
    target: str = Field(
        default="",
        max_length=64,
        description="What is outlined, a target of the model; empty = diagnosis only.",
    )
    note: str = Field(default="", max_length=400, description="What a person should know about this rule.")
    priority: int = Field(default=0, ge=-100, le=100, description="Jobs of higher priority start first.")

    @field_validator("modality", "body_part", "not_body_part", mode="after")
    @classmethod
    def _upper(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(code.strip().upper() for code in codes)

    @field_validator("description", mode="after")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return pattern


@dataclass(frozen=True)
class RouteChoice:
    """The rule that matched, or none, and why each rule before it did not."""

    route: Route | None
    why_not: tuple[str, ...]


def choose_route(series: SeriesAttributes, routes: Sequence[Route]) -> RouteChoice:
    """The first rule that matches `series`; our own results match none."""
    if series.is_own_result:
        return RouteChoice(None, ("the series is a result of this node",))
    why_not: list[str] = []
    for route in routes:
        reason = mismatch(series, route)
        if reason is None:
            return RouteChoice(route, tuple(why_not))
        why_not.append(f"{route.name}: {reason}")
    return RouteChoice(None, tuple(why_not))


def mismatch(series: SeriesAttributes, route: Route) -> str | None:
    """The first condition of `route` that `series` does not meet, in words without its free text."""
    body_part = series.body_part.strip().upper()
    checks = (
        (
            _is_in(series.modality.strip().upper(), route.modality),
            f"modality is not {_any_of(route.modality)}",
        ),
        (_is_in(body_part, route.body_part), f"body part is not {_any_of(route.body_part)}"),
        (body_part not in route.not_body_part, f"body part is one of {_any_of(route.not_body_part)}"),
        (_overlap(series.sop_classes, route.sop_class), "SOP Class is not listed"),
        (
            _is_in(series.calling_ae.strip(), route.calling_ae),
            f"calling AE is not {_any_of(route.calling_ae)}",
        ),
        (_is_described(series.descriptions, route.description), "no description matches the expression"),
    )
    return next((words for holds, words in checks if not holds), None)


def _is_in(value: str, allowed: tuple[str, ...]) -> bool:
    return not allowed or value in allowed


def _overlap(values: frozenset[str], allowed: tuple[str, ...]) -> bool:
    return not allowed or not values.isdisjoint(allowed)


def _is_described(descriptions: tuple[str, ...], pattern: str) -> bool:
    if not pattern:
        return True
    expression = re.compile(pattern, re.IGNORECASE)
    return any(expression.search(text[:MAX_DESCRIPTION_LENGTH]) for text in descriptions)


def _any_of(codes: tuple[str, ...]) -> str:
    return " or ".join(codes) if codes else "any"
