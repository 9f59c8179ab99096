"""Smaller weights inside an ONNX file: 16-bit floats, or 8-bit integers with a scale per channel.

Both are undone by `Cast` (and `Mul`) on constants, which ONNX Runtime folds when it loads the file:
the arithmetic stays float32 and costs no time.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 4096  # elements; below this a weight stays float32
SMALLEST_INT8 = 400_000  # elements; only the large convolutions and layers, which bear it best


def shrink_weights(path: Path, *, int8: bool, smallest_int8: int = SMALLEST_INT8) -> None:
    """Rewrite the file at `path` with its large float32 constants stored in 16 or 8 bits.

    With `int8` those of at least `smallest_int8` elements are stored in 8 bits.
    """
    model = onnx.load(path)
    graph = model.graph
    kept: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for constant in graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < SMALLEST:
            kept.append(constant)
        elif int8 and values.ndim > 1 and values.size >= smallest_int8:
            _store_int8(constant.name, values, kept, nodes)
        else:
            _store_float16(constant.name, values, kept, nodes)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _store_float16(
    name: str, values: NDArray[np.float32], kept: list[TensorProto], nodes: list[onnx.NodeProto]
) -> None:
    kept.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.f16"))
    nodes.append(helper.make_node("Cast", [f"{name}.f16"], [name], to=TensorProto.FLOAT))


def _store_int8(
    name: str, values: NDArray[np.float32], kept: list[TensorProto], nodes: list[onnx.NodeProto]
) -> None:
    axes = tuple(range(1, values.ndim))
    scale = np.abs(values).max(axis=axes, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    kept.append(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.i8"))
    kept.append(numpy_helper.from_array(scale, f"{name}.scale"))
    nodes.append(helper.make_node("Cast", [f"{name}.i8"], [f"{name}.wide"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", [f"{name}.wide", f"{name}.scale"], [name]))
