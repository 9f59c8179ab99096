"""The mean of the weights of several runs."""

import sys
from pathlib import Path

import pytest
import torch

from inference.models.checkpoints import CheckpointError, load_tensors, save_tensors
from inference.training import average


def test_floats_are_averaged_and_counters_are_the_last_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for number, value in enumerate((1.0, 2.0, 6.0)):
        paths.append(tmp_path / f"{number}.safetensors")
        tensors = {"weight": torch.full((2, 2), value), "steps": torch.tensor(number)}
        save_tensors(paths[-1], tensors, {"stage": str(number)})
    out = tmp_path / "new" / "weights.safetensors"
    monkeypatch.setattr(sys, "argv", ["average", "--out", str(out), *map(str, paths)])
    average.main()
    made, notes = load_tensors(out)
    assert torch.equal(made["weight"], torch.full((2, 2), 3.0))
    assert made["weight"].dtype == torch.float32
    assert int(made["steps"]) == 2
    assert notes == {"stage": "2"}


@pytest.mark.parametrize("other", [{"b": torch.zeros(2)}, {"a": torch.zeros(3)}], ids=["name", "shape"])
def test_weights_of_two_models_are_refused(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="not of one model"):
        average.mean_of([{"a": torch.zeros(2)}, other])
