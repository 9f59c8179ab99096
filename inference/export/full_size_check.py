"""Every stage at full size, random weights: graph on the CPU provider against the original library; a table.

    python -m inference.export.full_size_check --out docs/full_size.md

One stage at a time, each in a process of its own, so that one stage's memory is free for the next. Of the
language model two of its 32 layers are made, each of full width and all of one form, with embedding, final
norm and head: the whole is 27 GB.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from inference.export.full_size import GRID, ClipFromSquare, export_large, worst_error
from inference.export.graphs import ExportSpec, cache_of, flat, step_spec
from inference.export.originals import VITS, fill, original_sam, segment_anything
from inference.export.peer_models import decoder_spec, shared_decoder
from inference.export.sam_encoder import EncoderForm
from inference.export.sam_graphs import encoder_spec, region_decoder_spec
from inference.models.checkpoints import with_prefix
from inference.models.full_size import load_clip_tower, load_language_model
from inference.models.lvlm import ClipConfig, ClipTower, LanguageConfig, LanguageModel
from inference.models.sam import VitImageEncoder
from inference.models.sim4seg import region_similarity, top_region
from inference.runtime.language_cache import cache_names, of_layer

Made = tuple[ExportSpec, dict[str, Any]]  # a graph, and what the original library says to its inputs
LAYERS = 2  # of the language model's 32
BLOCKS = 4  # of a large ViT's: three in windows, one global


def sam_encoder(vit: str, blocks: int = 0) -> Made:
    """The image encoder, whole or of `blocks` blocks (the last is global), against segment-anything's."""
    config = VITS[vit]
    if blocks:
        config = replace(config, depth=blocks, global_blocks=(blocks - 1,))
    with segment_anything() as modeling:
        sam = original_sam(modeling, config)
    fill(sam)
    pixels = torch.randn(1, 3, config.image_side, config.image_side)
    want = sam.image_encoder(pixels)
    weights = with_prefix(sam.state_dict(), "image_encoder.")
    with torch.device("meta"):
        ours = VitImageEncoder(config).eval()
    ours.load_state_dict(weights, assign=True)  # the same memory: ViT-H is 2.5 GB
    spec = encoder_spec(ours, EncoderForm.CHUNKED)
    spec.inputs["pixels"] = pixels
    return spec, {"image_embedding": want.numpy()}


def mask_decoder() -> Made:
    """16 prompts with regions, against segment-anything's prompt encoder and decoder."""
    with segment_anything() as modeling:
        sam = original_sam(modeling, VITS["vit_b"])
    fill(sam)
    spec = decoder_spec(shared_decoder(sam.state_dict(), VITS["vit_b"], 2048), 16)
    mask = F.interpolate(spec.inputs["region"][:, None], size=sam.prompt_encoder.mask_input_size)
    logits, iou = sam.mask_decoder(
        image_embeddings=spec.inputs["image_embedding"],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=spec.inputs["seg_embedding"][:, None],
        dense_prompt_embeddings=sam.prompt_encoder.mask_downscaling(mask),
        multimask_output=False,
    )
    return spec, {"low_res_logits": logits.numpy(), "iou_predictions": iou.numpy()}


def rvls2m() -> Made:
    """RVLS2M and decoder in one graph, against the same in PyTorch (tests compare that with the paper)."""
    with segment_anything() as modeling:
        sam = original_sam(modeling, VITS["vit_b"])
    fill(sam)
    decoder = shared_decoder(sam.state_dict(), VITS["vit_b"], 2048)
    spec = region_decoder_spec(decoder, GRID, 36)
    tokens, seg, valid = (spec.inputs[n] for n in ("image_tokens", "seg_embedding", "valid_cells"))
    similarity = region_similarity(tokens[None], seg, valid[None], None)
    region = top_region(similarity, valid[None], 36)
    logits, iou = decoder(spec.inputs["image_embedding"], seg, region)
    found = (logits, iou, similarity, region)
    return spec, {name: value.numpy() for name, value in zip(spec.outputs, found, strict=True)}


def clip_tower() -> Made:
    """CLIP ViT-L/14 on SAM's square, against transformers; the square is resized before theirs."""
    config = ClipConfig()
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=config.side,
            patch_size=config.patch_side,
        )
    ).eval()
    fill(theirs)
    tower = ClipTower(config).eval()
    load_clip_tower(tower, theirs.state_dict())
    ours = ClipFromSquare(tower, 1024)
    pixels = torch.randn(1, 3, 1024, 1024)
    small = F.interpolate(pixels, (config.side,) * 2, mode="bicubic", antialias=True)
    want = theirs(small * ours.scale + ours.shift, output_hidden_states=True).hidden_states[-2][:, 1:]
    return ExportSpec(ours, {"pixels": pixels}, ("tokens",)), {"tokens": want.numpy()}


def language(depth: int = LAYERS) -> tuple[LlamaForCausalLM, LanguageModel]:
    """LLaMA-7B of `depth` layers as transformers has it, and ours with its weights."""
    config = LanguageConfig(vocabulary=32003, depth=depth)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=depth,
            num_attention_heads=config.heads,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=2048,
        )
    ).eval()
    fill(theirs)
    with torch.device("meta"):
        ours = LanguageModel(config).eval()
    tensors = {name: value for name, value in theirs.state_dict().items() if "inv_freq" not in name}
    load_language_model(ours.to_empty(device="cpu"), tensors)
    return theirs, ours


