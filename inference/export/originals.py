"""The original libraries at random weights: what exports are compared with and timed against."""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from inference.models.sam import VitConfig

# segment-anything imports torchvision for names that its encoder and decoder do not use; it is not installed.
TORCHVISION: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
}
VIT_B = VitConfig(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))
VIT_L = VitConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
VIT_H = VitConfig()
TINY_VIT = VitConfig(image_side=256, width=48, depth=3, heads=4, window=6, global_blocks=(1,))
VITS = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H, "tiny": TINY_VIT}


@contextmanager
def segment_anything() -> Iterator[Any]:
    """`segment_anything.modeling`, with stand-ins for torchvision where it is missing, gone afterwards."""
    stand_ins = {} if importlib.util.find_spec("torchvision") else dict(TORCHVISION)
    for name, members in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(dict.fromkeys(members))
        sys.modules[name] = module
    try:
        yield importlib.import_module("segment_anything.modeling")
    finally:
        for name in [
            each for each in sys.modules if each in stand_ins or each.startswith("segment_anything")
        ]:
            del sys.modules[name]


def original_sam(modeling: Any, config: VitConfig, mlp_width: int = 2048) -> Any:
    """Sam of `config`, put together as `build_sam` does."""
    grid = config.image_side // config.patch_side
    encoder = modeling.ImageEncoderViT(
        img_size=config.image_side, patch_size=config.patch_side, embed_dim=config.width, depth=config.depth,
        num_heads=config.heads, out_chans=config.out_channels, use_rel_pos=True, window_size=config.window,
        global_attn_indexes=config.global_blocks, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prompts = modeling.PromptEncoder(
        embed_dim=256,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image_side,) * 2,
        mask_in_chans=16,
    )
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=mlp_width, num_heads=8)
    decoder = modeling.MaskDecoder(
        transformer_dim=256, transformer=transformer, num_multimask_outputs=3, iou_head_hidden_dim=256
    )
    return modeling.Sam(encoder, prompts, decoder).eval()


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> None:
    """Random values that keep a deep network's numbers in range, and no parameter at its first zero."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter)
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        width = parameter[0].numel() if parameter.ndim > 1 else 1.0
        spread = 0.02 if "pos" in name or "embed" in name or parameter.ndim == 1 else width**-0.5
        parameter.copy_(1 + 0.1 * noise if is_scale else noise * spread)
