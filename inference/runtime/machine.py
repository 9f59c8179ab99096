"""What this machine is, as far as engines care: processor, NVIDIA driver and devices, read from files."""

import re
from dataclasses import dataclass
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Device:
    """What runs the engines, and the driver it needs; "" where it needs none."""

    name: str
    driver: str


def processor(cpuinfo: Path = CPUINFO) -> Device:
    """The processor, with the vector instructions that ONNX Runtime chooses its kernels by."""
    text = _read(cpuinfo)
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    words = flags[1].split() if flags else []
    vectors = [flag for flag in words if flag.startswith(("avx", "amx", "asimd"))]
    return Device(" ".join([model[1] if model else "unknown processor", *sorted(vectors)]), "")


def nvidia_driver(root: Path = NVIDIA) -> str | None:
    """The version of NVIDIA's kernel driver; None where it is not loaded."""
    found = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", _read(root / "version"))
    return found[1] if found else None


def nvidia_devices(root: Path = NVIDIA) -> list[str]:
    """The names of NVIDIA's devices, in the order of their bus addresses."""
    names = []
    for file in sorted(root.glob("gpus/*/information")):
        model = re.search(r"^Model:\s*(.+)$", _read(file), re.MULTILINE)
        names.append(model[1].strip() if model else "unnamed device")
    return names


def accelerator(root: Path = NVIDIA) -> Device | None:
    """The first NVIDIA device with its driver; None where there is none."""
    devices, driver = nvidia_devices(root), nvidia_driver(root)
    return Device(devices[0], driver) if devices and driver else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
