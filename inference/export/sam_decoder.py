"""SAM's mask decoder for many prompts of one image, with the work on the image done once: the same numbers.

What differs between two prompts of an image is one token and which of two vectors each cell adds (the dense
prompt of a region), so in the first layer every product with the image is shared. In all layers the few
tokens are brought to the image's side of a projection instead of the whole image to theirs:
q (W x) = (q W) x, and softmax(..) (W x) = (softmax(..) x) W, for W is linear and the weights sum to one.
Of the hypernetworks only mask token 0's is there, for one mask is used; the transposed convolutions, whose
stride is their size, are matrix products. Exact in real arithmetic (inference.md, findings 3 and 2.1).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from inference.models.sam import Attention, LayerNorm2d, MaskDecoder, PromptEncoder, TwoWayBlock


class Cells(NamedTuple):
    """The image as the prompts see it: `shared` for all, and `step` where `bits` is 1; or each its own."""

    shared: Tensor  # (1 or P, N, C)
    bits: Tensor | None  # (P, N), 0 or 1
    step: Tensor | None  # (C,), what a cell inside the region adds

    def scores(self, vectors: Tensor, shares: Tensor, positions: Tensor) -> Tensor:
        """Products of `vectors` (P, V, C) with each cell and its position (N, C), and `shares` (P, V, 1).

        Returns (P, V, N).
        """
        where = self.shared + positions
        if self.bits is None or self.step is None:
            return vectors @ where.transpose(1, 2) + shares
        plain = (vectors.flatten(0, 1) @ where[0].T).unflatten(0, (-1, vectors.shape[1]))
        return plain + (vectors @ self.step)[..., None] * self.bits[:, None] + shares

    def mixed(self, weights: Tensor) -> Tensor:
        """Cells mixed by `weights` (P, V, N): (P, V, C)."""
        if self.bits is None or self.step is None:
            return weights @ self.shared
        plain = (weights.flatten(0, 1) @ self.shared[0]).unflatten(0, (-1, weights.shape[1]))
        return plain + (weights @ self.bits[..., None]) * self.step

    def each(self) -> Tensor:
        """The cells of each prompt, (P, N, C)."""
        if self.bits is None or self.step is None:
            return self.shared
        return self.shared + self.bits[..., None] * self.step


def on_the_other_side(small: Tensor, layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Vectors whose product with x is that of `small` with `layer`'s projection of x, head by head.

    small (P, heads, T, D) -> vectors (P, heads * T, C) and the shares of the bias (P, heads * T, 1).
    """
    weight, bias = layer.weight.unflatten(0, (heads, -1)), layer.bias.view(heads, 1, -1)
    return (small @ weight).flatten(1, 2), (small * bias).sum(-1, keepdim=True).flatten(1, 2)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(P, T, heads * D) -> (P, heads, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Reading(nn.Module):
    """Tokens attend to the image (`Attention` with image keys and values)."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, tokens: Tensor, cells: Cells, positions: Tensor) -> Tensor:
        """tokens (P, T, C) with their positions -> what they read (P, T, C)."""
        heads = self.plain.heads
        query = heads_of(self.plain.q_proj(tokens), heads)
        query = query * query.shape[-1] ** -0.5
        vectors, shares = on_the_other_side(query, self.plain.k_proj, heads)
        weights = cells.scores(vectors, shares, positions).softmax(-1)
        mixed = cells.mixed(weights).unflatten(1, (heads, -1))  # (P, heads, T, C)
        weight = self.plain.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)
        values = mixed @ weight + self.plain.v_proj.bias.view(heads, 1, -1)
        out: Tensor = self.plain.out_proj(values.transpose(1, 2).flatten(2))
        return out


class Writing(nn.Module):
    """The image attends to the tokens (`Attention` with image queries)."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, cells: Cells, positions: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
        """keys, tokens (P, T, C) -> what each cell reads of them, (P, N, C)."""
        heads, out = self.plain.heads, self.plain.out_proj
        key = heads_of(self.plain.k_proj(keys), heads)
        vectors, shares = on_the_other_side(key * key.shape[-1] ** -0.5, self.plain.q_proj, heads)
        scores = cells.scores(vectors, shares, positions).transpose(1, 2)  # (P, N, heads * T)
        weights = scores.unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)
        value = heads_of(self.plain.v_proj(tokens), heads)
        written = value @ out.weight.T.unflatten(0, (heads, -1))  # (P, heads, T, C)
        return weights @ written.flatten(1, 2) + out.bias


