"""What 0x0000 and 200 promise survives a power cut: tried by cutting the power of the volume."""

import pytest

from tests.faults.power_cut import MIN_IN_FLIGHT, run_cuts
from tests.faults.stages import Stage
from tests.faults.zygote import Zygote

CUTS = 50


@pytest.mark.timeout(1500)
def test_nothing_acknowledged_is_lost_when_the_power_is_cut(volume, zygote, tmp_path, capsys):
    figures = run_cuts(Stage([volume]), zygote, tmp_path, CUTS, seed=20261122)
    with capsys.disabled():
        print(f"\npower cuts: {figures}")
    assert figures.is_sound, figures
    assert figures.cuts == CUTS
    assert figures.acknowledged >= 2000
    assert figures.fewest_per_cut >= MIN_IN_FLIGHT
    assert figures.retrieved == 50


@pytest.mark.parametrize(
    "weakness",
    ["no-fsync-of-files", "no-fsync-of-index", "nothing-in-the-journal", "no-sync-behind-the-journal"],
)
def test_the_cut_shows_what_is_not_flushed(volume, tmp_path, weakness):
    with Zygote(weakness) as weak:
        figures = run_cuts(Stage([volume]), weak, tmp_path, 10, seed=1)
    assert not figures.is_sound, figures


@pytest.mark.timeout(600)
def test_the_cut_shows_a_folder_that_is_not_flushed(volume, tmp_path, database_url):
    """With the index elsewhere: on the same volume its own flush would take the folder along."""
    stage = Stage([volume], database_url)
    with Zygote("no-fsync-of-folders") as weak:
        figures = run_cuts(stage, weak, tmp_path, 100, seed=1)  # ends at the first loss
    assert not figures.is_sound, figures
