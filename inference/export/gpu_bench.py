"""The GPU table in one run: the device's ceilings, parity first, then ours beside the peers; JSON at the end.

    python -m inference.export.gpu_bench --json            (or: dicom-node bench gpu --json)
    python -m inference.export.gpu_bench --device cpu --tiny

The second goes the same way at tiny sizes on the CPU: it shows that everything runs, and no speed. Ours is
PyTorch in bfloat16: FlexAttention, compiled, captured as CUDA graphs; TensorRT's engine of the encoder stands
beside it where tensorrt is installed. Medians of at least five, by turns.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from inference.export.gpu_language_rows import chain_row, language_rows
from inference.export.gpu_rows import FULL, TINY, Bench, GpuRow, SamPair, cosine, sam_rows
from inference.export.gpu_timing import Ceilings, measure_ceilings
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
from inference.models.sam import VitImageEncoder
from inference.runtime.gate_report import MIN_COSINE

NO_GPU = (
    "No CUDA device is visible to PyTorch: nothing was measured. Run this on the machine with the GPU and a "
    "CUDA build of PyTorch, or try the whole way on the CPU with --device cpu --tiny."
)
EXIT_NO_DEVICE = 2


def all_rows(bench: Bench) -> Iterator[GpuRow]:
    """Every row of the table, in its order."""
    yield from sam_rows(bench)
    yield tensorrt_row(bench)
    yield from language_rows(bench)
    yield chain_row(bench)


def tensorrt_row(bench: Bench) -> GpuRow:
    """The first encoder as a native TensorRT engine against our PyTorch one: which is faster is measured."""
    name, config = next(iter(bench.sizes.vits.items()))
    row = GpuRow(
        f"SAM {name} encoder, TensorRT bfloat16", "ours in PyTorch", dtype="bfloat16", batch=bench.sizes.batch
    )
    try:
        trt = load_tensorrt()
    except TensorRtError as error:
        return GpuRow(**vars(row) | {"note": f"not measured: {error}"})
    if bench.device.type != "cuda":
        return GpuRow(**vars(row) | {"note": "not measured: TensorRT needs a GPU"})
    pair = SamPair(bench, config)
    with tempfile.TemporaryDirectory() as folder:
        program = _tensorrt_program(trt, pair, config, Path(folder))
    same = cosine(program()["image_embedding"], pair.theirs.image_encoder(pair.pixels))
    if same < MIN_COSINE:
        return GpuRow(**vars(row) | {"note": f"refused: cosine {same:.5f} is below {MIN_COSINE}"})
    note = "fused attention" if program.is_attention_fused(trt) else "attention is not fused"
    row = GpuRow(**vars(row) | {"parity": f"cosine {same:.5f}", "note": note})
    return bench.compare(row, program, pair.encode)[0]


def _tensorrt_program(trt: object, pair: SamPair, config: object, folder: Path) -> TensorRtProgram:
    """Export at the batch measured, make it bfloat16, build, open."""
    with torch.device("cpu"):
        plain = VitImageEncoder(config).eval()  # type: ignore[arg-type]
        weights = {name: value.cpu() for name, value in pair.theirs.state_dict().items()}
        load_into(plain, with_prefix(weights, "image_encoder."))
        export_graph(encoder_spec(plain, EncoderForm.WHOLE, len(pair.pixels)), folder / "encoder.onnx")
    bf16(folder / "encoder.onnx", folder / "encoder_bf16.onnx")
    profiles = {"pixels": Profile.fixed(tuple(pair.pixels.shape))}
    plan = build_engine(trt, folder / "encoder_bf16.onnx", profiles, folder / "timing.cache")
    return TensorRtProgram(trt, plan, {"pixels": pair.pixels})


def table(rows: list[GpuRow], ceilings: Ceilings) -> str:
    """The table for people, in Markdown."""
    product = f"{ceilings.matmul_tflops:.2f} TFLOP/s ({ceilings.matmul_dtype})"
    lines = [
        f"{ceilings.device}: copy {ceilings.copy_gb_per_s:.0f} GB/s, matrix product {product}",
        "",
        "| ours | against | ours, s | against, s | times | target | aim | dtype, batch | parity | note |",
        "|---|---|--:|--:|--:|--:|--:|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: GpuRow) -> str:
    seconds = [f"{each:.4f}" if each is not None else "-" for each in (row.ours_s, row.peer_s)]
    times = f"{row.times:.2f}" if row.times is not None else "not measured"
    goals = ["-" if each is None else f"{each:.1f}" for each in (row.target, row.aim)]
    share = "" if row.roof_share is None else f"; {100 * row.roof_share:.0f} % of the floor"
    cells = [row.ours, row.against, *seconds, times, *goals, f"{row.dtype}, {row.batch}", row.parity]
    return f"| {' | '.join([*cells, row.note + share])} |"


def main() -> int:
    """Measure, print, and end with one line of JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON line, the last")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return EXIT_NO_DEVICE
    started = time.perf_counter()
    device = torch.device(options.device)
    torch.manual_seed(0)
    with device, torch.inference_mode():
        ceilings = measure_ceilings(device, is_tiny=options.tiny)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        bench = Bench(device, dtype, TINY if options.tiny else FULL, ceilings, max(1, options.rounds))
        rows = list(all_rows(bench))
    print(table(rows, ceilings))
    if options.json:
        figures = {"bench": "gpu", "is_tiny": options.tiny, "seconds": time.perf_counter() - started}
        figures |= {"ceilings": asdict(ceilings), "rows": [asdict(row) for row in rows]}
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
