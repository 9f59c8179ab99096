"""Load and save weights: safetensors only, sha256, key renames."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class CheckpointError(Exception):
    """A weights file does not fit the module it is meant for."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write `tensors` and string `notes` to `path`, whole or not at all."""
    unfinished = path.with_suffix(".part")
    ready = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(ready, unfinished, metadata=dict(notes or {}))
    unfinished.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read back what `save_tensors` wrote: tensors and notes."""
    with safe_open(path, framework="pt") as file:
        notes = dict(file.metadata() or {})
    return load_file(path), notes


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `module`; every parameter and buffer must be there and fit.

    Raises
    ------
    CheckpointError
        If a name is missing, unknown, or of another shape.
    """
    try:
        module.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise CheckpointError(str(error)) from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def average_into(average: Mapping[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move the exponential moving `average` towards the module's state, in place; counters are copied."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)
