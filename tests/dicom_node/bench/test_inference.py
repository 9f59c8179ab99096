"""`dicom-node bench inference` on the package that is shipped; how fast it was is not tested."""

import json
from pathlib import Path

import pytest

from dicom_node.bench.pipeline import bench_inference
from dicom_node.settings import load_settings


def test_the_shipped_model_is_measured_stage_by_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_inference(load_settings(tmp_path), "sim4seg-s", rounds=1)
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])["packages"]["sim4seg-s"]
    assert report["has_region"]
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert all(stages[name]["floor_s"] > 0 for name in ("image_encoder", "language_steps", "mask_decoder"))
    assert report["paths"]["paths"] == 4
    assert any(line.startswith("mask_decoder") for line in lines)
