"""A rival's report stands beside a package's only where both speak of the same images."""

import json
from pathlib import Path

import pytest

from inference.training.compare import NotComparable, beside, main

SCORE = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 3}


def report(images: int) -> dict[str, object]:
    scores = {"images": images, "dice": SCORE}
    return {"model": {"name": "m"}, "datasets": {"busbra": scores}, "all": scores}


def test_a_rival_becomes_a_variant_and_replaces_an_older_one() -> None:
    first = beside(report(3), {"unet": report(3)})
    again = {**report(3), "all": {"images": 3, "dice": {**SCORE, "mean": 0.7}}}
    second = beside(first, {"unet": again, "lisa": report(3)})
    assert set(second["variants"]) == {"unet", "lisa"}
    assert second["variants"]["unet"]["all"]["dice"]["mean"] == 0.7
    assert "model" not in second["variants"]["unet"]
    assert first["variants"]["unet"]["all"]["dice"]["mean"] == 0.5


def test_other_images_are_refused() -> None:
    with pytest.raises(NotComparable, match=r"unet was scored on other images: \{'busbra': 4\}"):
        beside(report(3), {"unet": report(4)})


def test_the_command_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("own", "rival"):
        (tmp_path / f"{name}.json").write_text(json.dumps(report(3)))
    command = ["compare", "--into", str(tmp_path / "own.json")]
    monkeypatch.setattr("sys.argv", [*command, f"unet={tmp_path}/rival.json"])
    main()
    assert "busbra (unet)" in capsys.readouterr().out
    assert "unet" in json.loads((tmp_path / "own.json").read_text())["variants"]
    monkeypatch.setattr("sys.argv", [*command, "unet"])
    with pytest.raises(SystemExit):
        main()
    assert "NAME=FILE" in capsys.readouterr().err
