"""Sim4Seg (arXiv 2511.06665): LVLM + [SEG] + RVLS2M + SAM, top to bottom, in tensor operations only.

One class, two configurations: PAPER (CLIP ViT-L/14, LLaMA-7B, SAM ViT-H) and SMALL (sim4seg-s).
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.models.lvlm import ClipConfig, LanguageConfig, Lvlm, TinyTowerConfig
from inference.models.sam import DecoderConfig, MaskDecoder, PromptEncoder, VitConfig, VitImageEncoder
from inference.models.tiny_sam import TinyConfig, TinyImageEncoder


@dataclass(frozen=True)
class Sim4SegConfig:
    """Sizes of the parts; the defaults are the paper's."""

    tower: ClipConfig | TinyTowerConfig = field(default_factory=ClipConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    encoder: VitConfig | TinyConfig = field(default_factory=VitConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    grid: int = 16
    top_k: int = 36  # the best of the paper's Fig. 6; 0 leaves RVLS2M out, which is LISA
    bos: int = 1
    im_start: int = 32001  # after LLaMA's vocabulary, as LISA adds it
    projector_layers: int = 1  # LISA's; LLaVA 1.5 has 2


PAPER = Sim4SegConfig(language=LanguageConfig(vocabulary=32003))  # [SEG], <im_start>, <im_end> added
SMALL = Sim4SegConfig(
    tower=TinyTowerConfig(),
    language=LanguageConfig(vocabulary=768, width=192, depth=4, heads=4, mlp_width=512),
    encoder=TinyConfig(),
    decoder=DecoderConfig(attention_downsample=4, mask_tokens=1, activation=nn.ReLU),
    im_start=3,
)


def region_similarity(
    image_tokens: Tensor, seg: Tensor, valid: Tensor, maps: tuple[Tensor, Tensor] | None
) -> Tensor:
    """RVLS2M's map in closed form, V = A_h S A_w^T.

    With one [SEG] the weights of CLIP-Surgery are all 1, so the similarity is a dot product, and
    every later step of the released code is linear and separable (inference.md, finding 2).

    Parameters
    ----------
    image_tokens
        phi of the image positions (N or 1, g*g, 256).
    seg
        phi of the state that predicts [SEG] (N, 256).
    valid
        Cells of the square that lie in the image (N or 1, g, g), 0 or 1.
    maps
        A_h (g, g) and A_w (g, g) from token rows and columns to cells; None for the letterboxed
        tower, whose tokens are the cells.

    Returns
    -------
    Tensor
        (N, g, g) in 0..1, min-max normalised over the valid cells; all 0 where the map is constant.
    """
    grid = valid.shape[-1]
    dots = (image_tokens * seg[:, None, :]).sum(-1).view(-1, grid, grid)
    if maps is not None:
        normal = _min_max(dots, torch.ones_like(valid))
        return maps[0] @ normal @ maps[1].transpose(0, 1) * valid
    return _min_max(dots, valid)


def _min_max(values: Tensor, valid: Tensor) -> Tensor:
    lowest = torch.where(valid > 0, values, torch.inf).amin(dim=(-2, -1), keepdim=True)
    highest = torch.where(valid > 0, values, -torch.inf).amax(dim=(-2, -1), keepdim=True)
    spread = highest - lowest
    is_flat = spread <= 0
    scaled = (values - lowest) / torch.where(is_flat, torch.ones_like(spread), spread)
    return torch.where(is_flat | (valid <= 0), torch.zeros_like(values), scaled)


def top_region(similarity: Tensor, valid: Tensor, top_k: int) -> Tensor:
    """0/1 map (N, g, g) of the `top_k` valid cells of highest similarity; ties go to the lower index.

    A constant map says nothing about place, so it gives an empty region. Ranks are counted, not
    sorted: the order of ties is then the same in every runtime.
    """
    scores = torch.where(valid > 0, similarity, -1.0).flatten(1)
    count = scores.shape[1]
    earlier = torch.ones(count, count, dtype=torch.bool).tril(-1)  # [i, j]: j before i
    above = scores[:, None, :] > scores[:, :, None]
    tied_before = (scores[:, None, :] == scores[:, :, None]) & earlier
    rank = (above | tied_before).sum(-1)
    has_map = similarity.flatten(1).amax(dim=1, keepdim=True) > 0
    chosen = ((rank < top_k) & has_map).to(similarity.dtype)
    return chosen.view(-1, *similarity.shape[-2:]) * valid


def crop_matrix(length: int, shortest: int, longest: int, *, grid: int = 16, render: int = 336) -> Tensor:
    """A (grid, grid): tokens along an axis of a centre-cropped tower -> cells of the letterboxed square.

    The released code upsamples the token map to `render` pixels, pads with zeros to the image's
    aspect ratio and resizes to the image; here its cell means are taken in the padded square of
    `longest` pixels, not in the stretched image (models.md 1.3: the release is misaligned there).
    `length` is the image's extent along this axis, in pixels.
    """
    up = _linear_matrix(grid, render)
    padded = max(render, round(render * length / shortest))
    before = (padded - render) // 2
    full = F.pad(up, (0, 0, before, padded - render - before))
    pixels = _linear_matrix(padded, length) @ full
    edges = torch.arange(grid + 1) * longest // grid
    rows = [_mean_of_rows(pixels, int(a), int(b)) for a, b in pairwise(edges)]
    return torch.stack(rows)


def _mean_of_rows(pixels: Tensor, start: int, stop: int) -> Tensor:
    return pixels[start:stop].sum(0) / max(1, stop - start)  # rows beyond the image count as 0


def _linear_matrix(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs): bilinear resizing of one axis, half-pixel centres, no antialiasing."""
    eye = torch.eye(inputs)[:, None, :]
    return F.interpolate(eye, size=outputs, mode="linear", align_corners=False)[:, 0].T.contiguous()


class Sim4Seg(Lvlm):
    """The cascade: the LVLM reads image and query, says where and why; SAM draws the mask."""

    def __init__(self, config: Sim4SegConfig) -> None:
        language, width = config.language, config.decoder.width
        super().__init__(config.tower, language, (config.bos, config.im_start), config.projector_layers)
        self.config = config
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(language.width, language.width), nn.ReLU(), nn.Linear(language.width, width)
        )
        small_encoder = isinstance(config.encoder, TinyConfig)
        self.image_encoder: nn.Module = (
            TinyImageEncoder(config.encoder) if small_encoder else VitImageEncoder(config.encoder)  # type: ignore[arg-type]
        )
        self.prompt_encoder = PromptEncoder(width)
        self.mask_decoder = MaskDecoder(config.decoder)

    def phi(self, states: Tensor) -> Tensor:
        """States of the language model (..., C) -> SAM's prompt space (..., 256)."""
        out: Tensor = self.text_hidden_fcs(states)
        return out

    def image_tokens(self, states: Tensor) -> Tensor:
        """phi of the image positions (B, n, 256) of states (B, 2 + n + T, C)."""
        return self.phi(states[:, self.image_start : self.image_stop])

    def locate(
        self, image_tokens: Tensor, seg: Tensor, valid: Tensor, maps: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """RVLS2M: similarity (N, g, g) and region (N, g, g), without gradients, as in the paper."""
        similarity = region_similarity(image_tokens.detach(), seg.detach(), valid, maps)
        return similarity, top_region(similarity, valid, self.config.top_k)

    def draw(self, image_embedding: Tensor, seg: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (N, 1, 4h, 4w) and predicted IoU (N, 1) from an embedding (N or 1, 256, h, w).

        One mask for each [SEG]. Several of them need no weighting: CLIP-Surgery's weights scale each map by
        a positive number, which min-max undoes.
        """
        height, width = image_embedding.shape[-2:]
        if self.config.top_k:
            dense = self.prompt_encoder.embed_region(region, height, width)
        else:
            dense = self.prompt_encoder.no_mask(height, width)
        positions = self.prompt_encoder.pe_layer(height, width)
        masks, iou = self.mask_decoder(image_embedding, positions, seg[:, None], dense)
        return masks, iou
