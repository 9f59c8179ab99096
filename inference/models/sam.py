"""SAM: image encoder, prompt encoder, two-way transformer, mask decoder. Shared by all three.

Written from the paper (Kirillov et al., arXiv 2304.02643) with the parameter names of the public
checkpoints, so that `sam_vit_h_4b8939` loads without renaming. Checked in numbers against the
`segment_anything` package in tests/inference/models/test_sam.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Modulate = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class VitConfig:
    """Size of SAM's ViT image encoder; the defaults are ViT-H. Source: `build_sam_vit_h`."""

    image_side: int = 1024  # pixels
    patch_side: int = 16  # pixels
    width: int = 1280
    depth: int = 32
    heads: int = 16
    window: int = 14  # tokens
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    out_channels: int = 256


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the mask decoder; the defaults are SAM's. Source: `build_sam`."""

    width: int = 256
    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    attention_downsample: int = 2
    mask_tokens: int = 4  # token 0 is the single-mask output
    activation: type[nn.Module] = nn.GELU  # of the upscaling; ReLU saves a sixth of the training time


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, each pixel normalised over C."""
        channels_last = x.permute(0, 2, 3, 1)
        normal = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normal.permute(0, 3, 1, 2)


class MlpBlock(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        out: Tensor = self.lin2(self.act(self.lin1(x)))
        return out


def relative_positions(size: int, table: Tensor) -> Tensor:
    """Rows of `table` (2 size - 1, Dh) for each query-key offset: (size, size, Dh)."""
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


class WindowAttention(nn.Module):
    """Self-attention on a (B, H, W, C) grid with decomposed relative positions."""

    def __init__(self, width: int, heads: int, grid: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); the bias of a key is rel_h[q, k_row] + rel_w[q, k_column]."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each (B, heads, H*W, Dh)
        bias = self._bias(query, height, width)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))
        return out

    def _bias(self, query: Tensor, height: int, width: int) -> Tensor:
        grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_positions(height, self.rel_pos_h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_positions(width, self.rel_pos_w))
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class VitBlock(nn.Module):
    """Transformer block, on windows (`window` > 0) or on the whole grid (0)."""

    def __init__(self, config: VitConfig, window: int) -> None:
        super().__init__()
        self.window = window
        grid = window or config.image_side // config.patch_side
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = WindowAttention(config.width, config.heads, grid)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MlpBlock(config.width, 4 * config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        normal = self.norm1(x)
        x = x + (self._windowed(normal) if self.window else self.attn(normal))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        tiles = x.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        mixed = self.attn(tiles.reshape(-1, side, side, channels))
        grid = mixed.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return grid.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]


class PatchEmbed(nn.Module):
    """Cuts the image into patches: one strided convolution."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_side, config.patch_side)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, S/patch, S/patch, C)."""
        out: Tensor = self.proj(pixels).permute(0, 2, 3, 1)
        return out


