"""Linear layers of a graph in 8-bit integers: weights per output channel, activations per tensor at run time.

`MatMulInteger` on processors with VNNI does four products where a float does one. What it costs in accuracy
depends on the weights, so a graph made here is kept only behind a gate (`gate`), never by default.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Int8Gate:
    """What an 8-bit graph must keep of the float graph's answers; the issue's limits."""

    embedding_cosine: float = 0.999
    mask_iou: float = 0.99

    def refusal(self, cosine: float, iou: float) -> str | None:
        """Why a graph that reached these is not to be used; None where it is."""
        if cosine < self.embedding_cosine:
            return f"embedding cosine {cosine:.5f} is below {self.embedding_cosine}"
        if iou < self.mask_iou:
            return f"mask IoU {iou:.4f} is below {self.mask_iou}"
        return None


def cosine(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Cosine between two tensors of one shape, as one vector each."""
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def mask_iou(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Mean IoU of logits (P, 1, h, w) > 0, prompt by prompt; two empty masks agree."""
    a, b = (x.reshape(len(x), -1) > 0 for x in (ours, theirs))
    union = (a | b).sum(1)
    return float(np.where(union > 0, (a & b).sum(1) / np.maximum(union, 1), 1.0).mean())


def quantize_linear_layers(source: Path, target: Path, kept: tuple[str, ...] = ()) -> int:
    """Write `source` with its matrix products by constants in 8 bits to `target`; how many there were.

    Layers whose name has a part in `kept` stay float.
    """
    model = onnx.load(source)
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    quantized: dict[str, str] = {}  # activation -> prefix of its 8-bit names, which layers share
    count = 0
    for node in graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or any(part in kept for part in node.name.split("/")):
            nodes.append(node)
            continue
        count += 1
        nodes += _quantized(graph, node, numpy_helper.to_array(weight), quantized)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    needed = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(needed)
    onnx.save(model, target)
    return count


def _quantized(
    graph: onnx.GraphProto, node: onnx.NodeProto, weight: NDArray[np.float32], known: dict[str, str]
) -> list[onnx.NodeProto]:
    """The nodes that do one product in integers and give its output's name to the rescaled result."""
    name, activation, (out,) = node.input[1], node.input[0], node.output
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
    _add(graph, f"{name}.int8", np.rint(weight / scale).astype(np.int8))
    _add(graph, f"{name}.scale", scale)
    made: list[onnx.NodeProto] = []
    if activation not in known:
        known[activation] = f"{activation}.uint8"
        parts = [known[activation], f"{activation}.scale", f"{activation}.zero"]
        made.append(helper.make_node("DynamicQuantizeLinear", [activation], parts))
    return [
        *made,
        helper.make_node(
            "MatMulInteger",
            [known[activation], f"{name}.int8", f"{activation}.zero"],
            [f"{out}.int32"],
            name=f"{node.name}.int8",
        ),
        helper.make_node("Cast", [f"{out}.int32"], [f"{out}.wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{activation}.scale", f"{name}.scale"], [f"{out}.scale"]),
        helper.make_node("Mul", [f"{out}.wide", f"{out}.scale"], [out]),
    ]


def _add(graph: onnx.GraphProto, name: str, values: NDArray[np.generic]) -> None:
    if all(each.name != name for each in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(values, name))
