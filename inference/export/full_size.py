"""Published weights at full size -> graphs with the names of a sim4seg package, checked one by one.

    python -m inference.export.full_size --sam sam_vit_b_01ec64.pth --sam-sha256 HEX --out sam-vit-b
    python -m inference.export.full_size --lvlm LISA-7B-v1/ --tower clip-vit-large-patch14/ --out sim4seg-7b

The first writes SAM's image encoder and mask decoder; --sam may be left out where a LISA checkpoint holds
its own. Nothing is fetched. Weights lie beside each graph in one .data file, for a graph may be larger than
the 2 GB that fit into its own. `graphs.json` has the sha256 of every file and how far each graph is from
PyTorch; one that is further than the tolerance is an error. Float32: 7B parameters need 60 GB of memory.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.export.graphs import ExportSpec
from inference.export.parity import ParityError
from inference.export.sam_decoder import SharedMaskDecoder
from inference.export.sam_encoder import EncoderForm
from inference.export.sam_graphs import bits_decoder_spec, encoder_spec, region_decoder_spec
from inference.export.to_onnx import export_graph, language_specs
from inference.models.checkpoints import load_into, sha256, with_prefix
from inference.models.full_size import (
    clip_config,
    language_config,
    load_clip_tower,
    load_lvlm,
    load_sam,
    merge_lora,
    read_config,
    read_weights,
    sam_vit_config,
)
from inference.models.lvlm import ClipTower
from inference.models.sam import DecoderConfig, MaskDecoder, PromptEncoder, VitConfig, VitImageEncoder
from inference.models.sim4seg import PAPER, Sim4Seg, Sim4SegConfig
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from inference.runtime.onnx_engine import session_options

GRID, TOP_K = 16, 36
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOLERANCE = 1e-3  # largest difference over the largest value, of what 32 layers of float32 may add up to
Specs = dict[str, ExportSpec]


class SamParts(nn.Module):
    """What a segment-anything checkpoint holds and our graphs need."""

    def __init__(self, config: VitConfig, decoder: DecoderConfig | None = None) -> None:
        super().__init__()
        self.image_encoder = VitImageEncoder(config)
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder(decoder or DecoderConfig())


class ClipFromSquare(nn.Module):
    """CLIP's tower on SAM's square: resized as CLIP resizes (bicubic, antialiased), normalised as CLIP does.

    The square is letterboxed, so token cells are cells of the square and no margin is cut off.
    """

    matrix: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, tower: ClipTower, side: int) -> None:
        super().__init__()
        self.tower = tower
        # One axis at a time as a matrix: the operator for antialiased resizing cannot be exported.
        eye = torch.eye(side)[None, None]
        target = (tower.config.side, side)
        matrix = F.interpolate(eye, size=target, mode="bicubic", antialias=True, align_corners=False)[0, 0]
        means, stds = (torch.tensor(each) for each in ((IMAGENET_MEAN, CLIP_MEAN), (IMAGENET_STD, CLIP_STD)))
        self.register_buffer("matrix", matrix)
        self.register_buffer("scale", (stds[0] / stds[1])[:, None, None])
        self.register_buffer("shift", ((means[0] - means[1]) / stds[1])[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) of SAM's square -> tokens (B, n, width)."""
        small = self.matrix @ pixels @ self.matrix.T
        out: Tensor = self.tower(small * self.scale + self.shift)
        return out


def sam_specs(sam: SamParts | Sim4Seg, form: EncoderForm, bits_side: int, grid: int = GRID) -> Specs:
    """Encoder, decoder with RVLS2M, and decoder from given regions to bits."""
    encoder, prompts, mask_decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    assert isinstance(encoder, VitImageEncoder)  # noqa: S101 - for the type checker
    side = encoder.pos_embed.shape[1]
    decoder = SharedMaskDecoder(prompts, mask_decoder, (side, side), grid).eval()
    return {
        "image_encoder.onnx": encoder_spec(encoder, form),
        "mask_decoder.onnx": region_decoder_spec(decoder, grid, TOP_K),
        "mask_bits.onnx": bits_decoder_spec(decoder, grid, bits_side),
    }


def lvlm_specs(model: Sim4Seg, side: int) -> Specs:
    """First pass (with CLIP's tower and phi) and step of the language model, on SAM's square of `side`."""
    assert isinstance(model.vision_tower, ClipTower)  # noqa: S101 - for the type checker
    model.vision_tower = ClipFromSquare(model.vision_tower, side)
    return language_specs(model, side)


