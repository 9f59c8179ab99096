"""A hundred SIGKILLs of random processes: every study ends with one set of results, always the same."""

from pathlib import Path

import pytest

from tests.faults.kills import MODEL, MODEL_EVERY, run_kills

KILLS = 100


@pytest.mark.timeout(900)
def test_a_hundred_kills_cost_no_study_and_double_none(tmp_path: Path) -> None:
    figures = run_kills(tmp_path, KILLS, seed=5)
    print(figures.as_json())
    assert figures.problems == []
    assert sum(figures.kills.values()) == KILLS
    assert figures.studies >= KILLS // 4
    assert {"serve", "scp", "web", "sweep"} <= set(figures.kills)
    assert {"worker run", "worker deliver"} <= set(figures.kills)
    assert figures.kills[MODEL] >= KILLS // MODEL_EVERY
