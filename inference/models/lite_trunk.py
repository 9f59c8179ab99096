"""EfficientNet-Lite0 as a trunk: features at strides 4, 8, 16 and 32 for the small encoder and tower.

Written from the paper (Tan & Le, arXiv 1905.11946) and the published description of its Lite form: no
squeeze-and-excite, ReLU6, stem of fixed width. Padding is TensorFlow's SAME, as the ImageNet weights expect
(`inference/training/imagenet.py`); no absolute positions, so any side that 32 divides will do.
"""

from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.sam import Modulate


@dataclass(frozen=True)
class TrunkConfig:
    """Widths and depths of the seven groups of blocks; the defaults are EfficientNet-Lite0."""

    stem: int = 32
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    expand: int = 6  # not of the first group, which does not widen

    @property
    def outputs(self) -> tuple[int, int, int, int]:
        """Channels of the features at strides 4, 8, 16 and 32."""
        return self.widths[1], self.widths[2], self.widths[4], self.widths[6]

    @property
    def inputs(self) -> tuple[int, int, int, int]:
        """Channels before each of the four stages."""
        return self.stem, *self.outputs[:3]


KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # groups that make up the stage at stride 4, 8, 16, 32


class SameConv(nn.Sequential):
    """Convolution without bias, then batch norm; where it halves, more padding comes after than before."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        before = (side - stride) // 2
        after = side - stride - before
        self.add_module("pad", nn.ZeroPad2d((before, after, before, after)) if stride > 1 else nn.Identity())
        padding = 0 if stride > 1 else side // 2
        self.add_module("c", nn.Conv2d(inputs, outputs, side, stride, padding, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs, eps=1e-3))


class LiteBlock(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018) with ReLU6."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.is_residual = stride == 1 and inputs == outputs
        self.expand: nn.Module = SameConv(inputs, hidden, 1) if expand > 1 else nn.Identity()
        self.widens = expand > 1
        self.depthwise = SameConv(hidden, hidden, side, stride, groups=hidden)
        self.project = SameConv(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        inner = F.relu6(self.expand(x)) if self.widens else x
        inner = self.project(F.relu6(self.depthwise(inner)))
        return x + inner if self.is_residual else inner


class LiteTrunk(nn.Module):
    """Stem and four stages."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.kept_stages = 0
        self.stem = SameConv(3, config.stem, 3, 2)
        before = [config.stem, *config.widths[:-1]]
        groups = [
            [
                LiteBlock(
                    before[i] if j == 0 else config.widths[i],
                    config.widths[i],
                    KERNELS[i],
                    STRIDES[i] if j == 0 else 1,
                    config.expand if i else 1,
                )
                for j in range(config.depths[i])
            ]
            for i in range(len(config.widths))
        ]
        self.stages = nn.ModuleList(
            nn.Sequential(*(block for i in members for block in groups[i])) for members in STAGES
        )

    def forward(self, pixels: Tensor, modulate: Modulate | None = None) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S), S a multiple of 32 -> features at strides 4, 8, 16, 32.

        `modulate(i, x)` may change the features (B, C, h, w) before stage i.
        """
        x = F.relu6(self.stem(pixels))
        features: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x if modulate is None else modulate(i, x))
            features.append(x)
        return features

    def keep(self, stages: int) -> None:
        """Leave stem, the first `stages` stages and all 5x5 kernels as they are: twice as fast."""
        self.kept_stages = stages
        if not stages:
            return
        for part in self._kept():
            part.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (5, 5):
                module.requires_grad_(False)  # their weight gradients cost more than all else on a CPU
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; the batch norms of what is kept stay as they are."""
        super().train(mode)
        for part in self._kept():
            part.eval()
        return self

    def _kept(self) -> list[nn.Module]:
        return [self.stem, *list(self.stages)[: self.kept_stages]] if self.kept_stages else []
