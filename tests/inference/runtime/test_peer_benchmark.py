"""Peers run in processes of their own, by turns, and rows say what was not measured; no speed is tested."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from inference.contract import Image
from inference.export.eager_worker import sam_programs
from inference.export.originals import TINY_VIT
from inference.export.peer_models import MLP_WIDTHS, write_peers
from inference.runtime import peer_benchmark
from inference.runtime.model_repository import open_package
from inference.runtime.onnx_engine import OnnxEngine
from inference.runtime.peer_benchmark import measure_package, measure_sam, peer_table
from inference.runtime.timed_worker import PeerProcess, by_turns, session_program
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package


def test_every_program_has_its_turn_first() -> None:
    order: list[str] = []

    def program(name: str) -> tuple[float, float]:
        order.append(name)
        return float(len(order)), 100.0 + len(order)

    seconds, peaks = by_turns({name: lambda name=name: program(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert seconds == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}  # the first of each warmed up
    assert peaks == {"a": 110, "b": 111, "c": 112}


def test_a_graph_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(tiny_package.image_encoder().SerializeToString())
    pixels = np.ones((1, 3, 256, 256), np.float32)
    np.savez(tmp_path / "feeds.npz", pixels=pixels)
    arguments = ("--model", tmp_path / "encoder.onnx", "--feeds", tmp_path / "feeds.npz", "--threads", "1")
    with PeerProcess("inference.runtime.timed_worker", *arguments, outputs=tmp_path / "out") as peer:
        seconds, peak_mb = peer.run()
        (embedding,) = peer.results().values()
    assert seconds > 0
    assert peak_mb > 10
    assert embedding.shape == (1, 256, 64, 64)


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz")
    arguments = ("--model", tmp_path / "none.onnx", "--feeds", tmp_path / "feeds.npz")
    with pytest.raises(RuntimeError, match=r"none\.onnx"):
        PeerProcess("inference.runtime.timed_worker", *arguments, outputs=tmp_path / "out")


class Here:
    """In place of a process: the same programs in this one, which has PyTorch loaded already."""

    def __init__(self, module: str, *arguments: str | Path, outputs: Path) -> None:
        named = dict(zip(arguments[::2], arguments[1::2], strict=True))
        if module == peer_benchmark.EAGER:
            self.programs = sam_programs(Path(named["--sam"]), str(named["--vit"]))
        else:
            self.programs = {"run": session_program(Path(named["--model"]), Path(named["--feeds"]), 1)}

    def run(self, name: str = "run") -> tuple[float, float]:
        started = time.perf_counter()
        self.given = self.programs[name]()
        return time.perf_counter() - started, 1.0

    def results(self, name: str = "run") -> dict[str, np.ndarray]:
        return self.given

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_sam_beside_segment_anything_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_peers(TINY_VIT, MLP_WIDTHS["tiny"], tmp_path)
    monkeypatch.setattr(peer_benchmark, "PeerProcess", Here)
    rows = measure_sam(1, 1, tmp_path, vit="tiny")
    errors = {row.name: row.error for row in rows}
    assert len(errors) == 4
    assert all(error < 1e-4 for name, error in errors.items() if "int8" not in name)
    assert errors["sam_vit_b encoder, int8 linear layers"] > 1e-4
    (int8,) = (row for row in rows if "int8" in row.name)
    assert "gate 0.999" in int8.note
    assert len(peer_table(rows).splitlines()) == 2 + 4 + 1
    assert json.loads(json.dumps([asdict(row) for row in rows]))[0]["times"] > 0


class SameAgain:
    """In place of the PyTorch process: what the package's own engines give on the inputs handed over."""

    def __init__(self, *arguments: str | Path, outputs: Path) -> None:
        named = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        self.package, self.feeds = Path(named["--package"]), Path(named["--feeds"])

    def run(self, name: str) -> tuple[float, float]:
        return 2.0, 0.0

    def results(self, name: str) -> dict[str, np.ndarray]:
        engine = OnnxEngine(name, (self.package / f"{name}.onnx").read_bytes(), threads=1)
        with np.load(self.feeds / f"{name}.npz") as stored:
            return engine.run(dict(stored))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_every_stage_of_a_package_has_its_row(
    pristine_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_benchmark, "PeerProcess", SameAgain)
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 1), np.uint8)
    bright = Image(np.repeat(noise, 3, axis=2))
    bright.pixels[:32] = 255
    package = open_package(pristine_repository, "tiny")
    rows = measure_package(package, InferenceSettings(threads=1), bright, 2)
    stages = ("image_encoder", "language_prefill", "language_step", "mask_decoder")
    assert sorted(row.name for row in rows) == [f"tiny {stage}" for stage in stages]
    assert [row.error for row in rows] == [0] * 4
    assert all(row.peer_s == 2 and row.times > 1 for row in rows)


def test_without_pytorch_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_benchmark, "find_spec", lambda name: None if name == "torch" else object())
    rows = measure_sam(1, 1)
    assert [row.times for row in rows] == [None, None]
    assert "not measured: torch not installed (the train extra)" in peer_table(rows)
