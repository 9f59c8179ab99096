"""Inputs and outputs bound to memory of a device, allocated once for each shape, as CUDA graphs need it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from inference.runtime.engine import Array, Tensors, TensorSpec

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, eq=False)
class _Buffers:
    """Device memory of one set of input shapes, and the run that uses it."""

    inputs: Mapping[str, Any]  # ort.OrtValue
    binding: Any  # ort.IOBinding
    options: Any  # ort.RunOptions


class BoundRuns:
    """Runs a session on memory of `device_type` ("cuda", "cpu"); one run at a time."""

    def __init__(
        self, session: Any, outputs: Mapping[str, TensorSpec], device_type: str, *, is_graph_captured: bool
    ) -> None:
        """`is_graph_captured`: the session was told to capture CUDA graphs; it does where no shape varies."""
        self._is_fixed = all(isinstance(length, int) for spec in outputs.values() for length in spec.shape)
        self._session = session
        self._outputs = outputs
        self._device_type = device_type
        self._is_graph_captured = is_graph_captured
        self._by_shape: dict[Shapes, _Buffers] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Tensors) -> list[Array]:
        """The outputs, in their order, copied to this process's memory."""
        with self._lock:
            buffers = self._buffers_for(feeds)
            for name, value in feeds.items():
                buffers.inputs[name].update_inplace(np.ascontiguousarray(value))
            self._session.run_with_iobinding(buffers.binding, buffers.options)
            return [np.array(value) for value in buffers.binding.copy_outputs_to_cpu()]

    def _buffers_for(self, feeds: Tensors) -> _Buffers:
        shapes = tuple(sorted((name, value.shape) for name, value in feeds.items()))
        if shapes not in self._by_shape:
            if not self._is_fixed:
                self._by_shape.clear()  # a cache that grows by a token each step would fill the device
            self._by_shape[shapes] = self._allocate(feeds, number=len(self._by_shape) + 1)
        return self._by_shape[shapes]

    def _allocate(self, feeds: Tensors, number: int) -> _Buffers:
        binding = self._session.io_binding()
        inputs = {name: self._on_device(np.ascontiguousarray(value)) for name, value in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, spec in self._outputs.items():
            if self._is_fixed:  # a captured graph writes where it wrote first
                binding.bind_ortvalue_output(name, self._room_for(spec))
            else:
                binding.bind_output(name, self._device_type, 0)
        options = ort.RunOptions()
        if self._is_graph_captured:  # each set of shapes is a graph of its own; -1 means none is captured
            options.add_run_config_entry("gpu_graph_id", str(number if self._is_fixed else -1))
        return _Buffers(inputs, binding, options)

    def _room_for(self, spec: TensorSpec) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(
            list(spec.shape), np.dtype(spec.dtype), self._device_type, 0
        )

    def _on_device(self, value: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(value, self._device_type, 0)
