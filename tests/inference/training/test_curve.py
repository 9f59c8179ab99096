"""A run's picture has a curve for every number of its log, and its clock shows what is left."""

import json
from pathlib import Path

from inference.training.curve import curves_of, draw_curves


def line(minutes: float, images_per_s: float, **numbers: float) -> dict[str, float]:
    return {"step": 1, "minutes": minutes, "side": 256, "lr": 0.1, "images_per_s": images_per_s, **numbers}


def test_curves_are_drawn_by_name(tmp_path: Path) -> None:
    lines = [line(1, 5.0, mask=0.9), line(2, 5.0, mask=0.5, text=0.1), line(2, 0.0, busbra=0.7)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curve.svg")
    picture = (tmp_path / "curve.svg").read_text()
    assert all(f">{name}<" in picture.replace("\n", "") for name in ("mask", "text", "busbra"))
    assert ">lr<" not in picture
    assert picture.count("<polyline") >= 1
    assert curves_of(lines[:2]) == {"mask": [(1, 0.9), (2, 0.5)], "text": [(2, 0.1)]}


def test_a_run_that_has_no_score_yet_has_a_picture_too(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(line(1, 5.0, mask=0.9)) + "\n")
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curve.svg")
    assert "losses" in (tmp_path / "curve.svg").read_text()
    assert "validation" not in (tmp_path / "curve.svg").read_text()
