"""The GPU table in one run: the device's ceilings, parity first, then ours beside the peers; JSON at the end.

    python -m inference.export.gpu_bench --json            (or: dicom-node bench gpu --json)
    python -m inference.export.gpu_bench --device cpu --tiny

The second goes the same way at tiny sizes on the CPU: it shows that everything runs, and no speed. Ours is
PyTorch in bfloat16: FlexAttention, compiled, captured as CUDA graphs; ONNX Runtime's and TensorRT's engines
of the encoder stand beside it where they are installed. Medians of at least five, by turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import torch

from inference.export.gpu_engine_rows import engine_rows
from inference.export.gpu_language_rows import chain_row, language_rows
from inference.export.gpu_rows import FULL, TINY, Bench, GpuRow, sam_rows
from inference.export.gpu_timing import Ceilings, measure_ceilings

NO_GPU = (
    "No CUDA device is visible to PyTorch: nothing was measured. Run this on the machine with the GPU and a "
    "CUDA build of PyTorch, or try the whole way on the CPU with --device cpu --tiny."
)
EXIT_NO_DEVICE = 2


def all_rows(bench: Bench) -> Iterator[GpuRow]:
    """Every row of the table, in its order."""
    yield from sam_rows(bench)
    yield from engine_rows(bench)
    yield from language_rows(bench)
    yield chain_row(bench)


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
