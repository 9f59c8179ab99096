"""`dicom-node demo`: what `make demo ONCE=1` and `make demo ONCE=1 STUDY=path` do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import make_ellipse, make_grey_image
from tests.flow.nodes import REPOSITORY

pytestmark = pytest.mark.timeout(300)


def run_demo(home: Path, models: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicom_node", "demo", "--once", "--home", str(home), *words],
        cwd=REPOSITORY,
        env={**os.environ, "DICOM_NODE_INFERENCE__MODEL_REPOSITORY": str(models)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_samples_come_back_complete(tmp_path: Path, models: Path) -> None:
    done = run_demo(tmp_path / "demo", models)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Research use only. Not a medical device. Synthetic images." in done.stdout
    assert done.stdout.count("  diagnosis   ") == 3
    assert done.stdout.count("  reasoning   ") == 3
    assert done.stdout.count("s from the last image to the result at the PACS") == 3
    assert len(list((tmp_path / "demo" / "pacs").glob("SR-*.dcm"))) == 3
    assert list((tmp_path / "demo" / "pacs").glob("SEG-*.dcm"))
    assert not (tmp_path / "demo" / "node" / "run" / "serve.pid").exists()


def test_a_picture_of_ones_own(tmp_path: Path, tiny_models: Path) -> None:
    grey = make_grey_image(make_ellipse((120, 160), (60, 80), (20, 30)))
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "own.png")
    done = run_demo(tmp_path / "demo", tiny_models, "--study", str(tmp_path / "own.png"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The images are sent as US BREAST" in done.stdout
    assert "diagnosis   benign" in done.stdout


def test_a_picture_that_no_rule_covers(
    tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALITY", "CT")
    monkeypatch.setenv("BODY_PART", "HEAD")
    Image.fromarray(make_grey_image(make_ellipse((120, 160), (60, 80), (20, 30)))).save(tmp_path / "own.png")
    done = run_demo(tmp_path / "demo", tiny_models, "--study", str(tmp_path / "own.png"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no rule matched" in done.stdout
