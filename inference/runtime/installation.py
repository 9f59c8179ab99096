"""What of ONNX Runtime, CUDA and TensorRT is installed here, and why an execution provider cannot be had."""

import ctypes.util
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from inference.errors import EngineRejected
from inference.runtime.engine_plan import CUDA, TENSORRT
from inference.runtime.machine import NVIDIA, nvidia_devices, nvidia_driver

BUILDS = ("onnxruntime", "onnxruntime-gpu")
CUDA_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")
TENSORRT_LIBRARIES = ("tensorrt-cu13-libs", "tensorrt-cu12-libs", "tensorrt-libs")
VersionOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Installation:
    """What was found; None where it is not there."""

    builds: dict[str, str]  # of ONNX Runtime: distribution -> version; more than one is a fault
    offered: tuple[str, ...]  # execution providers of the build
    driver: str | None
    devices: tuple[str, ...]
    cuda: str | None
    tensorrt: str | None

    def why_not(self, provider: str) -> str | None:
        """Why `provider` cannot run here, as a sentence; None where nothing speaks against it."""
        if provider not in self.offered:
            build = ", ".join(f"{name} {number}" for name, number in self.builds.items()) or "no ONNX Runtime"
            return f"{build} does not offer it; CUDA and TensorRT come with the extra `gpu` instead of `cpu`"
        return self._why_no_device(provider) if provider in {CUDA, TENSORRT} else None

    def _why_no_device(self, provider: str) -> str | None:
        if self.driver is None:
            return "NVIDIA's driver is not loaded; a container needs `--gpus all` and NVIDIA's toolkit"
        if not self.devices:
            return f"driver {self.driver} sees no device"
        if self.cuda is None:
            return "CUDA's libraries are not there; they come with the extra `gpu`"
        if provider == TENSORRT and self.tensorrt is None:
            return "TensorRT's libraries are not there; they come with the extra `tensorrt`"
        return None


def look() -> Installation:
    """What is installed on this machine; ONNX Runtime is loaded, no device is used."""
    builds = builds_of(_version)
    return Installation(
        builds=builds,
        offered=tuple(importlib.import_module("onnxruntime").get_available_providers()) if builds else (),
        driver=nvidia_driver(),
        devices=tuple(nvidia_devices(NVIDIA)),
        cuda=_first(CUDA_RUNTIMES) or _library("cudart"),
        tensorrt=_first(TENSORRT_LIBRARIES) or _library("nvinfer"),
    )


def builds_of(version_of: VersionOf) -> dict[str, str]:
    """The installed builds of ONNX Runtime with their versions."""
    found = {name: version_of(name) for name in BUILDS}
    return {name: number for name, number in found.items() if number is not None}


def require_one_build(builds: Sequence[str] | None = None) -> None:
    """Refuse an environment where two builds of ONNX Runtime have overwritten each other's files.

    Raises
    ------
    EngineRejected
    """
    if len(builds_of(_version) if builds is None else builds) > 1:
        raise EngineRejected(
            "onnxruntime and onnxruntime-gpu are both installed and have overwritten each other's files: "
            "make a new environment with one of the extras `cpu` and `gpu`."
        )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _first(distributions: Sequence[str]) -> str | None:
    return next((number for each in distributions if (number := _version(each)) is not None), None)


def _library(name: str) -> str | None:
    found = ctypes.util.find_library(name)
    return None if found is None else Path(found).name
