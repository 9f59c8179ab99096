"""Exported graphs answer like the modules they were made of, at any length and number of prompts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from inference.datasets.folder import load_cases
from inference.export.graphs import ExportSpec, MaskDecoderGraph
from inference.export.package import write_manifest
from inference.export.parity import ParityError, Terms, Tolerance, check, export_checked, relative_error
from inference.export.to_onnx import export_model
from inference.export.weights import shrink_weights
from inference.models.lite_trunk import TrunkConfig
from inference.models.lvlm import LanguageConfig, TinyTowerConfig
from inference.models.sam import DecoderConfig
from inference.models.sim4seg import Sim4Seg, Sim4SegConfig
from inference.models.tiny_sam import TinyConfig
from inference.runtime.language_cache import cache_names
from inference.runtime.model_repository import open_package
from inference.settings import PACKAGES
from tests.inference.datasets import tiny_data

TRUNK = TrunkConfig(stem=8, widths=(8, 8, 8, 8, 16, 16, 16), depths=(1,) * 7, expand=2)
TINY = Sim4SegConfig(
    tower=TinyTowerConfig(TRUNK, width=16, attention_blocks=1),
    language=LanguageConfig(vocabulary=768, width=32, depth=2, heads=4, mlp_width=48),
    encoder=TinyConfig(TRUNK, attention_blocks=1, neck_width=16),
    decoder=DecoderConfig(mlp_width=64, mask_tokens=1, attention_downsample=4, activation=torch.nn.ReLU),
    im_start=3,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ExportSpec]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("graphs")
    return folder, export_model(Sim4Seg(TINY), folder, int8=False)


def compare(folder: Path, name: str, spec: ExportSpec, feeds: dict[str, torch.Tensor]) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / name, options)
    got = session.run(list(spec.outputs), {key: value.numpy() for key, value in feeds.items()})
    with torch.no_grad():
        want = spec.module(*(feeds[key] for key in spec.inputs))
    tensors = want if isinstance(want, tuple) else (want,)
    assert [value.shape for value in got] == [tuple(value.shape) for value in tensors]
    return {key: relative_error(a, b.numpy()) for key, a, b in zip(spec.outputs, got, tensors, strict=True)}


def feeds_of(name: str, length: int) -> dict[str, torch.Tensor]:
    """Inputs whose free axes have another length than at export."""
    caches = {name: torch.randn(1, 4, 20 + length, 8) for name in cache_names(2, "prefix")}
    caches |= {name: torch.randn(length, 4, length - 1, 8) for name in cache_names(2, "past")}
    return {
        "image_encoder.onnx": {"pixels": torch.randn(1, 3, 256, 256)},
        "language_prefill.onnx": {
            "pixels": torch.randn(1, 3, 256, 256),
            "text_ids": torch.randint(0, 768, (1, 4 + length)),
        },
        "language_step.onnx": {
            "token_ids": torch.randint(0, 768, (length, 1)),
            "prefix_lengths": torch.tensor([19 + length]),
            "past_lengths": torch.full((length,), max(length - 2, 0)),
            **caches,
        },
        "mask_decoder.onnx": {
            "image_embedding": torch.randn(1, 256, 64, 64),
            "image_tokens": torch.randn(256, 256),
            "seg_embedding": torch.randn(length, 256),
            "valid_cells": torch.ones(16, 16),
        },
    }[name]


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(
    "name", ["image_encoder.onnx", "language_prefill.onnx", "language_step.onnx", "mask_decoder.onnx"]
)
def test_graph_equals_module(exported: tuple[Path, dict[str, ExportSpec]], name: str, length: int) -> None:
    folder, specs = exported
    errors = compare(folder, name, specs[name], feeds_of(name, length))
    assert max(errors.values()) < 0.01, errors
    assert errors.get("region", 0.0) == 0
    assert onnx.load(folder / name).opset_import[0].version == 17


def test_decoder_graph_equals_the_model() -> None:
    torch.manual_seed(1)
    model = Sim4Seg(TINY).eval()
    feeds = feeds_of("mask_decoder.onnx", 2)
    valid = torch.zeros(16, 16)
    valid[:9] = 1
    with torch.no_grad():
        graph = MaskDecoderGraph(model, (64, 64)).eval()
        masks, iou, similarity, region = graph(
            feeds["image_embedding"], feeds["image_tokens"], feeds["seg_embedding"], valid
        )
        own = model.locate(feeds["image_tokens"][None], feeds["seg_embedding"], valid[None])
        own_masks, own_iou = model.draw(
            feeds["image_embedding"].expand(2, -1, -1, -1), feeds["seg_embedding"], own[1]
        )
    torch.testing.assert_close((similarity, region), own)
    torch.testing.assert_close((masks, iou), (own_masks, own_iou), rtol=1e-4, atol=1e-5)


def test_int8_and_float16_weights_shrink_and_stay_close(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((700, 600)).astype(np.float32)
    weight[3] = 0
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["w", "x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [600, 1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [700, 1])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    x = np.ones((600, 1), np.float32)
    for int8, size in ((False, 2), (True, 1)):
        path = tmp_path / "g.onnx"
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
            path,
        )
        shrink_weights(path, int8=int8)
        assert path.stat().st_size < 1.05 * size * weight.size
        (got,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
        assert relative_error(got, weight @ x) < (0.02 if int8 else 0.001)


def test_a_checked_export_opens_and_answers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    torch.set_num_threads(1)
    folder = tmp_path / "sim4seg-s"
    folder.mkdir()
    shutil.copy(PACKAGES / "sim4seg-s" / "tokenizer.json", folder)
    records = load_cases(tiny_data.write(tmp_path / "data") / "train")[:1]
    loose = Tolerance(relative_error=0.1, mask_dice=0, lowest_mask_dice=0, same_text=0, same_diagnosis=0)
    report = export_checked(Sim4Seg(TINY), folder, records, Terms("1.2.3", True, loose))
    assert report["end_to_end"]["images"] == 1
    assert not (folder / "model.toml").exists()  # the caller adds cards first
    write_manifest(folder, "1.2.3")
    package = open_package(tmp_path, "sim4seg-s")
    assert package.manifest.model.version == "1.2.3"
    assert set(package.manifest.files) == {path.name for path in folder.iterdir()} - {"model.toml"}


@pytest.mark.parametrize(
    ("errors", "alike"),
    [
        ({"mask_decoder.onnx:low_res_logits": 0.2}, {}),
        ({}, {"mask_dice": 0.995}),
        ({}, {"mask_dice": 0.999, "lowest_mask_dice": 0.98}),
        ({}, {"mask_dice": 1.0, "same_text": 0.97}),
        ({}, {"mask_dice": 1.0, "same_diagnosis": 0.5}),
    ],
)
def test_the_gate_closes(errors: dict[str, float], alike: dict[str, float]) -> None:
    with pytest.raises(ParityError):
        check(errors, alike, Tolerance())


def test_the_gate_opens() -> None:
    fine: dict[str, Any] = {
        "mask_dice": 0.998,
        "lowest_mask_dice": 0.992,
        "same_text": 1.0,
        "same_diagnosis": 1.0,
    }
    check({"a": 0.01, "mask_decoder.onnx:region": 0.3}, fine, Tolerance())
