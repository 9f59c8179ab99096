"""The GPU table, in a process that has PyTorch: the node itself never loads it."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

NEEDED = ("torch", "transformers", "segment_anything", "onnx")


def bench_gpu(arguments: Sequence[str]) -> int:
    """Run the GPU benchmark with its own arguments; its status, or 2 where what it needs is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        words = (
            f"bench gpu needs {', '.join(missing)}: install the train extra beside a CUDA build of PyTorch."
        )
        sys.stderr.write(words + "\n")
        return 2
    command = [sys.executable, "-W", "ignore", "-m", "inference.export.gpu_bench", *arguments]
    return subprocess.run(command, check=False).returncode
