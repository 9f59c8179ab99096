"""Published weights for the same classes: SAM, CLIP, LLaVA and LISA checkpoints, LoRA adapters, TinyViT.

Sizes are read off the checkpoint where they can be, and off the config.json beside it where they cannot.
safetensors are preferred; a pickle is read only after its SHA-256 was confirmed, and only with
`weights_only`. Nothing is fetched: files must be on disk.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inference.models.checkpoints import CheckpointError, load_into, sha256, with_prefix
from inference.models.lvlm import ClipConfig, LanguageConfig
from inference.models.sam import VitConfig
from inference.models.tiny_vit import TinyVitConfig

Tensors = dict[str, Tensor]
PICKLES = (".pth", ".pt", ".bin")
# Parts of public checkpoints that none of the three models reads.
SAM_UNUSED = ("prompt_encoder.point_embeddings.", "prompt_encoder.not_a_point_embed.")
TINY_UNUSED = ("norm_head.", "head.")
# Prefixes under which LLaVA's parts are found: transformers 5, transformers 4, LLaVA's and LISA's own code.
LANGUAGE_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
TOWER_PREFIXES = (
    "model.vision_tower.",
    "vision_tower.",
    "model.vision_tower.vision_tower.",
    "",
)
PROJECTOR_PREFIXES = ("model.multi_modal_projector.", "multi_modal_projector.", "model.mm_projector.")
HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight")


def read_weights(path: Path, sha256_hex: str | None = None) -> Tensors:
    """The tensors of a file, or of a folder of safetensors shards.

    Raises
    ------
    CheckpointError
        If a pickle comes without its SHA-256, or a file is not the one that was named.
    """
    if path.is_dir():
        return _read_folder(path, sha256_hex)
    if sha256_hex is not None and sha256(path) != sha256_hex.lower():
        raise CheckpointError(f"{path.name} is not the file that was named: its SHA-256 is {sha256(path)}")
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix not in PICKLES:
        raise CheckpointError(f"{path.name} is neither safetensors nor a PyTorch checkpoint")
    if sha256_hex is None:
        raise CheckpointError(
            f"{path.name} is a pickle, which can run code: give the SHA-256 that its publisher states"
        )
    tensors: Tensors = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _read_folder(folder: Path, sha256_hex: str | None) -> Tensors:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(f"{folder} holds no safetensors; convert the checkpoint, or name its pickle")
    if sha256_hex is not None:
        raise CheckpointError(f"{folder} is a folder; a SHA-256 names one file")
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def sam_vit_config(tensors: Mapping[str, Tensor]) -> VitConfig:
    """Size of the ViT in a segment-anything checkpoint (`image_encoder.*`), as ViT-B, -L and -H differ.

    Raises
    ------
    CheckpointError
        If it is no such checkpoint.
    """
    found = with_prefix(tensors, "image_encoder.")
    if "pos_embed" not in found or "patch_embed.proj.weight" not in found:
        raise CheckpointError("the checkpoint has no image_encoder of segment-anything's ViT")
    patch = found["patch_embed.proj.weight"]
    grid, width = found["pos_embed"].shape[1], patch.shape[0]
    lengths = [(len(found[f"blocks.{i}.attn.rel_pos_h"]) + 1) // 2 for i in range(_depth(found, "blocks."))]
    windows = {length for length in lengths if length != grid}
    return VitConfig(
        image_side=grid * patch.shape[-1],
        patch_side=patch.shape[-1],
        width=width,
        depth=len(lengths),
        heads=width // found["blocks.0.attn.rel_pos_h"].shape[1],
        window=min(windows, default=0),
        global_blocks=tuple(i for i, length in enumerate(lengths) if length == grid),
        out_channels=found["neck.0.weight"].shape[0],
    )


def load_sam(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a segment-anything checkpoint into `image_encoder`, `prompt_encoder`, `mask_decoder` of `model`.

    Point prompts, which none of the three models uses, are left behind; anything else must fit.

    Raises
    ------
    CheckpointError
    """
    known = {name: value for name, value in tensors.items() if not name.startswith(SAM_UNUSED)}
    for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
        load_into(getattr(model, part), with_prefix(known, f"{part}."))


