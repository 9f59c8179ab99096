"""MedSeg-R (arXiv 2506.18669): cognitive stage, perceptual stage, SAM.

The paper's own code and numbers cannot be had; what it says is that a report becomes three semantic priors
- location, texture, shape - fused by a transformer block, and that they modulate SAM's early layers by
spatial attention, dynamic convolution and deformable sampling. Everything more exact here is our design
(models.md 3.2). Every gate starts at zero, so that an untrained model is plain SAM, and each of the three
modulations can be removed (`kept`).

One class, two configurations: PAPER (SAM ViT-B) and SMALL (medseg-r-s). One target an image.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.sam import (
    Attention,
    DecoderConfig,
    MaskDecoder,
    MlpBlock,
    PromptEncoder,
    VitConfig,
    VitImageEncoder,
)
from inference.models.tiny_sam import TinyConfig, TinyImageEncoder

PRIORS = 3  # location, texture, shape
TAPS = 9  # of a 3x3 deformable convolution
PLACES = 5  # terms of a quadratic of a position


@dataclass(frozen=True)
class PriorConfig:
    """Size of both stages; the defaults are for SAM's ViT-B."""

    vocabulary: int = 32000
    width: int = 256
    depth: int = 2  # transformer layers of the cognitive stage
    heads: int = 8
    mlp_width: int = 1024
    pooled: int = 8  # side of the square of patch tokens that the priors look at
    experts: int = 4  # of the dynamic convolution
    reach: float = 4.0  # cells; how far a sample may move
    sites: tuple[int, ...] = (0, 2, 5)  # ViT blocks, or stages of the small encoder, before which to modulate


@dataclass(frozen=True)
class MedSegRConfig:
    """Sizes of the parts."""

    encoder: VitConfig | TinyConfig = field(
        default_factory=lambda: VitConfig(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))
    )
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    priors: PriorConfig = field(default_factory=PriorConfig)
    kinds: int = 7  # ours: which of the known modalities it is, for a caller who was told nothing


PAPER = MedSegRConfig()
SMALL = MedSegRConfig(
    encoder=TinyConfig(),
    decoder=DecoderConfig(attention_downsample=4, mask_tokens=1, activation=nn.ReLU),
    priors=PriorConfig(vocabulary=768, width=64, depth=1, heads=4, mlp_width=256, sites=(1, 2)),
)


