"""Engine on ONNX Runtime; says which execution provider it really got."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from inference.errors import DeviceOutOfMemory, EngineRejected, InferenceError, OutputInvalid
from inference.runtime.binding import BoundRuns
from inference.runtime.engine import Array, Tensors, TensorSpec

LOG = logging.getLogger(__name__)
# ONNX Runtime raises these from C++; they share no base class below Exception.
_ORT_ERRORS = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    ValueError,  # inputs are checked in Python first
)
_DTYPES: dict[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class SessionExtras:
    """What a prepared engine asks of ONNX Runtime beyond the plain one."""

    is_spinning: bool = False  # idle threads wait busily
    is_optimised: bool = False  # the graph was optimised and saved on this machine
    save_to: Path | None = None  # where to save the graph once it is optimised
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of execution providers, by name
    bound_to: str = ""  # inputs and outputs live on this device: "cuda", "cpu"; "" is ONNX Runtime's choice
    is_graph_captured: bool = False  # where no shape varies


PLAINLY = SessionExtras()


class OnnxEngine:
    """One ONNX graph in one inference session; safe to call from several threads."""

    def __init__(
        self,
        name: str,
        model: bytes,
        *,
        execution_providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        profile_prefix: Path | None = None,
        extras: SessionExtras = PLAINLY,
    ) -> None:
        """Load `model` (the bytes of an ONNX file, weights inside).

        Raises
        ------
        EngineRejected
            If ONNX Runtime cannot load it, or none of the execution providers asked for is there.
        """
        self.name = name
        wanted = _available(name, execution_providers)
        options = session_options(threads, extras)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        providers = [(provider, dict(extras.options.get(provider, {}))) for provider in wanted]
        try:
            self._session = ort.InferenceSession(model, sess_options=options, providers=providers)
        except _ORT_ERRORS as error:
            raise EngineRejected(
                f"ONNX Runtime cannot load {name}: {_one_line(error)}. Export it again."
            ) from error
        self.threads: int = options.intra_op_num_threads
        self.execution_providers: tuple[str, ...] = tuple(self._session.get_providers())
        _report_providers(name, execution_providers, self.execution_providers)
        self.inputs: Mapping[str, TensorSpec] = {
            node.name: _spec(node) for node in self._session.get_inputs()
        }
        self.outputs: Mapping[str, TensorSpec] = {
            node.name: _spec(node) for node in self._session.get_outputs()
        }
        self._output_names = list(self.outputs)
        self._bound = self._bind(extras)

    def _bind(self, extras: SessionExtras) -> BoundRuns | None:
        if not extras.bound_to:
            return None
        captured = extras.is_graph_captured
        return BoundRuns(self._session, self.outputs, extras.bound_to, is_graph_captured=captured)

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Every output by name, for one input of each name.

        Raises
        ------
        DeviceOutOfMemory
        OutputInvalid
            If ONNX Runtime could not finish, e.g. because shapes do not meet.
        """
        try:
            if self._bound is not None:
                values = self._bound.run(feeds)
            else:
                values = self._session.run(self._output_names, dict(feeds))
        except _ORT_ERRORS as error:
            raise _run_error(self.name, error) from error
        return dict(zip(self._output_names, (np.asarray(value) for value in values), strict=True))

    def warm_up(self, feeds: Tensors) -> None:
        """Run once so that the first real call is not the slow one."""
        self.run(feeds)

    def end_profiling(self) -> Path:
        """Write the profile asked for at construction and say where."""
        return Path(self._session.end_profiling())


def session_options(threads: int, extras: SessionExtras = PLAINLY) -> ort.SessionOptions:
    """Options for a shared machine: `threads` within an operator, operators in sequence, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # The key-value cache grows by one each step: a memory pattern per shape would never be met again.
    options.enable_mem_pattern = False
    # Spinning idle threads took 3 CPU seconds in the second after one request (spec/inference.md 2).
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(extras.is_spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    if extras.is_optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if extras.save_to is not None:
        options.optimized_model_filepath = str(extras.save_to)
    return options


def available_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota (cgroup v2 or v1)."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota_cores(cgroup_root)
    return cores if quota is None else max(1, min(cores, int(quota + 0.5)))


def _cgroup_quota_cores(root: Path) -> float | None:
    unified = _read(root / "cpu.max").split()
    if len(unified) == 2:
        return None if unified[0] == "max" else int(unified[0]) / int(unified[1])
    quota = _read(root / "cpu" / "cpu.cfs_quota_us").strip()
    period = _read(root / "cpu" / "cpu.cfs_period_us").strip()
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # not this kind of cgroup


def _available(name: str, wanted: Sequence[str]) -> list[str]:
    have = ort.get_available_providers()
    usable = [provider for provider in wanted if provider in have]
    if not usable:
        raise EngineRejected(
            f"{name}: asked for {', '.join(wanted)}, but this ONNX Runtime {ort.__version__} offers "
            f"{', '.join(have)}. Install the onnxruntime build that has it, or change "
            "inference.execution_providers."
        )
    return usable


def _report_providers(name: str, asked: Sequence[str], got: Sequence[str]) -> None:
    # ONNX Runtime drops a provider that cannot start (no driver, no device) and goes on: never silently here.
    missing = [provider for provider in asked if provider not in got]
    if len(missing) == len(asked):
        raise EngineRejected(
            f"{name}: asked for {', '.join(asked)}, got {', '.join(got)}. Is its device there?"
        )
    if missing:
        LOG.warning("%s: asked for %s, got %s; results come slower", name, ", ".join(asked), ", ".join(got))


def _spec(node: ort.NodeArg) -> TensorSpec:
    dtype = _DTYPES.get(node.type, node.type)
    return TensorSpec(dtype, tuple(length if isinstance(length, int) else None for length in node.shape))


def _run_error(name: str, error: Exception) -> InferenceError:
    text = _one_line(error)
    if "allocate memory" in text or "out of memory" in text.lower():
        return DeviceOutOfMemory(f"{name}: no memory left ({text}). Run fewer workers on this machine.")
    return OutputInvalid(f"{name} could not be run: {text}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
