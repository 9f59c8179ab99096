"""Rows of the GPU table: the first image encoder in the other engines, beside our PyTorch one."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import torch

from inference.export.gpu_rows import Bench, GpuRow, SamPair, cosine
from inference.export.sam_encoder import EncoderForm
from inference.export.sam_graphs import encoder_spec
from inference.export.to_onnx import export_graph
from inference.export.to_tensorrt import (
    Profile,
    TensorRtError,
    TensorRtProgram,
    bf16,
    build_engine,
    load_tensorrt,
)
from inference.models.checkpoints import load_into, with_prefix
from inference.models.sam import VitConfig, VitImageEncoder
from inference.runtime.engine_plan import CPU, CUDA, EnginePlan
from inference.runtime.gate_report import MIN_COSINE
from inference.runtime.onnx_engine import OnnxEngine, SessionExtras
from inference.runtime.provider_options import provider_chain

GRAPH = "encoder.onnx"


def engine_rows(bench: Bench) -> Iterator[GpuRow]:
    """ONNX Runtime and native TensorRT on the same weights and images: which is faster is measured."""
    name, config = next(iter(bench.sizes.vits.items()))
    pair = SamPair(bench, config)
    row = GpuRow(f"SAM {name} encoder", "ours in PyTorch", batch=bench.sizes.batch)
    with tempfile.TemporaryDirectory() as folder:
        _export(pair, config, Path(folder) / GRAPH)
        yield onnx_row(bench, pair, row, Path(folder) / GRAPH)
        yield tensorrt_row(bench, pair, row, Path(folder))


def onnx_row(bench: Bench, pair: SamPair, row: GpuRow, graph: Path) -> GpuRow:
    """ONNX Runtime as a worker runs it: images come from the host's memory, embeddings go back there."""
    row = replace(row, ours=f"{row.ours}, ONNX Runtime", dtype="float32")
    device = bench.device.type
    plan = EnginePlan(name=device, provider=CUDA if device == "cuda" else CPU)
    if plan.provider not in ort.get_available_providers():
        return replace(row, note=f"not measured: this ONNX Runtime has no {plan.provider}; see the extra gpu")
    chain = provider_chain(plan, None)
    engine = OnnxEngine(
        GRAPH,
        graph.read_bytes(),
        execution_providers=[name for name, _ in chain],
        extras=SessionExtras(options=dict(chain), bound_to=device),
    )
    feeds = {"pixels": pair.pixels.cpu().numpy()}
    given = torch.from_numpy(engine.run(feeds)["image_embedding"]).to(bench.device)
    row = replace(row, note=engine.execution_providers[0])
    return _compared(bench, pair, row, given, lambda: engine.run(feeds))


def tensorrt_row(bench: Bench, pair: SamPair, row: GpuRow, folder: Path) -> GpuRow:
    """A native TensorRT engine in bfloat16, its images on the device."""
    row = replace(row, ours=f"{row.ours}, TensorRT bfloat16", dtype="bfloat16")
    try:
        trt = load_tensorrt()
    except TensorRtError as error:
        return replace(row, note=f"not measured: {error}")
    if bench.device.type != "cuda":
        return replace(row, note="not measured: TensorRT needs a GPU")
    program = _tensorrt_program(trt, pair, folder)
    row = replace(
        row, note="fused attention" if program.is_attention_fused(trt) else "attention is not fused"
    )
    return _compared(bench, pair, row, program()["image_embedding"], program)


def _compared(
    bench: Bench, pair: SamPair, row: GpuRow, given: torch.Tensor, program: Callable[[], object]
) -> GpuRow:
    """The row measured, if what the engine gave passes the gate."""
    same = cosine(given, pair.theirs.image_encoder(pair.pixels))
    if same < MIN_COSINE:
        return replace(row, note=f"refused: cosine {same:.5f} is below {MIN_COSINE}")
    return bench.compare(replace(row, parity=f"cosine {same:.5f}"), program, pair.encode)[0]


def _export(pair: SamPair, config: VitConfig, target: Path) -> None:
    with torch.device("cpu"):
        plain = VitImageEncoder(config).eval()
        weights = {name: value.cpu() for name, value in pair.theirs.state_dict().items()}
        load_into(plain, with_prefix(weights, "image_encoder."))
        export_graph(encoder_spec(plain, EncoderForm.WHOLE, len(pair.pixels)), target)


def _tensorrt_program(trt: object, pair: SamPair, folder: Path) -> TensorRtProgram:
    """Make the graph bfloat16, build, open."""
    bf16(folder / GRAPH, folder / "encoder_bf16.onnx")
    profiles = {"pixels": Profile.fixed(tuple(pair.pixels.shape))}
    plan = build_engine(trt, folder / "encoder_bf16.onnx", profiles, folder / "timing.cache")
    return TensorRtProgram(trt, plan, {"pixels": pair.pixels})
