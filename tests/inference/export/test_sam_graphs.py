"""The rewritten SAM gives segment-anything's numbers, in PyTorch and as a graph on ONNX Runtime."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from inference.export import sam_encoder
from inference.export.graphs import ExportSpec
from inference.export.int8 import Int8Gate, cosine, mask_iou, quantize_linear_layers
from inference.export.originals import TINY_VIT, fill, original_sam, segment_anything
from inference.export.packed_masks import PackedMasks
from inference.export.sam_decoder import SharedMaskDecoder
from inference.export.sam_encoder import EncoderForm, SamEncoderGraph
from inference.export.sam_graphs import bits_decoder_spec, encoder_spec, region_decoder_spec
from inference.export.to_onnx import export_graph
from inference.models.full_size import load_sam
from inference.models.lvlm import LanguageConfig, TinyTowerConfig
from inference.models.sam import DecoderConfig
from inference.models.sim4seg import Sim4Seg, Sim4SegConfig
from inference.runtime.onnx_engine import OnnxEngine

CLOSE = 2e-5  # of the largest value; what float32 in another order of summation may move
GRID = 16


@pytest.fixture(scope="module")
def original() -> Iterator[Any]:
    """A tiny segment-anything model, random, whose windows (6 x 6) do not fit its grid (16 x 16)."""
    with segment_anything() as modeling:
        sam = original_sam(modeling, TINY_VIT, mlp_width=48)
        fill(sam, 3)
        yield sam


@pytest.fixture(scope="module")
def ours(original: Any) -> Sim4Seg:
    """The same weights in our classes."""
    language = LanguageConfig(vocabulary=40, width=32, depth=1, heads=4, mlp_width=48)
    decoder = DecoderConfig(mlp_width=48)
    model = Sim4Seg(Sim4SegConfig(TinyTowerConfig(width=16), language, TINY_VIT, decoder)).eval()
    load_sam(model, original.state_dict())
    return model


@pytest.fixture(scope="module")
def decoder(ours: Sim4Seg) -> SharedMaskDecoder:
    return SharedMaskDecoder(ours.prompt_encoder, ours.mask_decoder, (16, 16), GRID).eval()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 queries in four parts, the last one short."""
    monkeypatch.setattr(sam_encoder, "CHUNK", 72)


def run(spec: ExportSpec, folder: Path, feeds: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    export_graph(spec, folder / "graph.onnx")
    engine = OnnxEngine("graph", (folder / "graph.onnx").read_bytes(), threads=1)
    return engine.run({name: value.numpy() for name, value in feeds.items()})


def assert_close(got: np.ndarray, want: torch.Tensor) -> None:
    assert got.shape == tuple(want.shape)
    assert np.abs(got - want.numpy()).max() <= CLOSE * want.abs().max().item()


@pytest.mark.parametrize("form", EncoderForm)
@torch.no_grad()
def test_every_form_of_the_encoder_is_segment_anythings(
    original: Any, ours: Sim4Seg, tmp_path: Path, form: EncoderForm
) -> None:
    pixels = torch.randn(1, 3, 256, 256)
    want = original.image_encoder(pixels)
    spec = encoder_spec(ours.image_encoder, form)
    assert_close(spec.module(pixels).numpy(), want)
    assert_close(run(spec, tmp_path, {"pixels": pixels})["image_embedding"], want)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node)
    assert operators["MultiHeadAttention"] == (form is EncoderForm.FUSED)
    assert operators["Softmax"] == {"chunked": 2 + 4, "whole": 3, "fused": 2}[form]


def test_padding_is_never_projected(ours: Sim4Seg) -> None:
    """A 16 x 16 grid in 6 x 6 windows is 324 tokens; only 256 of them are real."""
    seen: list[torch.Size] = []
    graph = SamEncoderGraph(ours.image_encoder)
    for block in graph.blocks:
        for layer in (block.attn.qkv, block.attn.proj):
            layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    graph(torch.randn(1, 3, 256, 256))
    assert seen == [torch.Size([1, 16, 16, 48])] * 6