class SharedLayer(nn.Module):
    """A `TwoWayBlock` on cells that prompts may share."""

    def __init__(self, plain: TwoWayBlock) -> None:
        super().__init__()
        self.plain = plain
        self.reading = Reading(plain.cross_attn_token_to_image)
        self.writing = Writing(plain.cross_attn_image_to_token)

    def forward(
        self, tokens: Tensor, cells: Cells, token_pe: Tensor, positions: Tensor
    ) -> tuple[Tensor, Cells]:
        """tokens, token_pe (P, T, C), positions (N, C) -> tokens and the cells of each prompt."""
        block = self.plain
        if block.is_first:
            tokens = block.self_attn(tokens, tokens, tokens)
        else:
            with_pe = tokens + token_pe
            tokens = tokens + block.self_attn(with_pe, with_pe, tokens)
        tokens = block.norm1(tokens)
        tokens = block.norm2(tokens + self.reading(tokens + token_pe, cells, positions))
        tokens = block.norm3(tokens + block.mlp(tokens))
        written = self.writing(cells, positions, tokens + token_pe, tokens)
        return tokens, Cells(block.norm4(cells.each() + written), None, None)


class MaskHead(nn.Module):
    """Upscaling and mask token 0's hypernetwork, channels last; 2 x 2 transposed convolutions as products."""

    def __init__(self, plain: MaskDecoder) -> None:
        super().__init__()
        first, norm, self.act, second, _ = plain.output_upscaling
        self.hypernetwork = plain.output_hypernetworks_mlps[0]
        assert isinstance(norm, LayerNorm2d)  # noqa: S101 - for the type checker
        self.norm, self.layers = norm, nn.ModuleList(as_linear(each) for each in (first, second))

    def forward(self, token: Tensor, cells: Tensor, hw: tuple[int, int]) -> Tensor:
        """Mask token (P, C), cells (P, h * w, C) -> logits (P, 1, 4h, 4w)."""
        first, second = self.layers
        quarter = first(cells).unflatten(-1, (4, -1))
        quarter = nn.functional.layer_norm(
            quarter, self.norm.weight.shape, self.norm.weight, self.norm.bias, self.norm.eps
        )
        fine = self.act(second(self.act(quarter)).unflatten(-1, (4, -1)))  # (P, N, 4, 4, C / 8)
        products = fine.flatten(1, 3) @ self.hypernetwork(token)[..., None]
        grid = products.view(-1, *hw, 2, 2, 2, 2)  # h, w, then y and x of either step
        return grid.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 1, 4 * hw[0], 4 * hw[1])


@torch.no_grad()
def as_linear(plain: nn.Module) -> nn.Linear:
    """A 2 x 2 transposed convolution of stride 2 as a layer C -> 4 C', the four places rows first."""
    assert isinstance(plain, nn.ConvTranspose2d)  # noqa: S101 - for the type checker
    assert plain.bias is not None  # noqa: S101 - likewise
    inputs, outputs = plain.weight.shape[:2]
    layer = nn.Linear(inputs, 4 * outputs)
    layer.weight.copy_(plain.weight.permute(2, 3, 1, 0).reshape(4 * outputs, inputs))
    layer.bias.copy_(plain.bias.repeat(4))
    return layer


class SharedMaskDecoder(nn.Module):
    """Prompt encoder and mask decoder for P prompts of an image; positions and both entries are constants."""

    positions: Tensor  # (N, C)
    outside: Tensor  # (C,), the dense prompt of a cell outside the region
    step: Tensor  # (C,), from there to the one inside
    own: Tensor  # (1, 1 + mask tokens, C)

    def __init__(self, prompts: PromptEncoder, decoder: MaskDecoder, hw: tuple[int, int], grid: int) -> None:
        super().__init__()
        self.hw, self.repeats = hw, (hw[0] // grid, hw[1] // grid)
        transformer = decoder.transformer
        self.layers = nn.ModuleList(SharedLayer(layer) for layer in transformer.layers)  # type: ignore[arg-type]
        self.final, self.norm = Reading(transformer.final_attn_token_to_image), transformer.norm_final_attn
        self.head, self.iou_prediction_head = MaskHead(decoder), decoder.iou_prediction_head
        with torch.no_grad():
            outside, inside = prompts.mask_entries()
            self.register_buffer("positions", prompts.pe_layer(*hw)[0].flatten(1).T.contiguous())
            self.register_buffer("outside", outside.clone())
            self.register_buffer("step", inside - outside)
            tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
            self.register_buffer("own", tokens[None].clone())

    def forward(self, embedding: Tensor, seg: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """Image embedding (1, C, h, w), [SEG] (P, C), region (P, g, g), 0 or 1 -> logits, predicted IoU.

        Returns (P, 1, 4h, 4w) and (P, 1).
        """
        bits = region.repeat_interleave(self.repeats[0], 1).repeat_interleave(self.repeats[1], 2)
        image = embedding.flatten(2).transpose(1, 2) + self.outside
        cells = Cells(image, bits.flatten(1).to(image.dtype), self.step)
        token_pe = torch.cat([self.own.expand(seg.shape[0], -1, -1), seg[:, None]], 1)
        tokens = token_pe
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, token_pe, self.positions)
        tokens = self.norm(tokens + self.final(tokens + token_pe, cells, self.positions))
        logits: Tensor = self.head(tokens[:, 1], cells.each(), self.hw)
        return logits, self.iou_prediction_head(tokens[:, 0])[:, :1]