class PriorLayer(nn.Module):
    """Priors look at each other, then at the image."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.cross_attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MlpBlock(config.width, config.mlp_width)
        self.norm3 = nn.LayerNorm(config.width)

    def forward(self, priors: Tensor, patches: Tensor) -> Tensor:
        """priors (B, 3, D), patches (B, N, D) -> (B, 3, D)."""
        priors = self.norm1(priors + self.self_attn(priors, priors, priors))
        priors = self.norm2(priors + self.cross_attn(priors, patches, patches))
        out: Tensor = self.norm3(priors + self.mlp(priors))
        return out


class CognitiveStage(nn.Module):
    """Tokens of the three fields -> three fused priors; a missing field is a learned vector.

    The text encoder is a learned mean of token embeddings, for the fields are a few closed words; the
    design proposes a frozen biomedical one, which could not be had here.
    """

    def __init__(self, config: PriorConfig, patch_width: int) -> None:
        super().__init__()
        self.pooled = config.pooled
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.unknown = nn.Parameter(torch.randn(PRIORS, config.width) * 0.02)
        self.kind = nn.Parameter(torch.randn(PRIORS, config.width) * 0.02)
        self.patches = nn.Linear(patch_width, config.width)
        self.layers = nn.ModuleList(PriorLayer(config) for _ in range(config.depth))

    def read(self, prior_ids: Tensor) -> Tensor:
        """prior_ids (B, 3, P) int64, 0 is no token -> (B, 3, D), before they have seen the image."""
        is_token = (prior_ids > 0).to(self.unknown.dtype)[..., None]
        count = is_token.sum(2)
        mean = (self.embed_tokens(prior_ids) * is_token).sum(2) / count.clamp(min=1)
        return torch.where(count > 0, mean, self.unknown[None]) + self.kind

    def forward(self, prior_ids: Tensor, features: Tensor) -> Tensor:
        """prior_ids (B, 3, P), early features (B, C, H, W) -> (B, 3, D)."""
        step = features.shape[-1] // self.pooled
        pooled = F.avg_pool2d(features, step) if step > 1 else features
        patches = self.patches(pooled.flatten(2).transpose(1, 2))
        priors = self.read(prior_ids)
        for layer in self.layers:
            priors = layer(priors, patches)
        return priors


class SpatialAttention(nn.Module):
    """Where: the location prior against each position, with what stands out anyway.

    A convolution's features do not know where they are, so each position says its place as well: a prior
    can then weigh a quadratic of (y, x), which is an ellipse anywhere in the image.
    """

    def __init__(self, width: int, prior_width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, prior_width, 1)
        self.place = nn.Conv2d(PLACES, prior_width, 1, bias=False)
        self.mix = nn.Conv2d(3, 1, 7, padding=3)

    def forward(self, x: Tensor, location: Tensor) -> Tensor:
        """x (B, C, H, W), location (B, D) -> (B, 1, H, W) in 0..1."""
        known = self.project(x) + self.place(places(x))
        dots = (known * location[:, :, None, None]).sum(1, keepdim=True)
        dots = dots * location.shape[1] ** -0.5
        seen = torch.cat([dots, x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.mix(seen).sigmoid()


def places(x: Tensor) -> Tensor:
    """(1, PLACES, H, W) of x (B, C, H, W): y, x, y², xy, x² of each position, -1..1 from edge to edge."""
    height, width = x.shape[-2:]
    ys = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)[:, None].expand(height, width)
    xs = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device).expand(height, width)
    return torch.stack([ys, xs, ys * ys, ys * xs, xs * xs])[None]


class DynamicConvolution(nn.Module):
    """What it looks like: the texture prior mixes depth-wise kernels.

    The mixture of kernels equals the mixture of their outputs, which keeps weights constant in a graph.
    """

    def __init__(self, width: int, prior_width: int, experts: int) -> None:
        super().__init__()
        self.kernels = nn.Conv2d(width, width * experts, 3, padding=1, groups=width, bias=False)
        self.choose = nn.Sequential(
            nn.Linear(prior_width, prior_width), nn.ReLU(), nn.Linear(prior_width, experts)
        )
        self.point = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, texture: Tensor) -> Tensor:
        """x (B, C, H, W), texture (B, D) -> (B, C, H, W)."""
        shares = self.choose(texture).softmax(-1)
        filtered = self.kernels(x).unflatten(1, (x.shape[1], -1))
        mixed = (filtered * shares[:, None, :, None, None]).sum(2)
        out: Tensor = self.point(mixed)
        return out


class DeformableSampling(nn.Module):
    """Of what form: the shape prior moves and weighs the nine samples of a 3x3 convolution (DCNv2)."""

    def __init__(self, width: int, prior_width: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.down = nn.Conv2d(width, prior_width, 1)
        self.steer = nn.Conv2d(2 * prior_width, 3 * TAPS, 3, padding=1)
        self.weigh = nn.Conv2d(TAPS * prior_width, prior_width, 1)
        self.up = nn.Conv2d(prior_width, width, 1)

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        """x (B, C, H, W), shape (B, D) -> (B, C, H, W)."""
        narrow = self.down(x)
        batch, channels, height, width = narrow.shape
        told = shape[:, :, None, None].expand(-1, -1, height, width)
        steering = self.steer(torch.cat([narrow, told], dim=1)).float()
        offsets = self.reach * steering[:, : 2 * TAPS].tanh().unflatten(1, (TAPS, 2))
        taps = F.grid_sample(
            narrow.float(), _sampling_grid(offsets, height, width), mode="bilinear", align_corners=False
        ).view(batch, channels, TAPS, height, width)
        weighed = taps * steering[:, None, 2 * TAPS :].sigmoid()
        out: Tensor = self.up(self.weigh(weighed.flatten(1, 2)))
        return out


def _sampling_grid(offsets: Tensor, height: int, width: int) -> Tensor:
    """offsets (B, 9, 2, H, W) as (dy, dx) in cells -> grid_sample's (B, 9H, W, 2), x first, in -1..1."""
    steps = torch.arange(3, dtype=offsets.dtype, device=offsets.device) - 1
    tap_y = steps.repeat_interleave(3).view(1, TAPS, 1, 1)
    tap_x = steps.repeat(3).view(1, TAPS, 1, 1)
    ys = torch.arange(height, dtype=offsets.dtype, device=offsets.device)[:, None] + tap_y + offsets[:, :, 0]
    xs = torch.arange(width, dtype=offsets.dtype, device=offsets.device) + tap_x + offsets[:, :, 1]
    grid = torch.stack([(2 * xs + 1) / width - 1, (2 * ys + 1) / height - 1], dim=-1)
    return grid.flatten(1, 2)