@pytest.mark.parametrize("prompts", [1, 5])
@torch.no_grad()
def test_the_shared_decoder_is_segment_anythings(
    original: Any, decoder: SharedMaskDecoder, prompts: int, tmp_path: Path
) -> None:
    embedding, seg = torch.randn(1, 256, 16, 16), torch.randn(prompts, 256)
    region = (torch.rand(prompts, GRID, GRID) > 0.8).float()
    dense = original.prompt_encoder.mask_downscaling(F.interpolate(region[:, None], scale_factor=4.0))
    want, iou = original.mask_decoder(
        image_embeddings=embedding,
        image_pe=original.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=seg[:, None],
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    got, got_iou = decoder(embedding, seg, region)
    assert_close(got.numpy(), want)
    assert_close(got_iou.numpy(), iou)
    feeds = {"image_embedding": embedding, "seg_embedding": seg, "region": region}
    bits = run(bits_decoder_spec(decoder, GRID, 64), tmp_path, feeds)["mask_bits"]
    wrong = np.unpackbits(bits, axis=-1).astype(bool) != (want[:, 0] > 0).numpy()
    assert np.abs(want[:, 0].numpy()[wrong]).max(initial=0) <= CLOSE * want.abs().max().item()
    assert 0.01 < np.unpackbits(bits).mean() < 0.99


@torch.no_grad()
def test_rvls2m_in_the_graph_is_the_models(ours: Sim4Seg, decoder: SharedMaskDecoder, tmp_path: Path) -> None:
    """Several [SEG], padding, ties and a constant map at once."""
    embedding, seg = torch.randn(1, 256, 16, 16), torch.randn(4, 256)
    seg[3] = 0  # the same similarity everywhere
    tokens = torch.randn(GRID**2, 256)
    tokens[20:60] = tokens[20]  # forty cells tie
    valid = torch.ones(GRID, GRID)
    valid[12:] = 0
    similarity, region = ours.locate(tokens[None], seg, valid[None])
    masks, iou = ours.draw(embedding, seg, region)
    feeds = {"image_embedding": embedding, "image_tokens": tokens, "seg_embedding": seg, "valid_cells": valid}
    got = run(region_decoder_spec(decoder, GRID, 36), tmp_path, feeds)
    assert np.array_equal(got["region"], region.numpy())
    assert region.sum((1, 2)).tolist() == [36, 36, 36, 0]
    assert_close(got["similarity"], similarity)
    assert_close(got["low_res_logits"], masks)
    assert_close(got["iou_predictions"], iou)


@torch.no_grad()
def test_enlarged_masks_are_packed_and_never_held_whole(decoder: SharedMaskDecoder, tmp_path: Path) -> None:
    logits = F.interpolate(torch.randn(3, 1, 16, 16), scale_factor=4.0, mode="bicubic")
    enlarged = F.interpolate(logits, size=256, mode="bilinear", align_corners=False)[:, 0]
    bits = PackedMasks(64, 256)(logits)
    assert bits.shape == (3, 256, 32)
    assert bits.dtype == torch.uint8
    wrong = np.unpackbits(bits.numpy(), axis=-1).astype(bool) != (enlarged > 0).numpy()
    assert enlarged.numpy()[wrong].size < 20
    assert np.abs(enlarged.numpy()[wrong]).max(initial=0) < 1e-5
    export_graph(bits_decoder_spec(decoder, GRID, 1024, prompts=1), tmp_path / "graph.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "graph.onnx"), data_prop=True).graph
    sizes = [[d.dim_value for d in info.type.tensor_type.shape.dim] for info in graph.value_info]
    assert len(sizes) > 100
    assert max(int(np.prod(size)) for size in sizes) < 1024**2


@pytest.mark.parametrize(("side", "strips"), [(32, 8), (260, 8), (250, 2)])
def test_a_mask_that_cannot_be_packed_is_refused(side: int, strips: int) -> None:
    with pytest.raises(ValueError, match="cannot be packed"):
        PackedMasks(64, side, strips)


@torch.no_grad()
def test_int8_keeps_close_and_does_its_products_in_integers(ours: Sim4Seg, tmp_path: Path) -> None:
    pixels = torch.randn(1, 3, 256, 256)
    spec = encoder_spec(ours.image_encoder, EncoderForm.CHUNKED)
    export_graph(spec, tmp_path / "float.onnx")
    assert quantize_linear_layers(tmp_path / "float.onnx", tmp_path / "int8.onnx") == 4 * 3
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert Counter(node.op_type for node in graph.node)["MatMulInteger"] == 12
    floats = {each.name for each in graph.initializer if len(each.dims) == 2 and each.data_type == 1}
    assert not [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in floats]
    want = spec.module(pixels).numpy()
    engine = OnnxEngine("int8", (tmp_path / "int8.onnx").read_bytes(), threads=1)
    got = engine.run({"pixels": pixels.numpy()})["image_embedding"]
    assert 0.99 < cosine(got, want) < 1


def test_the_gate_of_8_bits_says_why() -> None:
    gate = Int8Gate()
    assert gate.refusal(0.9995, 0.995) is None
    assert "cosine 0.99800 is below 0.999" in str(gate.refusal(0.998, 0.995))
    assert "IoU 0.9800 is below 0.99" in str(gate.refusal(0.9995, 0.98))
    one, none = np.ones((1, 1, 4, 4), np.float32), -np.ones((1, 1, 4, 4), np.float32)
    assert [mask_iou(one, one), mask_iou(one, none), mask_iou(none, none)] == [1, 0, 1]
