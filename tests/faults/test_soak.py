"""The last line of the soak: a loss anywhere shows in its sums, and in its verdict."""

from collections import Counter

import pytest

from tests.faults.kills import KillFigures
from tests.faults.power_cut import Figures
from tests.faults.soak import summary


def kept(**broken: set[str]) -> dict[str, Figures]:
    """Two campaigns, of which the second may have broken a promise."""
    return {"sqlite": Figures(cuts=3, acknowledged=60), "postgresql": Figures(2, 40, **broken)}


def test_every_figure_is_a_sum() -> None:
    kills = KillFigures(1, Counter({"scp": 4, "worker-run": 6}))
    told = summary(kept(), kills)
    assert [told[key] for key in ("cuts", "kills", "acknowledged")] == [5, 10, 100]
    assert [told[key] for key in ("lost", "partial", "wrong_digests")] == [0, 0, 0]
    assert (told["upper_bound_95"], told["is_sound"]) == (0.03, True)
    assert list(told["cuts_by_stage"]) == ["sqlite", "postgresql"]
    assert summary(kept(), None)["is_sound"]


@pytest.mark.parametrize(
    ("name", "shown"), [("lost", "lost"), ("partial", "partial"), ("wrong_digest", "wrong_digests")]
)
def test_one_loss_is_told(name: str, shown: str) -> None:
    told = summary(kept(**{name: {"1.2.3"}}), None)
    assert (told[shown], told["is_sound"]) == (1, False)


def test_a_promise_that_a_kill_broke_is_told() -> None:
    told = summary(kept(), KillFigures(1, problems=["two sets of results"]))
    assert (told["broken_promises_after_kills"], told["is_sound"]) == (1, False)