def tiny_vit_config(tensors: Mapping[str, Tensor], windows: tuple[int, int, int, int]) -> TinyVitConfig:
    """Size of a TinyViT (`layers.*`, `neck.*`); `windows` cannot be told from weights."""
    widths, depths, heads = [], [], []
    for i in range(4):
        layer = with_prefix(tensors, f"layers.{i}.blocks.")
        depths.append(_depth(layer, ""))
        is_first = "0.conv3.c.weight" in layer
        widths.append(layer["0.conv3.c.weight" if is_first else "0.attn.proj.weight"].shape[0])
        heads.append(1 if is_first else layer["0.attn.attention_biases"].shape[0])
    return TinyVitConfig(
        widths=(widths[0], widths[1], widths[2], widths[3]),
        depths=(depths[0], depths[1], depths[2], depths[3]),
        heads=(heads[0], heads[1], heads[2], heads[3]),
        windows=windows,
        out_channels=tensors["neck.0.weight"].shape[0],
    )


def load_tiny_vit(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put TinySAM's or MobileSAM's image encoder into ours; `image_encoder.` before the names is taken off.

    Raises
    ------
    CheckpointError
    """
    found = with_prefix(tensors, "image_encoder.") or dict(tensors)
    load_into(encoder, {name: value for name, value in found.items() if not name.startswith(TINY_UNUSED)})


def language_config(config: Mapping[str, Any]) -> LanguageConfig:
    """Size of the language model in a config.json of transformers: LLaVA's, LISA's, Llama's or Mistral's.

    Raises
    ------
    CheckpointError
        If it is a model of another form, such as one with a sliding window shorter than our sequences.
    """
    text = config.get("text_config") or config
    if text.get("sliding_window"):
        raise CheckpointError("a sliding window is not implemented; Mistral 0.2 and later have none")
    if text.get("hidden_act", "silu") != "silu" or text.get("attention_bias"):
        raise CheckpointError("the language model is not of Llama's form")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(f"rotary positions of the type {rope['rope_type']!r} are not implemented")
    return LanguageConfig(
        vocabulary=text["vocab_size"],
        width=text["hidden_size"],
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        mlp_width=text["intermediate_size"],
        norm_eps=text["rms_norm_eps"],
        rope_base=text.get("rope_theta") or rope.get("rope_theta") or 10000.0,
        kv_heads=text.get("num_key_value_heads") or 0,
        head_width=text.get("head_dim") or 0,
    )


def clip_config(config: Mapping[str, Any], select_layer: int = -2) -> ClipConfig:
    """Size of CLIP's vision tower in a config.json of transformers."""
    vision = config.get("vision_config") or config
    return ClipConfig(
        side=vision["image_size"],
        patch_side=vision["patch_size"],
        width=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        select_layer=config.get("vision_feature_layer", select_layer),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def load_language_model(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the language model of a Llama, Mistral, LLaVA or LISA checkpoint into a `LanguageModel`.

    Raises
    ------
    CheckpointError
    """
    found = _under(tensors, LANGUAGE_PREFIXES, "embed_tokens.weight")
    wanted = {name: found[name] for name in module.state_dict() if name in found}
    head = next((tensors[name] for name in HEAD_NAMES if name in tensors), found["embed_tokens.weight"])
    load_into(module, {**wanted, "lm_head.weight": head})


def load_clip_tower(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put CLIP's vision tower, alone or inside a LLaVA checkpoint, into a `ClipTower`.

    Raises
    ------
    CheckpointError
    """
    own = {name.replace("vision_model.", ""): value for name, value in tensors.items()}
    found = _under(own, TOWER_PREFIXES, "embeddings.class_embedding")
    renamed = {_our_clip_name(name): value for name, value in found.items()}
    load_into(module, {name: renamed[name] for name in module.state_dict() if name in renamed})


def load_projector(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put LLaVA's projector - one layer, or two with a GELU - into ours.

    Raises
    ------
    CheckpointError
    """
    for prefix in PROJECTOR_PREFIXES:
        found = with_prefix(tensors, prefix)
        if found:
            numbered = {
                re.sub(r"^linear_(\d)", lambda match: str(2 * (int(match[1]) - 1)), name): value
                for name, value in found.items()
            }
            load_into(module, numbered)
            return
    raise CheckpointError("the checkpoint has no projector between tower and language model")


def load_lvlm(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a LLaVA or LISA checkpoint into tower, projector and language model of `model`.

    LISA's checkpoints hold `text_hidden_fcs` and SAM (`model.visual_model.`) as well: they are taken where
    `model` has such parts. Where the tower is not in the file, load it on its own with `load_clip_tower`.

    Raises
    ------
    CheckpointError
    """
    parts = dict(model.named_children())
    load_language_model(parts["language_model"], tensors)
    load_projector(parts["projector"], tensors)
    if any("class_embedding" in name for name in tensors):
        load_clip_tower(parts["vision_tower"], tensors)
    phi = with_prefix(tensors, "model.text_hidden_fcs.0.")
    if phi and "text_hidden_fcs" in parts:
        load_into(parts["text_hidden_fcs"], phi)
    sam = with_prefix(tensors, "model.visual_model.")
    if sam and "mask_decoder" in parts:
        load_sam(model, sam)


def merge_lora(tensors: Mapping[str, Tensor], adapter: Path) -> Tensors:
    """`tensors` with a PEFT adapter folder (adapter_config.json, adapter_model.safetensors) added in.

    W + (alpha / r) B A, or alpha / sqrt(r) where the adapter says `use_rslora` (Hu et al., arXiv 2106.09685).
    `modules_to_save` replace their originals. Embedding adapters are refused.

    Raises
    ------
    CheckpointError
        If a layer that the adapter changes is not there, or it does what is not implemented here.
    """
    config = json.loads((adapter / "adapter_config.json").read_text())
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("fan_in_fan_out"):
        raise CheckpointError("only plain LoRA adapters can be merged")
    found = with_prefix(load_file(adapter / "adapter_model.safetensors"), "base_model.model.")
    merged = dict(tensors)
    for name, down in found.items():
        if "lora_embedding" in name:
            raise CheckpointError(f"{name}: adapters of embeddings cannot be merged")
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            target = _known_name(merged, f"{layer}.weight")
            up = found[f"{layer}.lora_B.weight"]
            merged[target] = merged[target] + (lora_scale(config, layer) * up @ down).to(merged[target].dtype)
        elif ".lora_B." not in name:
            merged[_known_name(merged, name.replace(".modules_to_save", ""))] = down
    return merged


def lora_scale(config: Mapping[str, Any], layer: str) -> float:
    """How much of B A is added to a layer, with the adapter's patterns for single layers."""
    rank, alpha = config["r"], config["lora_alpha"]
    for pattern, value in (config.get("rank_pattern") or {}).items():
        rank = value if re.search(rf"(^|\.){pattern}$", layer) else rank
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        alpha = value if re.search(rf"(^|\.){pattern}$", layer) else alpha
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _known_name(tensors: Mapping[str, Tensor], name: str) -> str:
    if name not in tensors:
        raise CheckpointError(f"the adapter changes {name}, which the checkpoint does not have")
    return name


def _under(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...], sign: str) -> Tensors:
    """The tensors under the first prefix that has one called `sign`."""
    for prefix in prefixes:
        if f"{prefix}{sign}" in tensors:
            return with_prefix(tensors, prefix)
    raise CheckpointError(f"the checkpoint has no {sign}")


def _our_clip_name(name: str) -> str:
    for part in ("embeddings.", "encoder.", "self_attn.", "mlp."):
        name = name if name.startswith("patch") else name.replace(part, "")
    return name


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks stand under `prefix`."""
    numbers = {name.removeprefix(prefix).split(".", 1)[0] for name in tensors if name.startswith(prefix)}
    return sum(number.isdigit() for number in numbers)
