"""The rows of the GPU table: each program of ours beside its peer, parity before speed."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.export.gpu_timing import Captured, Ceilings, Median, medians
from inference.export.originals import TINY_VIT, VIT_B, VIT_H, fill, original_sam, segment_anything
from inference.export.packed_masks import PackedMasks
from inference.export.peer_models import GRID, shared_decoder
from inference.export.sam_decoder import SharedMaskDecoder
from inference.models.checkpoints import load_into, with_prefix
from inference.models.lvlm import LanguageConfig
from inference.models.sam import VitConfig, VitImageEncoder
from inference.models.sam_gpu import encoder_for_gpu
from inference.models.sim4seg import region_similarity, top_region
from inference.runtime.gate_report import MIN_COSINE, MIN_IOU
from inference.training.rvls2m_bench import direct_region, maps_of

TOP_K = 36
SOURCE_HW = (512, 512)  # of a slice


@dataclass(frozen=True)
class Sizes:
    """How large everything is that the table measures."""

    vits: Mapping[str, VitConfig]
    batch: int
    decoder_mlp: int
    language: LanguageConfig
    prefix: int  # positions of image and question
    prompts: int
    tokens: int  # of an answer
    paths: int
    slices: int
    key_slices: int
    peer_slices: int  # of the chain, that the peer really does; the rest is reckoned from them


FULL = Sizes(
    {"ViT-B": VIT_B, "ViT-H": VIT_H}, 8, 2048, LanguageConfig(vocabulary=32003), 320, 16, 64, 8, 100, 8, 1
)
TINY = Sizes(
    {"ViT-tiny": TINY_VIT},
    2, 48, LanguageConfig(vocabulary=64, width=32, depth=2, heads=4, mlp_width=48), 20, 2, 3, 2, 2, 1, 1,
)  # fmt: skip


@dataclass(frozen=True)
class GpuRow:
    """One line of the table; `note` says what bounds it, why it was refused, or why it was not measured."""

    ours: str
    against: str
    ours_s: float | None = None
    peer_s: float | None = None
    times: float | None = None
    target: float | None = None
    aim: float | None = None
    dtype: str = ""
    batch: int = 1
    parity: str = ""
    roof_share: float | None = None  # of the device's own ceiling
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """Where and how rows are measured."""

    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    ceilings: Ceilings
    rounds: int

    def compare(
        self, row: GpuRow, ours: Callable[[], object], peer: Callable[[], object], peer_times: float = 1.0
    ) -> tuple[GpuRow, Median]:
        """`row` with the medians of both, the peer's times `peer_times`; and ours in full."""
        found = medians({"ours": ours, "peer": peer}, self.rounds, self.device)
        ours_s, peer_s = found["ours"].median_s, peer_times * found["peer"].median_s
        fields = vars(row) | {"ours_s": ours_s, "peer_s": peer_s, "times": peer_s / ours_s}
        return GpuRow(**fields), found["ours"]


def cosine(ours: Tensor, theirs: Tensor) -> float:
    """Cosine between two tensors, as one vector each."""
    return float(torch.cosine_similarity(ours.double().flatten(), theirs.double().flatten(), dim=0))


def iou(ours: Tensor, theirs: Tensor) -> float:
    """Mean IoU of boolean masks, the first axis apart; two empty masks agree."""
    a, b = ours.flatten(1), theirs.flatten(1)
    union = (a | b).sum(1)
    return float(torch.where(union > 0, (a & b).sum(1) / union.clamp(min=1), 1.0).mean())


class Upstream:
    """segment-anything in one dtype; its positions are made in float32, for it can make them in no other."""

    def __init__(self, sam: Any, dtype: torch.dtype) -> None:
        self.dtype, self.positions = dtype, sam.prompt_encoder.get_dense_pe().to(dtype)
        self.model = sam if dtype == torch.float32 else copy.deepcopy(sam).to(dtype)

    def decode(self, embedding: Tensor, seg: Tensor, region: Tensor) -> Tensor:
        """Prompt encoder and decoder on region masks (P, g, g): logits (P, 1, h, w)."""
        prompts = self.model.prompt_encoder
        mask = torch.nn.functional.interpolate(region[:, None], size=prompts.mask_input_size)
        logits, _ = self.model.mask_decoder(
            image_embeddings=embedding.to(self.dtype),
            image_pe=self.positions,
            sparse_prompt_embeddings=seg[:, None].to(self.dtype),
            dense_prompt_embeddings=prompts.mask_downscaling(mask.to(self.dtype)),
            multimask_output=False,
        )
        found: Tensor = logits
        return found


