"""From a package back to PyTorch: what is restored is exported to the same graphs, number for number."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inference.export.families import FAMILIES
from inference.export.graphs import ExportSpec
from inference.export.restore import restore
from inference.models.checkpoints import CheckpointError
from inference.models.sim4seg import Sim4Seg
from inference.runtime.onnx_engine import OnnxEngine
from inference.settings import PACKAGES

PACKAGE = PACKAGES / "sim4seg-s"


@pytest.fixture(scope="module")
def model() -> Sim4Seg:
    return restore(PACKAGE)


@pytest.mark.parametrize("name", ["image_encoder", "language_prefill", "language_step", "mask_decoder"])
def test_the_restored_model_answers_as_the_package(model: Sim4Seg, name: str) -> None:
    spec: ExportSpec = FAMILIES["sim4seg"].specs(model)[f"{name}.onnx"]
    engine = OnnxEngine(name, (PACKAGE / f"{name}.onnx").read_bytes(), threads=1)
    got = engine.run({key: value.numpy() for key, value in spec.inputs.items()})
    with torch.no_grad():
        want = spec.module(*spec.inputs.values())
    for key, value in zip(spec.outputs, want if isinstance(want, tuple) else (want,), strict=True):
        error = np.sqrt(np.mean((got[key] - value.numpy()) ** 2) / np.mean(value.numpy() ** 2))
        assert error < 0.005, f"{key}: {error}"  # positions are stored in 8 bits


def test_graphs_of_another_form_are_refused(tmp_path: Path) -> None:
    for path in PACKAGE.glob("*.onnx"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "image_encoder.onnx").unlink()
    (tmp_path / "image_encoder.onnx").symlink_to(PACKAGE / "language_step.onnx")
    with pytest.raises(CheckpointError, match="another version"):
        restore(tmp_path)
