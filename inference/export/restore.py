"""The weights of a Sim4Seg package back in PyTorch: to train on from what is shipped, to compare engines.

    python -m inference.export.restore --package inference/packages/sim4seg-s --out weights.safetensors

A package holds graphs, not parameters: matrices have lost their names, batch norms are folded into
convolutions. So a model of random parameters is exported the same way; each constant of its graphs is
recognised as one of its parameters, or its transpose, and the package's constant at the same place is that
parameter's value. What is stored in 8 or 16 bits comes back as it is served.

No graph holds the layers behind the two entries of the mask prompt, the frequencies of the positions, and
what only training needs: the first two are made so that they give what the graph has.
"""

import argparse
import math
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from inference.export.families import FAMILIES
from inference.export.to_onnx import export_graph
from inference.models.checkpoints import CheckpointError, save_tensors
from inference.models.sam import PromptEncoder
from inference.models.sim4seg import Sim4Seg

Values = NDArray[np.float32]
TOKENS = (1, 2, 256)  # shape of IoU and mask token, which the exporter puts together


def restore(folder: Path, seed: int = 0) -> Sim4Seg:
    """The small Sim4Seg with the weights of the package in `folder`, in eval mode.

    Raises
    ------
    CheckpointError
        If the graphs are not those that this version exports.
    """
    torch.manual_seed(seed)
    model = FAMILIES["sim4seg"].build(FAMILIES["sim4seg"].top_k).eval()
    assert isinstance(model, Sim4Seg)  # noqa: S101 - for the type checker
    fill_randomly(model)
    found, nameless = recognise(model, folder)
    tokens = next(values for values in nameless.values() if values.shape == TOKENS)
    found["mask_decoder.iou_token.weight"], found["mask_decoder.mask_tokens.weight"] = (
        tokens[0, :1],
        tokens[0, 1:],
    )
    matrix = position_frequencies(nameless["positions"][0])
    found["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = matrix
    model.load_state_dict(
        {name: torch.from_numpy(values.copy()) for name, values in found.items()}, strict=False
    )
    give_entries(model.prompt_encoder, nameless["outside"], nameless["outside"] + nameless["step"])
    return model


def fill_randomly(model: nn.Module) -> None:
    """Make every parameter another; batch norms do nothing but add their bias, as they do once folded."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.fill_(1)
                part.running_mean.zero_()  # type: ignore[union-attr]
                part.running_var.fill_(1 - part.eps)  # type: ignore[union-attr]


def restore_package(folder: Path, seed: int = 0) -> tuple[str, nn.Module]:
    """Family and PyTorch module of any package, with the values that its graphs hold, in eval mode.

    Raises
    ------
    CheckpointError
        If the graphs are not those that this version exports.
    """
    family = tomllib.loads((folder / "model.toml").read_text())["model"]["family"]
    if family == "sim4seg":
        return family, restore(folder, seed)
    torch.manual_seed(seed)
    model = FAMILIES[family].build(0).eval()
    fill_randomly(model)
    found, nameless = recognise(model, folder, family)
    for values in nameless.values():  # MedSeg-R's: constants that the exporter put together or turned
        if values.shape == TOKENS:
            found["mask_decoder.iou_token.weight"] = values[0, :1]
            found["mask_decoder.mask_tokens.weight"] = values[0, 1:]
        elif values.shape == (1, TOKENS[-1], 1, 1):
            found["prompt_encoder.no_mask_embed.weight"] = values[:, :, 0, 0]
        elif values.ndim == 3:
            found["cognitive.unknown"] = values[0]
    state = {name: torch.from_numpy(values.copy()) for name, values in found.items()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()}, strict=False)
    return family, model


def recognise(
    model: nn.Module, folder: Path, family: str = "sim4seg"
) -> tuple[dict[str, Values], dict[str, Values]]:
    """The package's values by parameter, and those that are none of `model`'s by their name in the graph.

    Raises
    ------
    CheckpointError
    """
    state = {name: value.numpy() for name, value in model.state_dict().items() if value.is_floating_point()}
    found: dict[str, Values] = {}
    nameless: dict[str, Values] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, spec in FAMILIES[family].specs(model).items():
            export_graph(spec, Path(scratch) / name)
            for key, marker, value in _side_by_side(Path(scratch) / name, folder / name):
                if (parameter := _same(state, marker)) is not None:
                    found[parameter] = value
                elif marker.ndim == 2 and (parameter := _same(state, marker.T)) is not None:
                    found[parameter] = value.T
                else:
                    nameless[key] = value
    return found, nameless


def _side_by_side(ours: Path, theirs: Path) -> Iterator[tuple[str, Values, Values]]:
    """Name, our value and theirs of each constant of two graphs of one form."""
    first, second = list(constants(ours)), list(constants(theirs))
    if [(name, value.shape) for name, value in first] != [(name, value.shape) for name, value in second]:
        raise CheckpointError(f"{theirs.name} was exported by another version: its constants differ")
    for (name, marker), (_, value) in zip(first, second, strict=True):
        yield name, marker, value


def _same(state: Mapping[str, Values], marker: Values) -> str | None:
    """The parameter that holds these values; folding a batch norm that does nothing moves the last digit."""
    alike = (name for name, value in state.items() if value.shape == marker.shape)
    return next((name for name in alike if np.allclose(state[name], marker, rtol=1e-3, atol=1e-4)), None)


def constants(path: Path) -> Iterator[tuple[str, Values]]:
    """Name and value of each float constant of a graph; 8- and 16-bit ones as they are served."""
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    for name, value in stored.items():
        stem, _, kind = name.rpartition(".")
        if kind == "f16":
            yield stem, value.astype(np.float32)
        elif kind == "i8":
            yield stem, value.astype(np.float32) * stored[f"{stem}.scale"]
        elif value.dtype == np.float32 and not (kind == "scale" and f"{stem}.i8" in stored):
            yield name, value


def position_frequencies(positions: Values) -> Values:
    """The matrix (2, C) behind positions (2 C, h, w), which are sines and cosines of 2 pi (x, y) @ matrix.

    From one cell to the next an angle grows by less than a half turn, so the mean step gives the frequency;
    what is left over the whole grid mends it.
    """
    sines, cosines = np.split(positions.astype(np.float64), 2)
    turns = cosines + 1j * sines
    along_x, along_y = (_mean_step(turns, axis) * turns.shape[axis] / (4 * math.pi) for axis in (2, 1))
    matrix = np.stack([along_x, along_y])
    y, x = (2 * (np.arange(size) + 0.5) / size - 1 for size in turns.shape[1:])
    for _ in range(3):
        angles = 2 * math.pi * (matrix[0][:, None, None] * x + matrix[1][:, None, None] * y[:, None])
        left = np.angle(turns * np.exp(-1j * angles)) / (2 * math.pi)
        matrix[0] += (left * x).mean((1, 2)) / (x * x).mean()
        matrix[1] += (left * y[:, None]).mean((1, 2)) / (y * y).mean()
    return matrix.astype(np.float32)


def _mean_step(turns: NDArray[np.complex128], axis: int) -> NDArray[np.float64]:
    ahead, behind = np.delete(turns, 0, axis), np.delete(turns, -1, axis)
    return np.asarray(np.angle((ahead * behind.conj()).sum(axis=(1, 2))))


@torch.no_grad()
def give_entries(encoder: PromptEncoder, outside: Values, inside: Values) -> None:
    """Set the last layer of the mask prompt so that its two entries (256,) are these."""
    first, last = encoder.mask_downscaling[:-1], encoder.mask_downscaling[-1]
    assert isinstance(last, nn.Conv2d)  # noqa: S101 - for the type checker
    assert last.bias is not None  # noqa: S101 - likewise
    before = first(torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]))[:, :, 0, 0]
    wanted = torch.from_numpy(np.stack([outside.reshape(-1), inside.reshape(-1)]))
    apart = before[1] - before[0]
    weight = torch.outer(wanted[1] - wanted[0], apart) / apart.square().sum()
    last.weight.copy_(weight[:, :, None, None])
    last.bias.copy_(wanted[0] - weight @ before[0])


def main() -> None:
    """Write the weights of a package as a training checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("package", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    state = restore(options.package).state_dict()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(options.out, {f"model.{name}": value for name, value in state.items()})
    print(f"{len(state)} tensors of {options.package} are in {options.out}")


if __name__ == "__main__":
    main()
