"""The GPU table goes its whole way on a CPU; TensorRT is driven up to the call that needs a driver."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto

from dicom_node.bench import gpu
from inference.export import gpu_bench, gpu_rows
from inference.export.gpu_engine_rows import onnx_row
from inference.export.gpu_rows import TINY, Bench, GpuRow, iou, sam_rows
from inference.export.gpu_timing import Ceilings
from inference.export.originals import TINY_VIT, fill
from inference.export.sam_encoder import EncoderForm
from inference.export.sam_graphs import encoder_spec
from inference.export.to_onnx import export_graph
from inference.export.to_tensorrt import Profile, TensorRtError, bf16, build_engine, load_tensorrt
from inference.models.sam import VitImageEncoder

ROWS = [
    "SAM ViT-tiny encode and decode",
    "SAM ViT-tiny encode and decode",
    "mask decoder and RVLS2M, 2 prompts in one call",
    "second question on a cached study, masks",
    "SAM ViT-tiny encoder, ONNX Runtime",
    "SAM ViT-tiny encoder, TensorRT bfloat16",
    "language model, 3 tokens, batch 1",
    "2 reasoning paths, one image",
    "2-slice CT, 1 key slices, 2 paths, whole chain",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operators on two threads wait for each other, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["gpu_bench", *arguments])
    return gpu_bench.main()


@pytest.mark.filterwarnings("ignore::UserWarning")  # FlexAttention is not compiled on a CPU, and says so
def test_the_whole_table_at_tiny_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(monkeypatch, "--device", "cpu", "--tiny", "--json", "--rounds", "1") == 0
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert [row["ours"] for row in figures["rows"]] == ROWS
    assert figures["ceilings"]["copy_gb_per_s"] > 0
    measured = [row for row in figures["rows"] if row["times"] is not None]
    assert len(measured) == len(ROWS) - 1
    assert all(row["ours_s"] > 0 for row in measured)
    assert measured[0]["parity"] == "cosine 1.00000, mask IoU 1.0000"
    assert (measured[4]["parity"], measured[4]["note"]) == ("cosine 1.00000", "CPUExecutionProvider")
    assert measured[5]["parity"] == "logits' cosine 1.00000, 100 % of greedy tokens equal"
    (tensorrt,) = (line for line in table if "TensorRT" in line)
    assert "not measured: " in tensorrt


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_bench.torch.cuda, "is_available", lambda: False)
    assert bench(monkeypatch, "--json") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "No CUDA device is visible to PyTorch: nothing was measured." in said.err


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_pass_the_gate_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings("CPU", 1.0, 1.0, "float32")
    sizes = replace(TINY, vits={"ViT-tiny": TINY_VIT}, batch=1)
    here = Bench(torch.device("cpu"), torch.float32, sizes, ceilings, 1)
    monkeypatch.setattr(gpu_rows, "cosine", lambda *_: 0.9)
    with torch.inference_mode():
        first = next(sam_rows(here))
    assert (first.times, first.note) == (None, "refused: it does not pass the gate")


def test_without_a_cuda_provider_its_row_says_what_to_install() -> None:
    there = Bench(torch.device("cuda"), torch.bfloat16, TINY, Ceilings("GPU", 1.0, 1.0, "bfloat16"), 1)
    nobody: Any = None  # neither weights nor graph are touched before the provider is found
    row = onnx_row(there, nobody, GpuRow("SAM encoder", "ours in PyTorch"), nobody)
    assert row.times is None
    assert row.note == "not measured: this ONNX Runtime has no CUDAExecutionProvider; see the extra gpu"


def test_the_node_hands_on_to_a_process_with_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        asked.append(command[1:])
        return SimpleNamespace(returncode=5)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.bench_gpu(["--tiny"]) == 5
    assert asked == [["-W", "ignore", "-m", "inference.export.gpu_bench", "--tiny"]]
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name == "torch" else object())
    assert gpu.bench_gpu([]) == 2
    assert "bench gpu needs torch: install the train extra" in capsys.readouterr().err


def test_masks_agree_prompt_by_prompt() -> None:
    one, none = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    assert [iou(one, one), iou(one, none), iou(none, none)] == [1, 0, 1]
    assert iou(torch.cat([one, none]), torch.cat([one, one])) == 0.5


# --- TensorRT ------------------------------------------------------------------------------------


class FakeTensorRt:
    """TensorRT's documented names; remembers what it was told. `version` 11 has no strongly-typed flag."""

    def __init__(self, *, version: int = 10, is_readable: bool = True, plan: bytes | None = b"plan") -> None:
        self.told: dict[str, Any] = {"profiles": {}, "caches": []}
        told, flags = self.told, {"STRONGLY_TYPED": 0} if version == 10 else {}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        profile = SimpleNamespace(set_shape=lambda name, *shapes: told["profiles"].update({name: shapes}))
        config = SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: told.update(pool=(pool, size)),
            add_optimization_profile=lambda each: told.update(is_profiled=each is profile),
            create_timing_cache=lambda known: known,
            set_timing_cache=self._set_cache,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
        )
        self._config = config
        builder = SimpleNamespace(
            create_network=lambda flags: told.update(flags=flags) or "network",
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda _, given: plan if given is config else None,
        )
        parser = SimpleNamespace(
            parse_from_file=lambda path: told.update(path=path) or is_readable,
            num_errors=1,
            get_error=lambda _: "In node 3: no such operator",
        )
        self.Builder = lambda _: builder
        self.OnnxParser = lambda *_: parser

    class Logger:
        WARNING = 1

        def __init__(self, severity: int) -> None:
            self.severity = severity

    def _set_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        self.told["caches"].append((cache, ignore_mismatch))
        return cache != b"of another device"


