"""PyTorch eager in a process of its own: segment-anything's parts, or the stages of a package.

    python -m inference.export.eager_worker --sam FOLDER --vit vit_b --outputs O
    python -m inference.export.eager_worker --package inference/packages/sim4seg-s --feeds FOLDER --outputs O

Speaks what `inference.runtime.timed_worker` speaks. FOLDER is what `peer_models` wrote, or holds the inputs
of each graph as GRAPH.npz.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inference.export.families import FAMILIES
from inference.export.graphs import ExportSpec
from inference.export.originals import VITS, original_sam, segment_anything
from inference.export.peer_models import MLP_WIDTHS
from inference.export.restore import restore_package
from inference.models.checkpoints import load_tensors
from inference.runtime.timed_worker import Program, serve

Arrays = dict[str, NDArray[Any]]


def read_feeds(path: Path) -> dict[str, torch.Tensor]:
    """The inputs in an .npz file."""
    with np.load(path) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def sam_programs(folder: Path, vit: str) -> dict[str, Program]:
    """segment-anything's own encoder and decoder with the weights that `peer_models` wrote.

    The dense prompt is made before the clock starts: the decoder alone is timed.
    """
    with segment_anything() as modeling:
        sam = original_sam(modeling, VITS[vit], MLP_WIDTHS.get(vit, 2048))
    sam.load_state_dict(load_tensors(folder / "weights.safetensors")[0])
    feeds = read_feeds(folder / "feeds.npz")
    with torch.inference_mode():
        mask = F.interpolate(feeds["region"][:, None], size=sam.prompt_encoder.mask_input_size)
        dense = sam.prompt_encoder.mask_downscaling(mask)
        positions = sam.prompt_encoder.get_dense_pe()

    @torch.inference_mode()
    def encode() -> Arrays:
        return {"image_embedding": sam.image_encoder(feeds["pixels"]).numpy()}

    @torch.inference_mode()
    def decode() -> Arrays:
        logits, iou = sam.mask_decoder(
            image_embeddings=feeds["image_embedding"],
            image_pe=positions,
            sparse_prompt_embeddings=feeds["seg_embedding"][:, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return {"low_res_logits": logits.numpy(), "iou_predictions": iou.numpy()}

    return {"encoder": encode, "decoder": decode}


def package_programs(package: Path, feeds: Path) -> dict[str, Program]:
    """Every graph of a package as the PyTorch module it was exported from, on the inputs in `feeds`."""
    family, model = restore_package(package)
    specs: Mapping[str, ExportSpec] = FAMILIES[family].specs(model)
    return {
        Path(name).stem: _program(spec, read_feeds(feeds / f"{Path(name).stem}.npz"))
        for name, spec in specs.items()
    }


def _program(spec: ExportSpec, feeds: dict[str, torch.Tensor]) -> Program:
    @torch.inference_mode()
    def program() -> Arrays:
        out = spec.module(*(feeds[name] for name in spec.inputs))
        tensors = out if isinstance(out, tuple) else (out,)
        return {name: tensor.numpy() for name, tensor in zip(spec.outputs, tensors, strict=True)}

    return program


def main() -> None:
    """Serve the programs asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sam", type=Path)
    parser.add_argument("--vit", choices=list(VITS), default="vit_b")
    parser.add_argument("--package", type=Path)
    parser.add_argument("--feeds", type=Path)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    is_sam = options.sam is not None
    programs = (
        sam_programs(options.sam, options.vit) if is_sam else package_programs(options.package, options.feeds)
    )
    serve(programs, options.outputs)


if __name__ == "__main__":
    main()