class VitImageEncoder(nn.Module):
    """SAM's ViT image encoder."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        grid = config.image_side // config.patch_side
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.width))
        windows = [0 if i in config.global_blocks else config.window for i in range(config.depth)]
        self.blocks = nn.ModuleList(VitBlock(config, window) for window in windows)
        out = config.out_channels
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )

    def forward(self, pixels: Tensor, modulate: Modulate | None = None) -> Tensor:
        """Normalised pixels (B, 3, S, S) float32 -> image embedding (B, 256, S/16, S/16).

        `modulate(i, x)` may change the features (B, C, h, w) before block i.
        """
        x = self.patch_embed(pixels) + self.pos_embed
        for i, block in enumerate(self.blocks):
            if modulate is not None:
                x = modulate(i, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = block(x)
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out


class RandomPositions(nn.Module):
    """Positions as random Fourier features (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor  # (2, features)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, height: int, width: int) -> Tensor:
        """Encoding of a grid's cell centres: (1, 2 features, height, width)."""
        matrix = self.positional_encoding_gaussian_matrix
        ys = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
        xs = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
        points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # (H, W, 2) as (x, y)
        angles = 2 * math.pi * ((2 * points - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """SAM's prompt encoder without points and boxes, which Sim4Seg never uses (models.md 1.2).

    The sparse prompt is the [SEG] embedding itself; the dense prompt is a mask of 16-pixel cells.
    """

    def __init__(self, width: int = 256, mask_channels: int = 16) -> None:
        super().__init__()
        self.pe_layer = RandomPositions(width // 2)
        self.no_mask_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, 2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, 2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, width, 1),
        )

    def embed_mask(self, mask: Tensor) -> Tensor:
        """Mask prompt (B, 1, 4h, 4w), values 0 or 1 -> dense embedding (B, 256, h, w)."""
        out: Tensor = self.mask_downscaling(mask)
        return out

    def mask_entries(self) -> tuple[Tensor, Tensor]:
        """Dense embeddings (256,) of a cell outside and of a cell inside the region.

        The convolutions are 2x2 with stride 2 and cells align to 4 pixels, so a mask of cells has
        exactly these two distinct vectors (inference.md, finding 3).
        """
        weight = self.no_mask_embed.weight
        both = torch.stack([weight.new_zeros(1, 4, 4), weight.new_ones(1, 4, 4)])
        outside, inside = self.embed_mask(both)[:, :, 0, 0].unbind(0)
        return outside, inside

    def embed_region(self, region: Tensor, height: int, width: int) -> Tensor:
        """Region (B, g, g), 0 or 1 -> dense embedding (B, 256, height, width) by two-entry look-up."""
        outside, inside = self.mask_entries()
        bits = F.interpolate(region[:, None].to(outside.dtype), (height, width), mode="nearest")
        return outside[None, :, None, None] + bits * (inside - outside)[None, :, None, None]

    def no_mask(self, height: int, width: int) -> Tensor:
        """Dense embedding (1, 256, height, width) that stands for 'no mask prompt'."""
        return self.no_mask_embed.weight[:, :, None, None].expand(-1, -1, height, width)


class Attention(nn.Module):
    """Attention whose queries, keys and values may be narrower than the tokens."""

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = width // downsample
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, Nq, C), k and v (B, Nk, C) -> (B, Nq, C)."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        # Written out: with few queries or few keys fused attention is slower, its backward pass 5 times.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = scores.softmax(dim=-1).to(value.dtype) @ value
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class TwoWayBlock(nn.Module):
    """Tokens look at themselves, at the image; an MLP; then the image looks at the tokens."""

    def __init__(self, config: DecoderConfig, is_first: bool) -> None:
        super().__init__()
        width, heads, narrow = config.width, config.heads, config.attention_downsample
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, narrow)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MlpBlock(width, config.mlp_width, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, narrow)
        self.is_first = is_first

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens (B, N, C), image (B, H*W, C), their positions -> the two, updated."""
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            with_pe = tokens + token_pe
            tokens = tokens + self.self_attn(with_pe, with_pe, tokens)
        tokens = self.norm1(tokens)
        image_key = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image_key, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image_key, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Tokens and image attend to each other, `depth` times, then once more token to image."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(config, is_first=i == 0) for i in range(config.depth))
        self.final_attn_token_to_image = Attention(config.width, config.heads, config.attention_downsample)
        self.norm_final_attn = nn.LayerNorm(config.width)

    def forward(self, image: Tensor, image_pe: Tensor, token_pe: Tensor) -> tuple[Tensor, Tensor]:
        """image, image_pe (B, C, H, W), token_pe (B, N, C) -> tokens (B, N, C), image (B, H*W, C)."""
        keys, keys_pe = (x.flatten(2).transpose(1, 2) for x in (image, image_pe))
        tokens = token_pe
        for layer in self.layers:
            tokens, keys = layer(tokens, keys, token_pe, keys_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, keys + keys_pe, keys)
        return self.norm_final_attn(tokens + attended), keys


class HyperMlp(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        sizes = ((width, width), (width, width), (width, out))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class MaskDecoder(nn.Module):
    """SAM's mask decoder with `multimask_output=False`: one mask and its predicted IoU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(config.mask_tokens, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2),
            LayerNorm2d(width // 4),
            config.activation(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2),
            config.activation(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            HyperMlp(width, width // 8) for _ in range(config.mask_tokens)
        )
        self.iou_prediction_head = HyperMlp(width, config.mask_tokens)

    def forward(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict one mask a row.

        Parameters
        ----------
        image
            Image embedding (B, 256, h, w).
        image_pe
            Its positions (1, 256, h, w).
        sparse
            Prompt tokens (B, N, 256).
        dense
            Dense prompt (B, 256, h, w).

        Returns
        -------
        tuple
            Mask logits (B, 1, 4h, 4w) and predicted IoU (B, 1).
        """
        batch = sparse.shape[0]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])[None].expand(batch, -1, -1)
        tokens = torch.cat([own, sparse], dim=1)
        source = image + dense
        hidden, keys = self.transformer(source, image_pe.expand_as(source), tokens)
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(source.shape))
        hyper = self.output_hypernetworks_mlps[0](hidden[:, 1])
        # (B, 16hw, 1); this order of the factors is the fast one.
        masks = upscaled.flatten(2).transpose(1, 2) @ hyper[:, :, None]
        masks = masks.view(-1, 1, *upscaled.shape[-2:])
        return masks, self.iou_prediction_head(hidden[:, 0])[:, :1]
