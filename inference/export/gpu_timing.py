"""What the GPU benchmark times with: the device's ceilings, captured calls, medians by turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.runtime.timed_worker import by_turns

WARM_UPS = 3  # of a call before it is captured, as PyTorch's notes on CUDA graphs ask


@dataclass(frozen=True)
class Ceilings:
    """What this device reached just now."""

    device: str
    copy_gb_per_s: float  # read and written
    matmul_tflops: float
    matmul_dtype: str


@dataclass(frozen=True)
class Median:
    """Seconds of the rounds of one program."""

    median_s: float
    fastest_s: float
    slowest_s: float


def wait(device: torch.device) -> None:
    """Until everything started on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(program: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, until the device is done."""
    wait(device)
    started = time.perf_counter()
    program()
    wait(device)
    return time.perf_counter() - started


def medians(
    programs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, Median]:
    """Each program once to warm up, then `rounds` times, by turns."""

    def turn(program: Callable[[], object]) -> Callable[[], tuple[float, float]]:
        return lambda: (seconds_of(program, device), 0.0)

    seconds, _ = by_turns({name: turn(program) for name, program in programs.items()}, rounds)
    return {name: Median(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def measure_ceilings(device: torch.device, *, is_tiny: bool, repeats: int = 5) -> Ceilings:
    """Best of `repeats` of a large copy and of a matrix product in the dtype that counts."""
    side, megabytes = (256, 4) if is_tiny else (8192, 2048)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    out = torch.empty_like(matrix)
    copy_s = min(seconds_of(lambda: target.copy_(source), device) for _ in range(repeats))
    product_s = min(seconds_of(lambda: torch.mm(matrix, matrix, out=out), device) for _ in range(repeats))
    return Ceilings(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        2 * source.numel() / copy_s / 1e9,
        2 * side**3 / product_s / 1e12,
        str(dtype).removeprefix("torch."),
    )


class Captured:
    """A call on fixed inputs, compiled and captured as one CUDA graph; on the CPU the plain call.

    Inputs are changed in place; what is given back is overwritten by the next call.
    """

    def __init__(self, program: Callable[..., Any], inputs: tuple[Tensor, ...], *, is_compiled: bool) -> None:
        self.inputs, self._graph = inputs, None
        self._program = program
        if inputs[0].device.type == "cuda":
            run = torch.compile(program, dynamic=False) if is_compiled else program
            self._graph, self._out = _capture(run, inputs)

    def __call__(self) -> Any:
        """Run on what the inputs hold now."""
        if self._graph is None:
            return self._program(*self.inputs)
        self._graph.replay()
        return self._out


def _capture(program: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UPS):
            program(*inputs)
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = program(*inputs)
    return graph, out
