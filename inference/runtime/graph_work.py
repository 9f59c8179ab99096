"""Work of one run of a graph, counted from ONNX Runtime's own profile: the floor of its time."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Multiplications hide in these too; a graph that has them is shown with a floor that is too low.
UNCOUNTED = frozenset({"Attention", "Einsum", "GroupQueryAttention", "LSTM", "MultiHeadAttention"})
_MATMUL = frozenset(
    {"MatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}
)
_CONV = frozenset({"Conv", "FusedConv", "ConvInteger", "NhwcFusedConv"})
_GEMM = frozenset({"Gemm", "FusedGemm", "FusedMatMul"})

_ITEM_BYTES = {"double": 8, "float16": 2, "int8": 1, "uint8": 1}  # anything else: 4
Shape = list[int]


@dataclass
class GraphWork:
    """Sums over all profiled runs of one graph."""

    runs: int = 0
    flop: float = 0.0  # two per multiply-add
    parameter_bytes: float = 0.0  # read at least once per run
    uncounted: set[str] = field(default_factory=set)

    def per_run(self) -> tuple[float, float]:
        """(floating-point operations, parameter bytes) of an average run."""
        runs = max(self.runs, 1)
        return self.flop / runs, self.parameter_bytes / runs


def read_profile(path: Path) -> GraphWork:
    """Count the work in a profile that ONNX Runtime wrote."""
    return count_work(json.loads(path.read_text()))


def count_work(events: Iterable[Mapping[str, Any]]) -> GraphWork:
    """Count runs, floating-point operations and parameter bytes in the events of a profile."""
    work = GraphWork()
    for event in events:
        if event.get("cat") == "Session" and event["name"] == "model_run":
            work.runs += 1
        arguments = event.get("args", {})
        if event.get("cat") != "Node" or "output_type_shape" not in arguments:
            continue
        operator = arguments["op_name"]
        inputs = _shapes(arguments["input_type_shape"])
        if operator in UNCOUNTED:
            work.uncounted.add(operator)
        work.flop += _flop(operator, inputs, _shapes(arguments["output_type_shape"]))
        work.parameter_bytes += _parameter_bytes(operator, arguments["input_type_shape"])
    return work


def _flop(operator: str, inputs: list[Shape], outputs: list[Shape]) -> float:
    if not inputs or not outputs:
        return 0.0
    if operator in _MATMUL:
        return 2.0 * math.prod(outputs[0]) * inputs[0][-1]
    if operator in _GEMM:  # either side may be transposed, so the inner length comes from the element counts
        return 2.0 * math.prod(inputs[0]) * outputs[0][-1]
    if operator in _CONV:
        return 2.0 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if operator == "ConvTranspose":
        return 2.0 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    return 0.0


def _parameter_bytes(operator: str, inputs: list[dict[str, Shape]]) -> float:
    # ONNX Runtime forgets weights that it packed ("parameter_size" is 0 then), so shapes tell them instead.
    if len(inputs) < 2 or operator not in _MATMUL | _GEMM | _CONV | {"ConvTranspose"}:
        return 0.0
    ((dtype, shape),) = inputs[1].items()
    if operator in _MATMUL and len(shape) > 2:
        return 0.0  # two activations, as in attention
    return float(math.prod(shape)) * _ITEM_BYTES.get(dtype, 4)


def _shapes(entries: list[dict[str, Shape]]) -> list[Shape]:
    return [shape for entry in entries for shape in entry.values()]
