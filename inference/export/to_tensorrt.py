"""ONNX -> TensorRT engine on this GPU: types as the graph has them, explicit profiles, a timing cache.

Written against TensorRT's documented Python API (10 and 11) and tested up to the driver call with a stand-in;
never run: no GPU was at hand. Precision stands in the graph, for TensorRT 11 knows strong typing only; `bf16`
makes a graph bfloat16 but for its convolutions, whose bfloat16 needs opset 22, and its outputs.
Sources: docs.nvidia.com/deeplearning/tensorrt, Builder, IBuilderConfig, IExecutionContext, precision control.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
WORKSPACE_BYTES = 8 << 30

STAYS_FLOAT = frozenset({"Conv", "ConvTranspose", "ConstantOfShape"})  # bfloat16 only in opset 22


class TensorRtError(Exception):
    """TensorRT is missing, or would not build or run an engine; the message says what to do."""


@dataclass(frozen=True)
class Profile:
    """Shapes of one input that an engine is built for: least, best, most."""

    least: Shape
    best: Shape
    most: Shape

    @classmethod
    def fixed(cls, shape: Shape) -> "Profile":
        """One shape only, as CUDA graphs want it."""
        return cls(shape, shape, shape)


def load_tensorrt() -> Any:
    """The `tensorrt` module.

    Raises
    ------
    TensorRtError
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise TensorRtError("tensorrt is not installed: pip install tensorrt, from NVIDIA's index") from error


def build_engine(
    trt: Any, graph: Path, profiles: Mapping[str, Profile], timing_cache: Path, *, level: int = 5
) -> bytes:
    """The serialised engine of an ONNX file, for this GPU, driver and TensorRT only.

    Raises
    ------
    TensorRtError
        If the graph cannot be read or no engine comes of it.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 10 is strongly typed only when asked; 11 always is, and ignores the flag while it has it.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        words = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise TensorRtError(f"TensorRT cannot read {graph.name}: {words}")
    config = _configured(trt, builder, profiles, timing_cache, level)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise TensorRtError(f"TensorRT built no engine of {graph.name}; its log above says why")
    timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _configured(
    trt: Any, builder: Any, profiles: Mapping[str, Profile], timing_cache: Path, level: int
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.builder_optimization_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that `is_attention_fused` can look
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        profile.set_shape(name, shapes.least, shapes.best, shapes.most)
    config.add_optimization_profile(profile)
    known = timing_cache.read_bytes() if timing_cache.exists() else b""
    # A cache of another version or device is not used, instead of leading to its tactics.
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


class TensorRtProgram:
    """An engine with its buffers on the GPU, run on a stream of its own."""

    def __init__(self, trt: Any, plan: bytes, inputs: Mapping[str, torch.Tensor]) -> None:
        """Deserialise `plan`, fix the shapes of `inputs` (on the GPU) and make room for the outputs.

        Raises
        ------
        TensorRtError
        """
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise TensorRtError("the engine was built for another device, driver or TensorRT: build it again")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self.inputs, self.outputs = dict(inputs), dict[str, torch.Tensor]()
        for name, tensor in self.inputs.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise TensorRtError(f"{name}: {tuple(tensor.shape)} is outside the engine's profile")
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._make_outputs(trt, next(iter(inputs.values())).device)

    def _make_outputs(self, trt: Any, device: torch.device) -> None:
        dtypes = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.BF16: torch.bfloat16,
            trt.DataType.UINT8: torch.uint8,
            trt.DataType.INT64: torch.int64,
        }
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                shape = tuple(self._context.get_tensor_shape(name))
                dtype = dtypes[self._engine.get_tensor_dtype(name)]
                self.outputs[name] = torch.empty(shape, dtype=dtype, device=device)
                self._context.set_tensor_address(name, self.outputs[name].data_ptr())

    def __call__(self) -> dict[str, torch.Tensor]:
        """Run on what the inputs hold now; the outputs are overwritten by the next call.

        Raises
        ------
        TensorRtError
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise TensorRtError("TensorRT could not run the engine; its log above says why")
        torch.cuda.current_stream().wait_stream(self._stream)
        return self.outputs

    def is_attention_fused(self, trt: Any) -> bool:
        """Whether the engine has a fused attention kernel; without, SAM's encoder gains little."""
        words: str = self._engine.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        return "mha" in words.lower()


def bf16(source: Path, target: Path) -> int:
    """Write `source` with its arithmetic in bfloat16 to `target`; how many weights were made so.

    Inputs, outputs, convolutions and integers stay. The parity of an engine made of it is checked on the GPU:
    ONNX Runtime's CPU provider does not multiply bfloat16.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(source), data_prop=True)
    graph = model.graph
    is_float = {info.name for info in (*graph.value_info, *graph.input, *graph.output)
                if info.type.tensor_type.elem_type == TensorProto.FLOAT}  # fmt: skip
    weights = {each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    outputs = {each.name for each in graph.output}
    nodes: list[onnx.NodeProto] = []
    made: dict[tuple[str, int], str] = {}

    def cast(name: str, to: int) -> str:
        if (name, to) not in made:
            made[name, to] = f"{name}.{'bf16' if to == TensorProto.BFLOAT16 else 'float'}"
            nodes.append(helper.make_node("Cast", [name], [made[name, to]], to=to))
        return made[name, to]

    narrow: set[str] = set()  # names that hold bfloat16 as they are
    for node in graph.node:
        stays = node.op_type in STAYS_FLOAT or not any(out in is_float for out in node.output)
        for i, name in enumerate(node.input):
            if stays and name in narrow:
                node.input[i] = cast(name, TensorProto.FLOAT)
            elif not stays and (name in is_float or name in weights) and name not in narrow:
                node.input[i] = cast(name, TensorProto.BFLOAT16)
        nodes.append(node)
        if not stays:
            _narrow_constant(node)
            narrow |= {out for out in node.output if out in is_float}
    for name in outputs & narrow:
        producer = next(node for node in nodes if name in node.output)
        for node in nodes:
            node.input[:] = [f"{name}.inner" if each == name else each for each in node.input]
        producer.output[:] = [f"{name}.inner" if each == name else each for each in producer.output]
        nodes.append(helper.make_node("Cast", [f"{name}.inner"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
    return sum((name, TensorProto.BFLOAT16) in made for name in weights)


def _narrow_constant(node: onnx.NodeProto) -> None:
    """A float constant, or a cast to float, becomes bfloat16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.BFLOAT16
        if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
            values = torch.from_numpy(numpy_helper.to_array(attribute.t).copy()).bfloat16()
            raw = values.view(torch.int16).numpy().tobytes()
            tensor = helper.make_tensor("", TensorProto.BFLOAT16, list(values.shape), raw, raw=True)
            attribute.t.CopyFrom(tensor)
