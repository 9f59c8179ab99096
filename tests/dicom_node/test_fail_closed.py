"""OPS-05, OPS-06: a node that cannot be what its configuration says does not start; one line says why."""

import fcntl
from pathlib import Path

import pytest

from dicom_node.__main__ import EXIT_UNUSABLE, main

MUTATED = [
    "[dimse",
    "dimse = 3",
    "\x00",
    "[dimse]\nport = 0",
    "[dimse]\nport = 70000",
    "[dimse]\nport = 'a'",
    "[dimse]\nport = 11112.5",
    "[dimse]\nprot = 11112",
    "[dimse]\nae_title = 'LONGER THAN SIXTEEN'",
    "[dimse]\nae_title = ''",
    "[http]\nport = -1",
    "[http]\nunknown = true",
    "[storage]\ndatabase_url = 'mysql://x'",
    "[storage]\ndatabase_url = 5",
    "[completion]\nquiet_period_s = -1",
    "[completion]\nquiet_period_s = nan",
    "[sweep]\ninterval_s = 0",
    "[jobs]\nlease_s = 0",
    "[jobs]\nmax_attempts = 0",
    "[jobs]\nmax_attempts = 1000000",
    "[jobs]\nmodel_memory_mb = 1",
    "[delivery]\nmax_age_s = -5",
    "[limits]\nmax_frames = 0",
    "[limits]\ndecode_memory_mb = 'much'",
    "[inference]\nexecution_providers = []",
    "[inference]\ntest_mode = 'perhaps'",
    "[logs]\nlevel = 'LOUD'",
    "[[routes]]\nname = 'a'\nmodel = '../../etc'\nquery = 'q'",
    "[[routes]]\nname = 'a'\nmodel = 'm'\nquery = ''",
    "[[routes]]\nname = 'a'\nmodel = 'm'\nquery = 'q'\ndescription = '('",
    "[[destinations]]\nname = 'a'",
    "[[peers]]\nname = 'a'\nae_title = 'A'\nhost = 'h'\nport = 99999",
    "home = '/somewhere'",
    "[unheard_of]\na = 1",
]


@pytest.mark.parametrize("text", MUTATED)
def test_a_bad_configuration_starts_nothing_and_says_why_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    home, config = tmp_path / "home", tmp_path / "node.toml"
    config.write_text(text, encoding="utf-8")
    assert main(["serve", "--home", str(home), "--config", str(config)]) == EXIT_UNUSABLE
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert not home.exists()


def test_a_second_node_on_the_same_home_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "serve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["serve", "--home", str(tmp_path)]) == EXIT_UNUSABLE
    assert "another node already runs" in capsys.readouterr().err
    assert not (tmp_path / "node.sqlite").exists()
