"""Checkpoints as the original libraries write them, tiny and random, give the same numbers in our classes."""

import sys
import types
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
)

from inference.models.checkpoints import CheckpointError, sha256
from inference.models.full_size import (
    clip_config,
    language_config,
    load_clip_tower,
    load_language_model,
    load_lvlm,
    load_sam,
    load_tiny_vit,
    merge_lora,
    read_config,
    read_weights,
    sam_vit_config,
    tiny_vit_config,
)
from inference.models.lvlm import ClipTower, LanguageModel, Lvlm
from inference.models.medseg_r import MedSegR, MedSegRConfig, PriorConfig
from inference.models.prs_med import FusionConfig, PrsMed, PrsMedConfig
from inference.models.sam import DecoderConfig
from inference.models.sim4seg import Sim4Seg, Sim4SegConfig
from inference.models.tiny_vit import TinyVitImageEncoder
from tests.inference.models.test_sam import fill

CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
IMAGE_TOKEN = 60
VISION = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 7}  # fmt: skip
TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "rms_norm_eps": 1e-5}  # fmt: skip


def sam_of(reference: Any) -> Any:
    """A tiny Sam as `build_sam` puts it together: SAM's names, an image of 96 pixels."""
    encoder = reference.ImageEncoderViT(
        img_size=96, patch_size=16, embed_dim=32, depth=3, num_heads=4, out_chans=256, use_rel_pos=True,
        window_size=4, global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prompts = reference.PromptEncoder(
        embed_dim=256, image_embedding_size=(6, 6), input_image_size=(96, 96), mask_in_chans=16
    )
    decoder = reference.MaskDecoder(
        transformer_dim=256,
        transformer=reference.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=48, num_heads=8),
        num_multimask_outputs=3, iou_head_hidden_dim=256,
    )  # fmt: skip
    sam = reference.Sam(encoder, prompts, decoder)
    fill(sam, 5)
    for parameter in sam.parameters():
        parameter.data *= 0.3
    return sam.eval()


@torch.no_grad()
def test_a_segment_anything_checkpoint(reference: Any, tmp_path: Path) -> None:
    theirs = sam_of(reference)
    torch.save(theirs.state_dict(), tmp_path / "sam_vit_b.pth")
    tensors = read_weights(tmp_path / "sam_vit_b.pth", sha256(tmp_path / "sam_vit_b.pth"))
    encoder = sam_vit_config(tensors)
    assert (encoder.image_side, encoder.depth, encoder.heads, encoder.window) == (96, 3, 4, 4)
    assert encoder.global_blocks == (1,)
    decoder = DecoderConfig(mlp_width=48)
    priors = PriorConfig(vocabulary=9, width=16, depth=1, heads=4, mlp_width=16, pooled=3, sites=(0, 1))
    medseg = MedSegR(MedSegRConfig(encoder=encoder, decoder=decoder, priors=priors)).eval()
    load_sam(medseg, tensors)
    pixels, mask = torch.randn(1, 3, 96, 96), torch.rand(1, 1, 24, 24).round()
    embedding = medseg.embed(pixels, torch.zeros(1, 3, 4, dtype=torch.int64))
    torch.testing.assert_close(embedding, theirs.image_encoder(pixels), **CLOSE)
    _, dense = theirs.prompt_encoder(points=None, boxes=None, masks=mask)
    seg = torch.randn(1, 1, 256)
    want = theirs.mask_decoder(
        image_embeddings=embedding, image_pe=theirs.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=seg, dense_prompt_embeddings=dense, multimask_output=False,
    )  # fmt: skip
    positions = medseg.prompt_encoder.pe_layer(6, 6)
    got = medseg.mask_decoder(embedding, positions, seg, medseg.prompt_encoder.embed_mask(mask))
    torch.testing.assert_close(got, want, **CLOSE)


def llava(tmp_path: Path, text: Any) -> tuple[LlavaForConditionalGeneration, Path]:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_id=IMAGE_TOKEN,
        image_seq_length=16,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlavaForConditionalGeneration(config).eval()
        model.save_pretrained(tmp_path / "llava")
    return model, tmp_path / "llava"