class PerceptualAdapter(nn.Module):
    """The three modulations at one place of the encoder, each behind its gate."""

    def __init__(self, width: int, config: PriorConfig) -> None:
        super().__init__()
        self.attention = SpatialAttention(width, config.width)
        self.convolution = DynamicConvolution(width, config.width, config.experts)
        self.sampling = DeformableSampling(width, config.width, config.reach)
        self.gates = nn.Parameter(torch.zeros(PRIORS))

    def forward(self, x: Tensor, priors: Tensor, kept: Tensor) -> Tensor:
        """x (B, C, H, W), priors (B, 3, D), kept (3,) 0 or 1 -> (B, C, H, W).

        Attention dims what lies elsewhere and never raises what it looks at: the blocks that follow know
        features of no greater size.
        """
        location, texture, shape = priors.unbind(1)
        gates = (self.gates * kept).to(x.dtype)
        x = x * (1 - gates[0] * (1 - self.attention(x, location)))
        x = x + gates[1] * self.convolution(x, texture)
        return x + gates[2] * self.sampling(x, shape)


class MedSegR(nn.Module):
    """Report and image in, mask out; SAM's parts keep SAM's names."""

    def __init__(self, config: MedSegRConfig) -> None:
        super().__init__()
        self.config = config
        encoder, priors = config.encoder, config.priors
        is_small = isinstance(encoder, TinyConfig)
        self.image_encoder: nn.Module = TinyImageEncoder(encoder) if is_small else VitImageEncoder(encoder)  # type: ignore[arg-type]
        widths = {site: _width_before(encoder, site) for site in priors.sites}
        self.cognitive = CognitiveStage(priors, widths[priors.sites[0]])
        self.adapters = nn.ModuleDict(
            {str(site): PerceptualAdapter(width, priors) for site, width in widths.items()}
        )
        self.prompt_encoder = PromptEncoder(config.decoder.width)
        self.mask_decoder = MaskDecoder(config.decoder)
        self.default_prompt = nn.Parameter(torch.zeros(1, 1, config.decoder.width))
        self.kind_head = nn.Linear(config.decoder.width, config.kinds)

    def embed(self, pixels: Tensor, prior_ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """Image embedding (B, 256, h, w) of pixels (B, 3, S, S), steered by prior_ids (B, 3, P) int64.

        `kept` (3,) 0 or 1 removes spatial attention, dynamic convolution or deformable sampling.
        """
        present = torch.ones(PRIORS, device=pixels.device) if kept is None else kept
        fused: list[Tensor] = []

        def modulate(site: int, x: Tensor) -> Tensor:
            if str(site) not in self.adapters:
                return x
            if not fused:
                fused.append(self.cognitive(prior_ids, x))
            out: Tensor = self.adapters[str(site)](x, fused[0], present)
            return out

        embedding: Tensor = self.image_encoder(pixels, modulate)
        return embedding

    def draw(self, image_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (B, 1, 4h, 4w) and predicted IoU (B, 1); SAM's decoder without a prompt of its own."""
        height, width = image_embedding.shape[-2:]
        dense = self.prompt_encoder.no_mask(height, width)
        positions = self.prompt_encoder.pe_layer(height, width)
        prompt = self.default_prompt.expand(image_embedding.shape[0], -1, -1)
        masks, iou = self.mask_decoder(image_embedding, positions, prompt, dense)
        return masks, iou

    def kind(self, image_embedding: Tensor) -> Tensor:
        """Logits (B, kinds) of the modality, from the mean of the image embedding."""
        out: Tensor = self.kind_head(image_embedding.mean(dim=(2, 3)))
        return out


def _width_before(encoder: VitConfig | TinyConfig, site: int) -> int:
    return encoder.width if isinstance(encoder, VitConfig) else encoder.trunk.inputs[site]
