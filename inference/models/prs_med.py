"""PRS-Med (arXiv 2505.11872): LVLM + positional reasoning + cross-attention mask decoder.

No [SEG]: the whole hidden sequence of image and question conditions the mask. One class, two
configurations: PAPER (CLIP ViT-L/14-336, Mistral-7B, TinySAM) and SMALL (prs-med-s). Written from the
paper and the facts of the released code (models.md 2.2); what the release does wrong is not done here:

- the mask sees the question, never the answer: `condition` takes states and the tokens to keep, and the
  language model is causal, so the states of the question cannot know what was answered;
- one pass of the language model serves both the text loss and the mask;
- the mask's logits are the decoder's own; nothing is stretched per image.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.lvlm import ClipConfig, LanguageConfig, Lvlm, TinyTowerConfig
from inference.models.sam import Attention, MlpBlock, VitConfig, VitImageEncoder
from inference.models.tiny_sam import TinyConfig, TinyImageEncoder
from inference.models.tiny_vit import TinyVitConfig, TinyVitImageEncoder


@dataclass(frozen=True)
class FusionConfig:
    """Size of the mask decoder; the defaults are the released code's (`mask_decoder_v5`)."""

    width: int = 256
    prompt_hidden: int = 512
    heads: int = 8  # of the cross-attention
    layer_heads: int = 16  # of the encoder layer behind it
    mlp_width: int = 512
    head_widths: tuple[int, ...] = (256, 128, 64)
    grid: int = 64  # side of the square of image tokens that are fused; the paper's figure has 16
    stride: int = 16  # of the image embedding, undone by the last, bilinear step


@dataclass(frozen=True)
class PrsMedConfig:
    """Sizes of the parts; the defaults are the paper's."""

    tower: ClipConfig | TinyTowerConfig = field(default_factory=lambda: ClipConfig(side=336))
    language: LanguageConfig = field(
        default_factory=lambda: LanguageConfig(
            mlp_width=14336, kv_heads=8, norm_eps=1e-5, rope_base=1e6
        )  # Mistral-7B-v0.2, below LLaVA-Med 1.5
    )
    encoder: VitConfig | TinyConfig | TinyVitConfig = field(default_factory=TinyVitConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    projector_layers: int = 2
    modalities: int = 6  # of the auxiliary head, in the released code only
    start_ids: tuple[int, ...] = (1,)


PAPER = PrsMedConfig()
SMALL = PrsMedConfig(
    tower=TinyTowerConfig(),
    language=LanguageConfig(vocabulary=768, width=192, depth=4, heads=4, mlp_width=512),
    encoder=TinyConfig(),
    fusion=FusionConfig(head_widths=(64, 48, 32), grid=16, stride=4),
    projector_layers=1,
    modalities=7,
    start_ids=(1, 3),
)


class PromptProjection(nn.Sequential):
    """States of the language model (B, T, C) -> prompt tokens (B, T, 256)."""

    def __init__(self, inputs: int, config: FusionConfig) -> None:
        super().__init__(
            nn.Linear(inputs, config.prompt_hidden),
            nn.LayerNorm(config.prompt_hidden),
            nn.ReLU(),
            nn.Linear(config.prompt_hidden, config.width),
            nn.LayerNorm(config.width),
            nn.ReLU(),
        )


class CrossAttention(nn.Module):
    """The image asks, the prompt answers; prompt tokens that are not kept are not seen."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, image: Tensor, prompt: Tensor, kept: Tensor | None) -> Tensor:
        """image (B, N, C), prompt (B, T, C), kept (B, T) bool or None for all -> (B, N, C)."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, image), (self.k_proj, prompt), (self.v_proj, prompt))
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if kept is not None:
            scores = scores.masked_fill(~kept[:, None, None, :], -torch.inf)
        out: Tensor = self.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """A post-norm transformer layer, as `nn.TransformerEncoderLayer` is by default."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.layer_heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.mlp = MlpBlock(config.width, config.mlp_width, nn.ReLU)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = self.norm1(x + self.self_attn(x, x, x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Fusion(nn.Module):
    """Image tokens attend to the prompt, then to each other; the image embedding is added at the end."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.norm_image = nn.LayerNorm(config.width)
        self.norm_prompt = nn.LayerNorm(config.width)
        self.attend = CrossAttention(config.width, config.heads)
        self.norm_attended = nn.LayerNorm(config.width)
        self.layer = EncoderLayer(config)
        self.mlp = MlpBlock(config.width, config.mlp_width, nn.ReLU)
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, image: Tensor, prompt: Tensor, kept: Tensor | None) -> Tensor:
        """image (B, C, h, w), h = w a multiple of `grid`; prompt (B, T, C) -> (B, C, h, w)."""
        step = image.shape[-1] // self.grid
        coarse = F.avg_pool2d(image, step) if step > 1 else image
        tokens = coarse.flatten(2).transpose(1, 2)
        attended = self.attend(self.norm_image(tokens), self.norm_prompt(prompt), kept)
        tokens = self.layer(self.norm_attended(tokens + attended))
        tokens = self.norm_out(tokens + self.mlp(tokens))
        fused = tokens.transpose(1, 2).reshape(coarse.shape)
        return image + (F.interpolate(fused, scale_factor=float(step), mode="nearest") if step > 1 else fused)