def export_large(spec: ExportSpec, path: Path) -> None:
    """Write one graph with its weights in one file beside it, `path`.data, whatever its size."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        export_graph(spec, Path(scratch) / path.name)  # above 2 GB it leaves a file for each weight
        model = onnx.load(Path(scratch) / path.name)
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)
        onnx.save(
            model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name,
            size_threshold=1024,
        )  # fmt: skip


@torch.no_grad()
def worst_error(spec: ExportSpec, path: Path, wanted: Mapping[str, Any] | None = None) -> float:
    """Largest difference between a graph on the CPU provider and PyTorch, over each output's largest value.

    `wanted` are the outputs to expect, where an original library gave them; otherwise those of the module.
    A bit that turned counts as 1 over the number of bits.
    """
    session = ort.InferenceSession(path, session_options(0), providers=["CPUExecutionProvider"])
    got = dict(zip(spec.outputs, session.run(list(spec.outputs), _arrays(spec.inputs)), strict=True))
    if wanted is None:
        out = spec.module(*spec.inputs.values())
        wanted = _arrays(dict(zip(spec.outputs, out if isinstance(out, tuple) else (out,), strict=True)))
    return max(_error(got[name], value) for name, value in wanted.items())


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _error(got: Any, want: Any) -> float:
    if want.dtype == np.uint8:
        return float((np.unpackbits(got) != np.unpackbits(want)).mean())
    return float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-12))


def write_graphs(specs: Specs, folder: Path, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Export every graph into `folder`, compare it, and list the files in graphs.json; returns the errors.

    Raises
    ------
    ParityError
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = {}
    for name, spec in specs.items():
        export_large(spec, folder / name)
        errors[name] = worst_error(spec, folder / name)
        print(f"{name}: {errors[name]:.1e}")
        if not errors[name] <= tolerance:
            raise ParityError(f"{name} is {errors[name]:.1e} from PyTorch, allowed is {tolerance:.0e}")
    files = {path.name: sha256(path) for path in sorted(folder.glob("*.onnx*"))}
    report = {"tolerance": tolerance, "relative_error": errors, "files": files}
    (folder / "graphs.json").write_text(json.dumps(report, indent=1) + "\n")
    return errors


def open_sam(path: Path, sha256_hex: str | None) -> SamParts:
    """A segment-anything checkpoint of any size.

    Raises
    ------
    CheckpointError
    """
    tensors = read_weights(path, sha256_hex)
    parts = SamParts(sam_vit_config(tensors), decoder_config(tensors)).eval()
    load_sam(parts, tensors)
    return parts


def decoder_config(tensors: Mapping[str, Tensor]) -> DecoderConfig:
    """Size of the mask decoder in a segment-anything checkpoint."""
    width = tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]
    return DecoderConfig(mlp_width=width)


def open_sim4seg(lvlm: Path, tower: Path, sam: SamParts | None, adapter: Path | None) -> Sim4Seg:
    """A LISA checkpoint folder and CLIP's, with SAM from a file of its own or from LISA's.

    Raises
    ------
    CheckpointError
    """
    tensors = read_weights(lvlm)
    if adapter is not None:
        tensors = merge_lora(tensors, adapter)
    own = sam.state_dict() if sam is not None else with_prefix(tensors, "model.visual_model.")
    if sam is not None:  # the one that was named, not the one inside
        tensors = {name: each for name, each in tensors.items() if ".visual_model." not in name}
    config = full_config(read_config(lvlm), read_config(tower), sam_vit_config(own), decoder_config(own))
    model = Sim4Seg(config).eval()
    load_lvlm(model, tensors)
    load_clip_tower(model.vision_tower, read_weights(tower))
    if sam is not None:
        for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
            load_into(getattr(model, part), getattr(sam, part).state_dict())
    return model


def full_config(
    language: Mapping[str, Any], tower: Mapping[str, Any], encoder: VitConfig, decoder: DecoderConfig
) -> Sim4SegConfig:
    """Sim4Seg's sizes, as the checkpoints' own config.json say them."""
    return replace(
        PAPER,
        tower=(clip := clip_config(tower, language.get("mm_vision_select_layer", -2))),
        grid=math.isqrt(clip.tokens),
        language=language_config(language),
        encoder=encoder,
        decoder=decoder,
    )


def main() -> None:
    """Export what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", type=Path, help="segment-anything's checkpoint")
    parser.add_argument("--sam-sha256", help="its SHA-256 as published; needed for a .pth")
    parser.add_argument("--lvlm", type=Path, help="folder of a LISA checkpoint, safetensors")
    parser.add_argument("--tower", type=Path, help="folder of CLIP's vision tower, safetensors")
    parser.add_argument("--lora", type=Path, help="folder of a PEFT adapter that is merged in")
    parser.add_argument("--form", type=EncoderForm, choices=list(EncoderForm), default=EncoderForm.CHUNKED)
    parser.add_argument("--bits-side", type=int, default=512, help="pixels a side of the packed masks")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.sam is None and options.lvlm is None:
        parser.error("give --sam, or --lvlm with --tower")
    if options.lvlm is not None and options.tower is None:
        parser.error("--lvlm needs --tower: LISA's checkpoints leave CLIP's vision tower out")
    sam = open_sam(options.sam, options.sam_sha256) if options.sam else None
    if options.lvlm is None and sam is not None:
        specs = sam_specs(sam, options.form, options.bits_side)
    else:
        model = open_sim4seg(options.lvlm, options.tower, sam, options.lora)
        specs = sam_specs(model, options.form, options.bits_side, model.config.grid)
        specs |= lvlm_specs(model, specs["image_encoder.onnx"].inputs["pixels"].shape[-1])
    write_graphs(specs, options.out)


if __name__ == "__main__":
    main()