class Prefill(torch.nn.Module):
    """The language model's share of the first pass: embeddings in, logits, state and cache out."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, embedded: Tensor) -> tuple[Tensor, ...]:
        """(1, S, C) -> logits (1, V), state (1, C), keys and values (1, H, S, Dh) of each layer."""
        states, kept = self.model(embedded)
        return self.model.lm_head(states[:, -1]), states[:, -1], *flat(kept)


class Step(torch.nn.Module):
    """One token of each path behind a shared prefix."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """(N, 1) and a cache as `step_spec` has it -> logits (N, V), state (N, C), keys and values."""
        states, kept = self.model.step(self.model.embed_tokens(token_ids), cache_of(cache))
        return self.model.lm_head(states[:, -1]), states[:, -1], *flat(kept)


def language_prefill() -> Made:
    """320 positions through two layers, against transformers."""
    theirs, ours = language()
    embedded = torch.randn(1, 320, ours.config.width)
    want = theirs.model(inputs_embeds=embedded).last_hidden_state[:, -1]
    found = {"logits": theirs.lm_head(want).numpy(), "state": want.numpy()}
    outputs = ("logits", "state", *cache_names(ours.config.depth, "prefix"))
    return ExportSpec(Prefill(ours), {"embedded": embedded}, outputs, {"embedded": {1: "sequence"}}), found


def language_step() -> Made:
    """Eight paths, ten tokens said, behind 32 shared ones, against transformers on each whole sequence."""
    theirs, ours = language()
    before, said = torch.randint(0, 32000, (1, 32)), torch.randint(0, 32000, (8, 11))
    whole = torch.cat([before.expand(8, -1), said], 1)
    states = theirs.model(input_ids=whole).last_hidden_state[:, -1]
    _, kept = ours(ours.embed_tokens(whole))
    spec = step_spec(Step(ours), ours.config, ("logits", "state_embedding"))
    spec.inputs.update(
        token_ids=said[:, -1:], prefix_lengths=torch.tensor([32]), past_lengths=torch.full((8,), 10)
    )
    for layer, parts in enumerate(kept):
        before_each = [part[:1, :, :32].contiguous() for part in parts]
        spec.inputs.update(zip(of_layer(layer, "prefix"), before_each, strict=True))
        since = [part[:, :, 32:-1].contiguous() for part in parts]
        spec.inputs.update(zip(of_layer(layer, "past"), since, strict=True))
    return spec, {"logits": theirs.lm_head(states).numpy(), "state_embedding": states.numpy()}


STAGES: dict[str, tuple[str, Callable[[], Made]]] = {
    "mask-decoder": ("SAM mask decoder, 16 prompts with regions", mask_decoder),
    "rvls2m": ("RVLS2M and mask decoder in one graph", rvls2m),
    "clip": ("CLIP ViT-L/14 tower from SAM's square, whole", clip_tower),
    "language-prefill": (f"LLaMA-7B first pass, 320 positions, {LAYERS} of 32 layers", language_prefill),
    "language-step": (f"LLaMA-7B step, 8 paths, {LAYERS} of 32 layers", language_step),
    "sam-vit-b": ("SAM ViT-B image encoder, 1024 px, whole", partial(sam_encoder, "vit_b")),
    "sam-vit-l-part": (f"SAM ViT-L, 1024 px, {BLOCKS} of 24 blocks", partial(sam_encoder, "vit_l", BLOCKS)),
    "sam-vit-h-part": (f"SAM ViT-H, 1024 px, {BLOCKS} of 32 blocks", partial(sam_encoder, "vit_h", BLOCKS)),
    "sam-vit-l": ("SAM ViT-L image encoder, 1024 px, whole", partial(sam_encoder, "vit_l")),
    "sam-vit-h": ("SAM ViT-H image encoder, 1024 px, whole", partial(sam_encoder, "vit_h")),
}
HEAD = "| stage | against | parameters | largest error | graph and weights | peak memory | seconds |"


@torch.no_grad()
def check(stage: str, scratch: Path) -> dict[str, Any]:
    """Export one stage, run it, and say how far it is from the original."""
    torch.manual_seed(0)
    started = time.perf_counter()
    spec, want = STAGES[stage][1]()
    export_large(spec, scratch / "graph.onnx")
    return {
        "stage": STAGES[stage][0],
        "against": "the same in PyTorch" if stage == "rvls2m" else "the original library",
        "parameters": sum(each.numel() for each in spec.module.parameters()),
        "error": worst_error(spec, scratch / "graph.onnx", want),
        "megabytes": sum(path.stat().st_size for path in scratch.glob("graph.onnx*")) / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what was compared, how far it is, what it took."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} cores, PyTorch {torch.__version__}"
    made_at = f"{datetime.now(UTC):%Y-%m-%d}, {machine}."
    lines = [
        "# Full size: graphs against the original libraries",
        "",
        "Made by `python -m inference.export.full_size_check`; random weights, float32, ONNX Runtime's CPU",
        "provider. The error is the largest difference over the largest value of the original's output.",
        made_at,
        "",
        HEAD,
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        size = f"{row['megabytes']:.0f} MB | {row['peak_mb'] / 1024:.1f} GB | {row['seconds']:.0f}"
        counted = f"{row['parameters'] / 1e6:.1f} M | {row['error']:.1e}"
        lines.append(f"| {row['stage']} | {row['against']} | {counted} | {size} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check the stages named, or all, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="otherwise all")
    parser.add_argument("--out", type=Path, help="Markdown; otherwise it is printed only")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="room for 6 GB")
    parser.add_argument("--one", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        if options.one:
            print(json.dumps(check(options.one, Path(folder))))
            return
    rows = []
    for stage in options.stages or STAGES:
        command = [sys.executable, "-W", "ignore", "-m", "inference.export.full_size_check"]
        command += ["--one", stage, "--scratch", str(options.scratch)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(answer.splitlines()[-1]))
        print(f"{rows[-1]['stage']}: {rows[-1]['error']:.1e}", flush=True)
        if options.out:  # after every stage: the large ones take long
            options.out.write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