class SamPair:
    """One random SAM as segment-anything has it and as ours."""

    def __init__(self, bench: Bench, config: VitConfig) -> None:
        self.bench, sizes = bench, bench.sizes
        with segment_anything() as modeling:
            self.theirs = original_sam(modeling, config, sizes.decoder_mlp)
        fill(self.theirs)
        tensors = {name: value.cpu().clone() for name, value in self.theirs.state_dict().items()}
        plain = VitImageEncoder(config).eval()
        load_into(plain, with_prefix(tensors, "image_encoder."))
        self.encoder = encoder_for_gpu(plain, bench.device, bench.dtype)
        self.decoder: SharedMaskDecoder = shared_decoder(tensors, config, sizes.decoder_mlp).to(bench.device)
        self.theirs.to(bench.device)
        side = config.image_side
        self.pixels = torch.randn(sizes.batch, 3, side, side, device=bench.device)
        self.seg = torch.randn(sizes.prompts, 256, device=bench.device)
        self.tokens = torch.randn(GRID**2, 256, device=bench.device)
        with torch.device("cpu"):
            maps = maps_of(SOURCE_HW)
        self.maps = (maps[0].to(bench.device), maps[1].to(bench.device))
        self.packed = PackedMasks(self.decoder.hw[0] * 4, self.decoder.hw[0] * 4).to(bench.device)
        self.reference = Upstream(self.theirs, torch.float32)
        self.encode = Captured(self.encoder, (self.pixels,), is_compiled=True)
        one = torch.zeros(1, 256, *self.decoder.hw, device=bench.device)
        self.find_one = Captured(self.find, (one, self.seg[:1].clone()), is_compiled=True)

    def find(self, embedding: Tensor, seg: Tensor) -> tuple[Tensor, Tensor]:
        """RVLS2M, decoder and packed bits of all prompts in one call."""
        logits, _ = self.decoder(embedding, seg, self.regions(seg))
        return self.packed(logits), logits

    def encode_and_decode(self) -> list[Tensor]:
        """One prompt for each image of the batch: bits."""
        bits = []
        for embedding in self.encode():
            self.find_one.inputs[0].copy_(embedding[None])
            bits.append(self.find_one()[0].clone())
        return bits

    def upstream(self, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        """segment-anything eager, all of it in `dtype`, on the same images and regions."""
        sam = Upstream(self.theirs, dtype)
        region, pixels, seg = self.regions(self.seg[:1]), self.pixels.to(dtype), self.seg[:1]

        def run() -> list[Tensor]:
            return [sam.decode(each[None], seg, region) > 0 for each in sam.model.image_encoder(pixels)]

        return run

    def regions(self, seg: Tensor) -> Tensor:
        """What RVLS2M gives for prompts (P, C): (P, g, g)."""
        everywhere = torch.ones(1, GRID, GRID, device=seg.device)
        similarity = region_similarity(self.tokens[None], seg, everywhere, self.maps)
        return top_region(similarity, everywhere, TOP_K)

    def upstream_prompt_by_prompt(self, embedding: Tensor) -> list[Tensor]:
        """A call for each prompt, with the released arithmetic for its region, on the host as there."""
        masks = []
        for seg in self.seg:
            with torch.device("cpu"):
                _, mask = direct_region(self.tokens.cpu(), seg.cpu(), SOURCE_HW)
            region = mask[:: len(mask) // GRID, :: len(mask) // GRID].to(embedding)
            masks.append(self.reference.decode(embedding, seg[None], region[None]))
        return masks


def sam_rows(bench: Bench) -> Iterator[GpuRow]:
    """Encode and decode, and the decoder alone with 16 prompts; the last for the first size only."""
    for number, (name, config) in enumerate(bench.sizes.vits.items()):
        pair = SamPair(bench, config)
        want = pair.theirs.image_encoder(pair.pixels)
        got = pair.encode()
        same, masks = cosine(got, want), _mask_parity(pair, got, want)
        parity = f"cosine {same:.5f}, mask IoU {masks:.4f}"
        refused = same < MIN_COSINE or masks < MIN_IOU
        for dtype, target, aim in ((torch.float32, 8.0, 12.0), (torch.bfloat16, 2.3, 3.5)):
            word = str(dtype).removeprefix("torch.")
            row = GpuRow(
                f"SAM {name} encode and decode",
                f"segment-anything eager {word}",
                target=target, aim=aim, dtype=str(bench.dtype).removeprefix("torch."),
                batch=bench.sizes.batch, parity=parity,
            )  # fmt: skip
            if refused:
                yield GpuRow(**vars(row) | {"note": "refused: it does not pass the gate"})
                continue
            yield bench.compare(row, pair.encode_and_decode, pair.upstream(dtype))[0]
        if number == 0:
            yield _prompts_row(bench, pair, want[:1])
            yield _second_question_row(bench, pair, want[:1])


def _mask_parity(pair: SamPair, got: Tensor, want: Tensor) -> float:
    region = pair.regions(pair.seg)
    ours = pair.find(got[:1], pair.seg)[1]
    return iou(ours > 0, pair.reference.decode(want[:1], pair.seg, region) > 0)


def _prompts_row(bench: Bench, pair: SamPair, embedding: Tensor) -> GpuRow:
    call = Captured(pair.find, (embedding.clone(), pair.seg), is_compiled=True)
    theirs = torch.cat(pair.upstream_prompt_by_prompt(embedding))
    same = iou(call()[1] > 0, theirs > 0)
    row = GpuRow(
        f"mask decoder and RVLS2M, {bench.sizes.prompts} prompts in one call",
        "as many upstream calls, released RVLS2M arithmetic",
        target=10.0, aim=50.0, dtype="float32", batch=bench.sizes.prompts, parity=f"mask IoU {same:.4f}",
    )  # fmt: skip
    if same < MIN_IOU:
        return GpuRow(**vars(row) | {"note": "refused: it does not pass the gate"})
    return bench.compare(row, call, lambda: pair.upstream_prompt_by_prompt(embedding))[0]


def _second_question_row(bench: Bench, pair: SamPair, embedding: Tensor) -> GpuRow:
    """Image side only: the embeddings are cached, a question decodes on them."""
    call = Captured(pair.find, (embedding.clone(), pair.seg[:1].clone()), is_compiled=True)
    row = GpuRow(
        "second question on a cached study, masks",
        "the first: encoder and decoder",
        target=20.0, aim=100.0, dtype="float32", batch=bench.sizes.batch, parity="identical embeddings",
    )  # fmt: skip
    second: Callable[[], Any] = lambda: [call() for _ in range(bench.sizes.batch)]  # noqa: E731 - a program
    return bench.compare(row, second, pair.encode_and_decode)[0]
