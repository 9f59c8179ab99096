"""Checkpoints as they are published, tiny and random, become graphs that answer as the original libraries."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from inference.export import full_size
from inference.export.originals import TINY_VIT, fill, original_sam, segment_anything
from inference.export.parity import ParityError
from inference.models.checkpoints import sha256
from inference.runtime.language_cache import cache_names
from inference.runtime.sim4seg_graphs import graph_specs

VISION = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "rms_norm_eps": 1e-5}  # fmt: skip
CLOSE = 1e-4


@pytest.fixture(scope="module")
def sam() -> Iterator[Any]:
    with segment_anything() as modeling:
        made = original_sam(modeling, TINY_VIT, mlp_width=48)
        fill(made, 9)
        yield made


def export(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["full_size", *map(str, arguments)])
    full_size.main()


def answer(path: Path, **feeds: torch.Tensor) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    arrays = {name: value.numpy() for name, value in feeds.items()}
    return dict(zip(names, session.run(names, arrays), strict=True))


def distance(got: np.ndarray, want: torch.Tensor) -> float:
    return float(np.abs(got - want.detach().numpy()).max() / want.abs().max())


@torch.no_grad()
def test_a_segment_anything_checkpoint_becomes_three_graphs(
    sam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = tmp_path / "sam_vit_tiny.pth", tmp_path / "package"
    torch.save(sam.state_dict(), checkpoint)
    arguments = ("--sam", checkpoint, "--sam-sha256", sha256(checkpoint), "--bits-side", "128")
    export(monkeypatch, *arguments, "--form", "fused", "--out", out)
    pixels = torch.randn(1, 3, 256, 256)
    got = answer(out / "image_encoder.onnx", pixels=pixels)["image_embedding"]
    assert distance(got, sam.image_encoder(pixels)) < CLOSE
    listed = json.loads((out / "graphs.json").read_text())
    assert set(listed["files"]) == {path.name for path in out.glob("*.onnx*")}
    assert listed["files"]["image_encoder.onnx.data"] == sha256(out / "image_encoder.onnx.data")
    assert (out / "image_encoder.onnx").stat().st_size < (out / "image_encoder.onnx.data").stat().st_size
    assert max(listed["relative_error"].values()) < CLOSE


@torch.no_grad()
def test_a_lisa_checkpoint_becomes_the_graphs_of_a_package(
    sam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' Llama and CLIP with LISA's projector and phi: first pass, a step, and the region."""
    torch.manual_seed(1)
    language, tower = LlamaForCausalLM(LlamaConfig(**TEXT)), CLIPVisionModel(CLIPVisionConfig(**VISION))
    projector, phi = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 256))
    parts = {"visual_model": sam, "mm_projector": projector, "text_hidden_fcs.0": phi}
    tensors = dict(language.state_dict())
    for prefix, part in parts.items():
        tensors |= {f"model.{prefix}.{name}": value for name, value in part.state_dict().items()}
    for folder, config, weights in (("lisa", TEXT, tensors), ("clip", VISION, tower.state_dict())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        save_file({n: v.clone() for n, v in weights.items()}, tmp_path / folder / "model.safetensors")
    monkeypatch.setattr(full_size, "PAPER", full_size.replace(full_size.PAPER, im_start=2))
    out = tmp_path / "package"
    export(monkeypatch, "--lvlm", tmp_path / "lisa", "--tower", tmp_path / "clip", "--out", out)

    manifest = SimpleNamespace(
        input=SimpleNamespace(side=256), region=SimpleNamespace(grid=4), text=SimpleNamespace(layers=2)
    )
    for name, spec in graph_specs(manifest).items():
        session = ort.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert {each.name for each in session.get_inputs()} == set(spec.inputs)
        assert {each.name for each in session.get_outputs()} == set(spec.outputs)

    pixels, text = torch.randn(1, 3, 256, 256), torch.tensor([[5, 9, 11]])
    first = answer(out / "language_prefill.onnx", pixels=pixels, text_ids=text)
    embedded, states = originals_first_pass(language, tower, projector, pixels, text)
    assert distance(first["logits"], language.lm_head(states[:, -1])) < CLOSE
    assert distance(first["image_tokens"], phi(states[0, 2:18])) < CLOSE
    layers = {name: torch.from_numpy(first[name]) for name in cache_names(2, "prefix")}
    layers |= {name: torch.zeros(1, 4, 0, 8) for name in cache_names(2, "past")}
    lengths = {"prefix_lengths": torch.tensor([21]), "past_lengths": torch.tensor([0])}
    step = answer(out / "language_step.onnx", token_ids=torch.tensor([[7]]), **lengths, **layers)
    longer = torch.cat([embedded, language.model.embed_tokens(torch.tensor([[7]]))], 1)
    want = language.model(inputs_embeds=longer).last_hidden_state[:, -1]
    assert distance(step["logits"], language.lm_head(want)) < CLOSE
    assert distance(step["state_embedding"], phi(want)) < CLOSE


def originals_first_pass(
    language: Any, tower: Any, projector: nn.Module, pixels: torch.Tensor, text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """<s>, <im_start>, the image as CLIP sees it, and text through the original libraries."""
    means, stds = (
        [torch.tensor(each)[:, None, None] for each in pair]
        for pair in (
            (full_size.IMAGENET_MEAN, full_size.CLIP_MEAN),
            (full_size.IMAGENET_STD, full_size.CLIP_STD),
        )
    )
    plain = F.interpolate(pixels * stds[0] + means[0], (32, 32), mode="bicubic", antialias=True)
    seen = tower((plain - means[1]) / stds[1], output_hidden_states=True).hidden_states[-2][:, 1:]
    words = language.model.embed_tokens
    embedded = torch.cat([words(torch.tensor([[1, 2]])), projector(seen), words(text)], 1)
    return embedded, language.model(inputs_embeds=embedded).last_hidden_state


def test_a_graph_that_differs_is_an_error(tmp_path: Path) -> None:
    spec = full_size.ExportSpec(nn.Dropout(0.5), {"x": torch.ones(4, 64)}, ("y",))
    with pytest.raises(ParityError, match=r"x\.onnx is .* from PyTorch"):
        full_size.write_graphs({"x.onnx": spec}, tmp_path, tolerance=-1.0)
    assert not (tmp_path / "graphs.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "give --sam, or --lvlm with --tower"), (("--lvlm", "lisa"), "--lvlm needs --tower")],
)
def test_what_is_missing_is_named(
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        export(monkeypatch, *arguments, "--out", "package")
    assert words in capsys.readouterr().err