class HeadBlock(nn.Module):
    """3x3, instance norm, ReLU, beside the identity; then 1x1, instance norm, 3x3."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.norm1 = nn.InstanceNorm2d(inputs, affine=True)
        self.narrow = nn.Conv2d(inputs, outputs, 1)
        self.norm2 = nn.InstanceNorm2d(outputs, affine=True)
        self.last = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        x = x + F.relu(self.norm1(self.first(x)))
        out: Tensor = self.last(self.norm2(self.narrow(x)))
        return out


class FusionMaskDecoder(nn.Module):
    """Image embedding and hidden sequence -> one mask."""

    def __init__(self, state_width: int, config: FusionConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.prompt_projection = PromptProjection(state_width, config)
        self.fusion = Fusion(config)
        first = config.head_widths[0]
        self.reduce: nn.Module = nn.Identity() if first == config.width else nn.Conv2d(config.width, first, 1)
        widths = (first, *config.head_widths)
        self.head = nn.Sequential(*(HeadBlock(a, b) for a, b in pairwise(widths)))
        self.last = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, image: Tensor, states: Tensor, kept: Tensor | None) -> Tensor:
        """image (B, C, h, w), states (B, T, state_width) -> logits (B, 1, stride h, stride w)."""
        fused = self.fusion(image, self.prompt_projection(states), kept)
        logits = self.last(self.head(self.reduce(fused)))
        return F.interpolate(logits, scale_factor=float(self.stride), mode="bilinear", align_corners=False)


class PrsMed(Lvlm):
    """The LVLM answers where; its whole hidden sequence up to the end of the question asks for the mask."""

    def __init__(self, config: PrsMedConfig) -> None:
        super().__init__(config.tower, config.language, config.start_ids, config.projector_layers)
        self.config = config
        self.image_encoder = image_encoder(config.encoder)
        self.mask_decoder = FusionMaskDecoder(config.language.width, config.fusion)
        self.modality_head = nn.Linear(config.fusion.width, config.modalities)

    def read(self, pixels: Tensor, text_ids: Tensor) -> Tensor:
        """Teacher-forced states (B, image_stop + T, C) of image and text: question, and answer if given."""
        _, prefix = self.embed_image(pixels)
        sequence = torch.cat([prefix, self.embed_text(text_ids).to(prefix.dtype)], dim=1)
        states: Tensor = self.language_model(sequence)[0]
        return states

    def condition(self, states: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """The states the mask may see, and which of them are real.

        Parameters
        ----------
        states
            (B, image_stop + T, C) of image, question, and whatever follows.
        question
            (B, T) bool: the text tokens that belong to the question. Everything else is cut off or masked.

        Returns
        -------
        tuple
            States (B, image_stop + longest question, C) and kept (B, image_stop + longest question) bool.
        """
        longest = int(question.sum(1).max())
        image = question.new_ones(question.shape[0], self.image_stop)
        return states[:, : self.image_stop + longest], torch.cat([image, question[:, :longest]], dim=1)

    def draw(self, image_embedding: Tensor, states: Tensor, kept: Tensor | None = None) -> Tensor:
        """Mask logits (B, 1, S, S) from an embedding (B, 256, h, w) and `condition`'s states."""
        out: Tensor = self.mask_decoder(image_embedding, states, kept)
        return out

    def modality(self, image_embedding: Tensor) -> Tensor:
        """Logits (B, modalities) of the auxiliary head, from the mean of the image embedding."""
        out: Tensor = self.modality_head(image_embedding.mean(dim=(2, 3)))
        return out


def image_encoder(config: VitConfig | TinyConfig | TinyVitConfig) -> nn.Module:
    """The image encoder of a configuration: SAM's ViT, TinySAM's TinyViT, or our convolutional one."""
    if isinstance(config, VitConfig):
        return VitImageEncoder(config)
    return TinyImageEncoder(config) if isinstance(config, TinyConfig) else TinyVitImageEncoder(config)
