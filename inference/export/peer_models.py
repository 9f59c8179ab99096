"""segment-anything at random weights and our graphs of the same weights: what a benchmark sets side by side.

    python -m inference.export.peer_models --vit vit_b --out /tmp/peers

writes weights.safetensors, the inputs of both sides, and the graphs. Speed does not depend on the values.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from inference.export.graphs import ExportSpec
from inference.export.int8 import quantize_linear_layers
from inference.export.originals import VITS, fill, original_sam, segment_anything
from inference.export.sam_decoder import SharedMaskDecoder
from inference.export.sam_encoder import EncoderForm
from inference.export.sam_graphs import PROMPTS, encoder_spec
from inference.export.to_onnx import export_graph
from inference.models.checkpoints import load_into, save_tensors, with_prefix
from inference.models.full_size import SAM_UNUSED
from inference.models.sam import DecoderConfig, MaskDecoder, PromptEncoder, VitConfig, VitImageEncoder

GRID = 16
# In 8 bits these two cost SAM its masks: IoU 0.987 with them, 0.993 without (random ViT-B, 16 prompts).
KEPT = ("lin2", "proj")
MLP_WIDTHS = {"tiny": 48}  # of the decoder; anything else has SAM's


@torch.no_grad()
def write_peers(config: VitConfig, mlp_width: int, folder: Path, prompts: int = 16) -> None:
    """Weights, inputs and graphs of one random SAM into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with segment_anything() as modeling:
        sam = original_sam(modeling, config, mlp_width)
    fill(sam)
    tensors = sam.state_dict()
    save_tensors(folder / "weights.safetensors", tensors)
    encoder = VitImageEncoder(config).eval()
    load_into(encoder, with_prefix(tensors, "image_encoder."))
    decoder = shared_decoder(tensors, config, mlp_width)
    write_feeds(folder / "feeds.npz", config, prompts)
    for form in (EncoderForm.CHUNKED, EncoderForm.FUSED):
        export_graph(encoder_spec(encoder, form), folder / f"encoder_{form}.onnx")
    quantize_linear_layers(folder / "encoder_chunked.onnx", folder / "encoder_int8.onnx", KEPT)
    export_graph(decoder_spec(decoder, prompts), folder / "decoder.onnx")


def shared_decoder(tensors: dict[str, torch.Tensor], config: VitConfig, mlp_width: int) -> SharedMaskDecoder:
    """Our decoder with the prompt encoder's and mask decoder's weights of a segment-anything checkpoint."""
    known = {name: value for name, value in tensors.items() if not name.startswith(SAM_UNUSED)}
    prompts, decoder = PromptEncoder().eval(), MaskDecoder(DecoderConfig(mlp_width=mlp_width)).eval()
    load_into(prompts, with_prefix(known, "prompt_encoder."))
    load_into(decoder, with_prefix(known, "mask_decoder."))
    side = config.image_side // config.patch_side
    return SharedMaskDecoder(prompts, decoder, (side, side), GRID).eval()


def decoder_spec(decoder: SharedMaskDecoder, prompts: int) -> ExportSpec:
    """Prompts with regions of their own in, logits out: what segment-anything's decoder gives."""
    inputs = {
        "image_embedding": torch.randn(1, 256, *decoder.hw),
        "seg_embedding": torch.randn(prompts, 256),
        "region": torch.randint(0, 2, (prompts, GRID, GRID)).float(),
    }
    outputs = ("low_res_logits", "iou_predictions")
    return ExportSpec(decoder, inputs, outputs, dict.fromkeys(("seg_embedding", "region", *outputs), PROMPTS))


def write_feeds(path: Path, config: VitConfig, prompts: int) -> None:
    """Random inputs of encoder and decoder, the same for both sides."""
    random = np.random.default_rng(7)
    side = config.image_side // config.patch_side
    np.savez(
        path,
        pixels=random.standard_normal((1, 3, config.image_side, config.image_side), np.float32),
        image_embedding=random.standard_normal((1, 256, side, side), np.float32),
        seg_embedding=random.standard_normal((prompts, 256), np.float32),
        region=(random.random((prompts, GRID, GRID)) < 36 / 256).astype(np.float32),
    )


def main() -> None:
    """Write what the benchmark needs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vit", choices=list(VITS), default="vit_b")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    write_peers(VITS[options.vit], MLP_WIDTHS.get(options.vit, 2048), options.out, options.prompts)


if __name__ == "__main__":
    main()
