"""The honest rival: MONAI's U-Net on our trunk, trained by the same loop on the same samples.

It starts from the same ImageNet weights as our encoder, so that what is compared is what is behind it.
Masks only: it knows neither questions nor diagnoses. MONAI comes with the `train` extra.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.networks.blocks.encoder import BaseEncoder
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, FlexibleUNet
from torch import Tensor, nn

from inference.datasets.sample import ImageBatch, collate
from inference.models.checkpoints import load_into, load_tensors
from inference.models.lite_trunk import LiteTrunk, TrunkConfig
from inference.training.losses import mask_loss
from inference.training.stages import (
    Bench,
    Losses,
    Phase,
    channels_last,
    dice_by_dataset,
    is_outlined,
    mixed_precision,
    prepare_trunk,
)

CHANNELS = (256, 128, 64, 32, 16)  # MONAI's own default: 4.7 million parameters with the trunk
BACKBONE = "efficientnet-lite0"


class LiteEncoder(nn.Module, BaseEncoder):
    """EfficientNet-Lite0 with the features of every halving, in the form that MONAI asks of a backbone."""

    def __init__(self, **_: object) -> None:  # MONAI names dimensions and channels: two and three, always
        super().__init__()
        self.trunk = LiteTrunk(TrunkConfig())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) -> features at strides 2, 4, 8, 16, 32."""
        before: list[Tensor] = []

        def keep_stem(stage: int, x: Tensor) -> Tensor:
            if stage == 0:
                before.append(x)
            return x

        return before + self.trunk(pixels, keep_stem)

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """The name to ask MONAI for."""
        return [BACKBONE]

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, object]]:
        """What MONAI will fill in."""
        return [{"spatial_dims": 2, "in_channels": 3, "pretrained": False}]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """How many features there are."""
        return [5]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Channels of each."""
        return [TrunkConfig().inputs[:1] + TrunkConfig().outputs]


FLEXUNET_BACKBONE.register_class(LiteEncoder)


def build_unet(channels: Sequence[int] = CHANNELS) -> nn.Module:
    """pixels (B, 3, S, S), S a multiple of 32 -> logits (B, 1, S, S)."""
    unet: nn.Module = FlexibleUNet(3, 1, BACKBONE, decoder_channels=tuple(channels), is_pad=False)
    return unet


class UnetStage:
    """Masks of everything that is outlined, empty ones too."""

    def __init__(self, bench: Bench, channels: Sequence[int] = CHANNELS) -> None:
        self.module: nn.Module = channels_last(build_unet(channels))
        self.bench = bench

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take the trunk's weights, else all of those to start from."""
        prepare_trunk(self.module.get_submodule("encoder"), settings)
        for path in start:
            load_into(self.module, load_tensors(path)[0])

    def losses(self, phase: Phase) -> Losses:
        """One batch: the mask loss of the other models."""
        samples = [s for s in self.bench.sampler.draw(phase.batch) if is_outlined(s)]
        batch = collate(samples, self.bench.frame_side, phase.side)
        with mixed_precision():
            logits = self.module(batch.pixels)
        return {"mask": mask_loss(logits, batch.masks, self.bench.weights)}

    def validate(self, phase: Phase) -> dict[str, float]:
        """Dice per data set on fixed images."""

        def predict(batch: ImageBatch) -> Tensor:
            logits: Tensor = self.module(batch.pixels)
            return logits

        shown = [sample for sample in self.bench.validation if sample.mask.any()]
        return dice_by_dataset(shown, predict, self.bench.frame_side, phase.side)