TEXTS = {
    "llama": LlamaConfig(**TEXT),
    "mistral": MistralConfig(**TEXT, num_key_value_heads=2, rope_theta=1e6, sliding_window=None),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", list(TEXTS))
def test_a_llava_checkpoint(tmp_path: Path, kind: str) -> None:
    theirs, folder = llava(tmp_path, TEXTS[kind])
    config = read_config(folder)
    language = language_config(config)
    assert language.kv_heads == (2 if kind == "mistral" else 4)
    ours = PrsMed(
        PrsMedConfig(
            tower=clip_config(config), language=language, projector_layers=2, start_ids=(1,),
            fusion=FusionConfig(head_widths=(8,), prompt_hidden=16, mlp_width=16, grid=4),
        )
    ).eval()  # fmt: skip
    load_lvlm(ours, read_weights(folder))
    pixels, text = torch.randn(1, 3, 28, 28), torch.tensor([[7, 8, 9, 10]])
    ids = torch.cat([torch.tensor([[1]]), torch.full((1, 16), IMAGE_TOKEN), text], dim=1)
    want = theirs(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    states = ours.read(pixels, text)
    torch.testing.assert_close(states, want.hidden_states[-1], **CLOSE)
    torch.testing.assert_close(ours.language_model.lm_head(states), want.logits, **CLOSE)


@torch.no_grad()
def test_a_lisa_checkpoint(reference: Any, tmp_path: Path) -> None:
    """LLaVA's own names, SAM inside, phi beside it, the projector one layer: as LISA writes it."""
    sam = sam_of(reference)
    language = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    projector, phi = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 256))
    tensors = dict(language.state_dict())
    tensors |= {f"model.visual_model.{name}": value for name, value in sam.state_dict().items()}
    tensors |= {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
    tensors |= {f"model.text_hidden_fcs.0.{name}": value for name, value in phi.state_dict().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    read = read_weights(tmp_path / "pytorch_model.bin", sha256(tmp_path / "pytorch_model.bin"))
    encoder = sam_vit_config({n.removeprefix("model.visual_model."): v for n, v in read.items()})
    ours = Sim4Seg(
        Sim4SegConfig(
            tower=clip_config({**VISION}), language=language_config(TEXT), encoder=encoder,
            decoder=DecoderConfig(mlp_width=48), im_start=2, grid=4, top_k=3,
        )
    ).eval()  # fmt: skip
    load_lvlm(ours, read)
    ids = torch.randint(3, 60, (1, 9))
    states, _ = ours.language_model(ours.embed_text(ids))
    want = language(ids, output_hidden_states=True)
    torch.testing.assert_close(states, want.hidden_states[-1], **CLOSE)
    torch.testing.assert_close(ours.phi(states), phi(want.hidden_states[-1]), **CLOSE)
    tokens = torch.randn(1, 16, 32)
    torch.testing.assert_close(ours.projector(tokens), projector(tokens), **CLOSE)
    pixels = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(ours.image_encoder(pixels), sam.image_encoder(pixels), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_lora_adapter_is_merged_as_peft_merges_it(tmp_path: Path, use_rslora: bool) -> None:
    torch.manual_seed(1)
    base = MistralForCausalLM(MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=None)).eval()
    tensors = {name: value.clone() for name, value in base.state_dict().items()}
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=use_rslora,
        modules_to_save=["lm_head"], rank_pattern={"layers.1.self_attn.v_proj": 2},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_peft_model(base, config).eval()
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
        theirs.save_pretrained(tmp_path)
    ours = LanguageModel(language_config(base.config.to_dict())).eval()
    load_language_model(ours, merge_lora(tensors, tmp_path))
    ids = torch.randint(3, 60, (2, 11))
    states, _ = ours(ours.embed_tokens(ids))
    torch.testing.assert_close(ours.lm_head(states), theirs(input_ids=ids).logits, **CLOSE)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    pair = {f"base_model.model.x.lora_{side}.weight": torch.ones(1, 1) for side in "AB"}
    save_file(pair, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="which the checkpoint does not have"):
        merge_lora({}, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    with pytest.raises(CheckpointError, match="only plain LoRA"):
        merge_lora({}, tmp_path)


class NoDrop(nn.Identity):
    """timm's DropPath, when nothing is dropped."""

    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob


@pytest.fixture
def mobile_sam() -> Iterator[Any]:
    """MobileSAM's TinyViT, which imports four trifles of timm."""
    timm = {
        "timm": {}, "timm.models": {},
        "timm.models.layers": {
            "DropPath": NoDrop,
            "to_2tuple": lambda x: (x, x), "trunc_normal_": nn.init.trunc_normal_,
        },
        "timm.models.registry": {"register_model": lambda function: function},
    }  # fmt: skip
    vision = {"torchvision": {}, "torchvision.transforms": {}, "torchvision.ops": {},
              "torchvision.transforms.functional": {"resize": None, "to_pil_image": None},
              "torchvision.ops.boxes": {"batched_nms": None, "box_area": None}}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, members in (timm | vision).items():
            module = types.ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        from mobile_sam.modeling import tiny_vit_sam

        yield tiny_vit_sam
    for name in [name for name in sys.modules if name.startswith("mobile_sam")]:
        del sys.modules[name]


@torch.no_grad()
def test_tinysams_encoder(mobile_sam: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    windows = (7, 7, 14, 7)
    theirs = mobile_sam.TinyViT(
        img_size=1024, num_classes=3, embed_dims=[8, 16, 32, 320], depths=[1, 2, 1, 1],
        num_heads=[1, 2, 4, 10], window_sizes=list(windows), drop_path_rate=0.0,
    )  # fmt: skip
    for name, value in theirs.state_dict().items():
        if "attention_biases" in name or "running_mean" in name or name.endswith("conv3.bn.weight"):
            value.copy_(torch.randn(value.shape) * 0.5)
    theirs.eval()
    save_file({f"image_encoder.{n}": v for n, v in theirs.state_dict().items()}, tmp_path / "t.safetensors")
    tensors = read_weights(tmp_path / "t.safetensors")
    config = tiny_vit_config({n.removeprefix("image_encoder."): v for n, v in tensors.items()}, windows)
    assert (config.widths, config.depths, config.heads) == ((8, 16, 32, 320), (1, 2, 1, 1), (1, 2, 4, 10))
    ours = TinyVitImageEncoder(config).eval()
    load_tiny_vit(ours, tensors)
    pixels = torch.randn(1, 3, 1024, 1024)
    torch.testing.assert_close(ours(pixels), theirs(pixels), **CLOSE)


def test_a_pickle_needs_its_hash(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="give the SHA-256"):
        read_weights(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="not the file that was named"):
        read_weights(tmp_path / "x.pth", "0" * 64)
    assert read_weights(tmp_path / "x.pth", sha256(tmp_path / "x.pth"))["a"].tolist() == [1, 1]


def test_a_pickle_that_holds_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": types.SimpleNamespace()}, tmp_path / "x.pth")
    with pytest.raises(Exception, match="(?i)weights.only"):
        read_weights(tmp_path / "x.pth", sha256(tmp_path / "x.pth"))


def test_files_and_forms_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match="neither safetensors"):
        read_weights(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="sliding window"):
        language_config({**TEXT, "sliding_window": 4096})
    with pytest.raises(CheckpointError, match="no image_encoder"):
        sam_vit_config({})
    words = dict(LlamaForCausalLM(LlamaConfig(**TEXT)).state_dict())
    with pytest.raises(CheckpointError, match="no projector"):
        load_lvlm(Lvlm(clip_config(VISION), language_config(TEXT), (1,)), words)
    with pytest.raises(CheckpointError, match="class_embedding"):
        load_clip_tower(ClipTower(clip_config(VISION)), {})