PROFILES = {"pixels": Profile.fixed((8, 3, 1024, 1024)), "seg": Profile((1, 256), (16, 256), (64, 256))}


@pytest.mark.parametrize(("version", "flags"), [(10, 1), (11, 0)])
def test_an_engine_is_strongly_typed_with_explicit_profiles(tmp_path: Path, version: int, flags: int) -> None:
    trt = FakeTensorRt(version=version)
    assert build_engine(trt, tmp_path / "graph.onnx", PROFILES, tmp_path / "timing.cache") == b"plan"
    assert trt.told["flags"] == flags
    assert trt.told["profiles"] == {
        "pixels": ((8, 3, 1024, 1024),) * 3,
        "seg": ((1, 256), (16, 256), (64, 256)),
    }
    assert trt.told["is_profiled"]
    assert trt.told["pool"] == ("workspace", 8 << 30)
    assert trt.told["caches"] == [(b"", False)]
    assert (tmp_path / "timing.cache").read_bytes() == b"timings"


def test_a_timing_cache_of_another_device_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"of another device")
    trt = FakeTensorRt()
    build_engine(trt, tmp_path / "graph.onnx", PROFILES, tmp_path / "timing.cache")
    assert trt.told["caches"] == [(b"of another device", False), (b"", False)]


@pytest.mark.parametrize(
    ("trt", "words"),
    [
        (FakeTensorRt(is_readable=False), "TensorRT cannot read graph.onnx: In node 3: no such operator"),
        (FakeTensorRt(plan=None), "TensorRT built no engine of graph.onnx"),
    ],
)
def test_what_tensorrt_refuses_is_said(tmp_path: Path, trt: FakeTensorRt, words: str) -> None:
    with pytest.raises(TensorRtError, match=words):
        build_engine(trt, tmp_path / "graph.onnx", PROFILES, tmp_path / "timing.cache")
    assert not (tmp_path / "timing.cache").exists()


def test_tensorrt_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TensorRtError, match="tensorrt is not installed"):
        load_tensorrt()


def test_bfloat16_stands_in_the_graph(tmp_path: Path) -> None:
    encoder = VitImageEncoder(TINY_VIT).eval()
    fill(encoder)
    export_graph(encoder_spec(encoder, EncoderForm.WHOLE), tmp_path / "graph.onnx")
    assert bf16(tmp_path / "graph.onnx", tmp_path / "bf16.onnx") > 20
    onnx.checker.check_model(str(tmp_path / "bf16.onnx"), full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "bf16.onnx"), strict_mode=True).graph
    dtypes = {info.name: info.type.tensor_type.elem_type for info in graph.value_info}
    for operator in ("MatMul", "Softmax", "LayerNormalization"):
        found = {dtypes[node.output[0]] for node in graph.node if node.op_type == operator}
        assert found == {TensorProto.BFLOAT16}, operator
    convolutions = [node.output[0] for node in graph.node if node.op_type == "Conv"]
    assert {dtypes.get(name, TensorProto.FLOAT) for name in convolutions} == {TensorProto.FLOAT}
    ends = [info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)]
    assert ends == [TensorProto.FLOAT] * 2
