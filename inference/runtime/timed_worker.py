"""One program in a process of its own, run when told to: seconds and memory of it alone.

    python -m inference.runtime.timed_worker --model encoder.onnx --feeds feeds.npz --threads 2

Peers are measured this way, by turns on one machine, whatever library each needs. A line on standard input
names what to run (here `run`) and is answered by one JSON line; the end of input ends the process.
`PeerProcess` is the other side.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from inference.runtime.engine import Array
from inference.runtime.onnx_engine import session_options

Program = Callable[[], Mapping[str, Array]]
STATUS = Path("/proc/self/status")


def peak_mb() -> float:
    """The most memory this process has held since `forget_peak`, megabytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Let the peak begin at what is held now; loading a model is not what is measured."""
    Path("/proc/self/clear_refs").write_text("5")


def serve(programs: Mapping[str, Program], outputs: Path) -> None:
    """Say ready, then run the program that each line names; what it gave first is `outputs`/NAME.npz."""
    forget_peak()
    _say({"ready": True})
    for line in sys.stdin:
        name = line.strip()
        started = time.perf_counter()
        results = programs[name]()
        seconds = time.perf_counter() - started
        if not (outputs / f"{name}.npz").exists():
            save_arrays(outputs / f"{name}.npz", results)
        _say({"seconds": seconds, "peak_mb": peak_mb()})


def _say(words: Mapping[str, float]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name, to be read with `numpy.load`."""
    np.savez(path, allow_pickle=False, **arrays)


class PeerProcess:
    """A `serve`d program in a child process; a context manager."""

    def __init__(self, *arguments: str | Path, outputs: Path) -> None:
        """Start `python -m` with `arguments` and wait until it is ready.

        Raises
        ------
        RuntimeError
            If it ends before it is ready; the message is its last words.
        """
        outputs.mkdir(parents=True)
        command = [sys.executable, "-m", *map(str, arguments), "--outputs", str(outputs)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._outputs = outputs
        self._answer()

    def run(self, name: str = "run") -> tuple[float, float]:
        """One run of a program: its seconds and the process's peak so far, MB.

        Raises
        ------
        RuntimeError
        """
        assert self._child.stdin is not None  # noqa: S101 - for the type checker
        self._child.stdin.write(f"{name}\n")
        self._child.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["peak_mb"]

    def results(self, name: str = "run") -> dict[str, Array]:
        """What the first run of a program gave."""
        with np.load(self._outputs / f"{name}.npz") as stored:
            return dict(stored)

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None  # noqa: S101 - for the type checker
        line = self._child.stdout.readline()
        if not line:
            _, words = self._child.communicate()
            raise RuntimeError(words.strip().splitlines()[-1] if words.strip() else "it ended without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        """The running child."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child: its input ends."""
        self._child.communicate()


def by_turns(
    programs: Mapping[str, Callable[[], tuple[float, float]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every round and the peak MB of each program, after one run each to warm up.

    The order turns with every round, so that no program always follows the same other.
    """
    names, peaks = list(programs), dict.fromkeys(programs, 0.0)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            took, peaks[name] = programs[name]()
            seconds[name] += [took] if number else []
    return seconds, peaks


def session_program(model: Path, feeds: Path, threads: int) -> Program:
    """An ONNX file on ONNX Runtime's CPU provider, with the inputs in an .npz file."""
    options = session_options(threads)
    # Buffers kept for a later tensor of the same size hold three times the memory of a ViT's run, and save
    # no time.
    options.enable_mem_reuse = False
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(feeds) as stored:
        inputs = {each.name: stored[each.name] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]

    def program() -> dict[str, Array]:
        values = session.run(names, inputs)
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return program


def main() -> None:
    """Serve one ONNX file."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "feeds", "outputs"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    serve({"run": session_program(options.model, options.feeds, options.threads)}, options.outputs)


if __name__ == "__main__":
    main()
