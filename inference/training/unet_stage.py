"""The honest rival: MONAI's U-Net, trained by the same loop on the same samples.

Masks only: it knows neither questions nor diagnoses. MONAI comes with the `train` extra.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn

from inference.datasets.sample import ImageBatch, collate
from inference.models.checkpoints import load_into, load_tensors
from inference.training.losses import mask_loss
from inference.training.stages import Bench, Losses, Phase, channels_last, dice_by_dataset, is_outlined

FEATURES = (32, 64, 128, 256, 384, 32)  # 6.1 million parameters; MONAI's own default begins (32, 32, 64, ...)


def build_unet(features: Sequence[int] = FEATURES) -> nn.Module:
    """pixels (B, 3, S, S), S a multiple of 16 -> logits (B, 1, S, S)."""
    unet: nn.Module = BasicUNet(
        spatial_dims=2, in_channels=3, out_channels=1, features=tuple(features), norm=("batch", {})
    )
    return unet


class UnetStage:
    """Masks of everything that is outlined, empty ones too."""

    def __init__(self, bench: Bench, features: Sequence[int] = FEATURES) -> None:
        self.module: nn.Module = channels_last(build_unet(features))
        self.bench = bench

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:  # noqa: ARG002 - what stages share
        """Take the weights to start from."""
        for path in start:
            load_into(self.module, load_tensors(path)[0])

    def losses(self, phase: Phase) -> Losses:
        """One batch: the mask loss of the other models."""
        samples = [s for s in self.bench.sampler.draw(phase.batch) if is_outlined(s)]
        batch = collate(samples, self.bench.frame_side, phase.side)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.module(batch.pixels)
        return {"mask": mask_loss(logits, batch.masks, self.bench.weights)}

    def validate(self, phase: Phase) -> dict[str, float]:
        """Dice per data set on fixed images."""

        def predict(batch: ImageBatch) -> Tensor:
            logits: Tensor = self.module(batch.pixels)
            return logits

        shown = [sample for sample in self.bench.validation if sample.mask.any()]
        return dice_by_dataset(shown, predict, self.bench.frame_side, phase.side)
