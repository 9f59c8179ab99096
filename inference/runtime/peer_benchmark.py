"""Our graphs beside PyTorch eager on the same weights, by turns: SAM's ViT-B and the packages' stages.

PyTorch and segment-anything come with the `train` extra and run in processes of their own
(`inference.export`); where they are missing the rows say so.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from inference.contract import Image, Prompt
from inference.runtime import predictor_class
from inference.runtime.engine import Array, Engine, Tensors
from inference.runtime.gate_report import MIN_COSINE, MIN_IOU
from inference.runtime.model_repository import ModelPackage
from inference.runtime.onnx_engine import OnnxEngine, available_cores
from inference.runtime.path_cost import QUERY
from inference.runtime.serving import on_onnx_runtime
from inference.runtime.timed_worker import PeerProcess, by_turns, save_arrays
from inference.settings import InferenceSettings

Turn = Callable[[], tuple[float, float]]
NEEDED = ("torch", "segment_anything", "onnx")
EAGER = "inference.export.eager_worker"
PEER_VIT = "sam_vit_b"
# graph -> what its row is called, and how many times as fast as eager it must be
ENCODERS: dict[str, tuple[str, float | None]] = {
    "encoder_chunked": ("encoder", 1.8),
    "encoder_fused": ("encoder, MultiHeadAttention form", None),
    "encoder_int8": ("encoder, int8 linear layers", 2.8),
}


@dataclass(frozen=True)
class PeerRow:
    """One of our programs beside one peer.

    `note` says why where nothing was measured, or what was refused.
    """

    name: str
    ours_s: float | None
    peer_s: float | None
    times: float | None  # the peer's median over ours
    spread: tuple[float, float] | None  # fastest and slowest of ours, seconds
    ours_peak_mb: float | None
    peer_peak_mb: float | None
    target: float | None  # of `times`; None where there is none
    error: float | None  # largest difference over the largest value of the peer's result
    note: str = ""


def why_no_peers() -> str | None:
    """What is missing for the peers to run here; None where nothing is."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f"not measured: {', '.join(missing)} not installed (the train extra)" if missing else None


def measure_sam(rounds: int, threads: int, folder: Path | None = None, vit: str = "vit_b") -> list[PeerRow]:
    """Encoder in three forms and decoder with 16 prompts against segment-anything, fp32, batch 1.

    `folder` keeps weights and graphs for the next time.
    """
    if missing := why_no_peers():
        return [_unmeasured(f"{PEER_VIT} {part}", missing) for part in ("encoder", "decoder, 16 prompts")]
    with tempfile.TemporaryDirectory(prefix="dicom-node-peers-") as scratch, ExitStack() as stack:
        models = folder or Path(scratch) / "models"
        if not (models / "decoder.onnx").exists():
            _write_peers(models, vit)
        peers = _sam_peers(stack, models, Path(scratch), threads or available_cores(), vit)
        return [*_encoder_rows(peers, rounds, models / "decoder.onnx"), _decoder_row(peers, rounds)]


def _write_peers(models: Path, vit: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "inference.export.peer_models", "--vit", vit]
    subprocess.run([*command, "--out", str(models)], check=True, stdout=subprocess.DEVNULL)


def _sam_peers(
    stack: ExitStack, models: Path, scratch: Path, threads: int, vit: str
) -> dict[str, PeerProcess]:
    """Eager's encoder and decoder in two processes, for each has its own memory; a process for each graph."""
    eager = (EAGER, "--sam", models, "--vit", vit, "--threads", str(threads))
    started = {
        name: PeerProcess(*eager, outputs=scratch / name) for name in ("eager_encoder", "eager_decoder")
    }
    for name in (*ENCODERS, "decoder"):
        ours = ("inference.runtime.timed_worker", "--model", models / f"{name}.onnx")
        feeds = ("--feeds", models / "feeds.npz", "--threads", str(threads))
        started[name] = PeerProcess(*ours, *feeds, outputs=scratch / name)
    return {name: stack.enter_context(peer) for name, peer in started.items()}


def _encoder_rows(peers: Mapping[str, PeerProcess], rounds: int, decoder: Path) -> list[PeerRow]:
    turns: dict[str, Turn] = {"eager": lambda: peers["eager_encoder"].run("encoder")}
    turns |= {name: peers[name].run for name in ENCODERS}
    seconds, peaks = by_turns(turns, rounds)
    want = peers["eager_encoder"].results("encoder")["image_embedding"]
    rows = []
    for name, (label, target) in ENCODERS.items():
        got = peers[name].results()["image_embedding"]
        note = gate_note(got, want, decoder) if name == "encoder_int8" else ""
        pair = Pair(seconds[name], seconds["eager"], peaks[name], peaks["eager"], error_of(got, want))
        rows.append(pair.row(f"{PEER_VIT} {label}", target, note))
    return rows


def _decoder_row(peers: Mapping[str, PeerProcess], rounds: int) -> PeerRow:
    turns: dict[str, Turn] = {
        "eager": lambda: peers["eager_decoder"].run("decoder"),
        "ours": peers["decoder"].run,
    }
    seconds, peaks = by_turns(turns, rounds)
    want = peers["eager_decoder"].results("decoder")["low_res_logits"]
    error = error_of(peers["decoder"].results()["low_res_logits"], want)
    pair = Pair(seconds["ours"], seconds["eager"], peaks["ours"], peaks["eager"], error)
    return pair.row(f"{PEER_VIT} mask decoder, 16 prompts in one call", 2.2)


def gate_note(got: Array, want: Array, decoder: Path) -> str:
    """Whether an embedding of 8-bit products passes the gate, in words: cosine and masks."""
    cosine = float(got.ravel() @ want.ravel() / (np.linalg.norm(got) * np.linalg.norm(want)))
    with np.load(decoder.parent / "feeds.npz") as stored:
        prompts = {name: stored[name] for name in ("seg_embedding", "region")}
    engine = OnnxEngine(decoder.name, decoder.read_bytes())
    ours, theirs = (
        engine.run({"image_embedding": each, **prompts})["low_res_logits"] > 0 for each in (got, want)
    )
    iou = float((ours & theirs).sum() / max(1, (ours | theirs).sum()))
    verdict = "passes" if cosine >= MIN_COSINE and iou >= MIN_IOU else "fails, not to be used"
    return (
        f"at random weights cosine {cosine:.5f} (gate {MIN_COSINE}), mask IoU {iou:.4f} (gate {MIN_IOU}): "
        f"{verdict}; no 8-bit graph is shipped"
    )


def measure_package(
    package: ModelPackage, settings: InferenceSettings, image: Image, rounds: int
) -> list[PeerRow]:
    """Each graph of a package on the inputs of one prediction, against the PyTorch module it came from."""
    name = package.manifest.model.name
    if missing := why_no_peers():
        return [_unmeasured(f"{name}, every stage", missing)]
    engines = _engines_with_feeds(package, settings, image)
    with tempfile.TemporaryDirectory(prefix="dicom-node-peers-") as scratch:
        feeds = Path(scratch) / "feeds"
        feeds.mkdir()
        for stem, (_, tensors) in engines.items():
            save_arrays(feeds / f"{stem}.npz", tensors)
        threads = str(settings.threads or available_cores())
        arguments = (EAGER, "--package", package.folder, "--feeds", feeds, "--threads", threads)
        try:
            with PeerProcess(*arguments, outputs=Path(scratch) / "eager") as eager:
                return [_stage_row(name, stem, engines, eager, rounds) for stem in engines]
        except RuntimeError as error:  # e.g. a package that another version exported
            return [_unmeasured(f"{name}, every stage", f"not measured: {error}")]


def _stage_row(
    name: str, stem: str, engines: Mapping[str, tuple[Engine, Tensors]], eager: PeerProcess, rounds: int
) -> PeerRow:
    engine, feeds = engines[stem]

    def ours() -> tuple[float, float]:
        started = time.perf_counter()
        engine.run(feeds)
        return time.perf_counter() - started, 0.0

    seconds, _ = by_turns({"eager": lambda: eager.run(stem), "ours": ours}, rounds)
    got, want = engine.run(feeds), eager.results(stem)
    first = next(iter(want))  # the output that everything else in the graph leads to
    pair = Pair(seconds["ours"], seconds["eager"], None, None, error_of(got[first], want[first]))
    return pair.row(f"{name} {stem}", None)


def _engines_with_feeds(
    package: ModelPackage, settings: InferenceSettings, image: Image
) -> dict[str, tuple[Engine, Tensors]]:
    """Graph -> its engine as it serves, and what it was last fed in one prediction."""
    recorded: dict[str, Recorder] = {}
    opened = on_onnx_runtime(settings)

    def open_engine(name: str, model: bytes) -> Engine:
        recorded[Path(name).stem] = Recorder(opened(name, model))
        return recorded[Path(name).stem]

    predictor_class(package)(package, settings, open_engine=open_engine).predict(image, Prompt(QUERY))
    return {stem: (recorder.engine, recorder.feeds) for stem, recorder in recorded.items()}


class Recorder:
    """An engine that remembers what it was fed last."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.feeds = engine, dict[str, Array]()
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """What the engine gives."""
        self.feeds = dict(feeds)
        return self.engine.run(feeds)

    def warm_up(self, feeds: Tensors) -> None:
        """Run once."""
        self.run(feeds)


@dataclass(frozen=True)
class Pair:
    """Seconds of all rounds and peaks of two programs, and how far their results are apart."""

    ours_s: list[float]
    peer_s: list[float]
    ours_peak_mb: float | None
    peer_peak_mb: float | None
    error: float

    def row(self, name: str, target: float | None, note: str = "") -> PeerRow:
        """The medians side by side."""
        ours, peer = statistics.median(self.ours_s), statistics.median(self.peer_s)
        spread = (min(self.ours_s), max(self.ours_s))
        peaks = (self.ours_peak_mb, self.peer_peak_mb)
        return PeerRow(name, ours, peer, peer / ours, spread, *peaks, target, self.error, note)


def error_of(got: Array, want: Array) -> float:
    """Largest difference over the largest value of `want`."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def _unmeasured(name: str, note: str) -> PeerRow:
    return PeerRow(name, None, None, None, None, None, None, None, None, note)


def peer_table(rows: Sequence[PeerRow]) -> str:
    """The table for people."""
    lines = ["ours on ONNX Runtime beside PyTorch eager: same weights, float32, batch 1, medians by turns"]
    lines.append(
        f"{'program':<52}{'ours':>11}{'eager':>11}{'times':>7}{'target':>8}{'MB':>7}{'of':>7}{'error':>10}"
    )
    for row in rows:
        lines.append(f"{row.name:<52}{_figures(row)}")
        if row.note and row.times:
            lines.append(f"  {row.note}")
    return "\n".join(lines)


def _figures(row: PeerRow) -> str:
    if row.ours_s is None or row.peer_s is None:
        return row.note
    target = "-" if row.target is None else f"{row.target:.1f}"
    peaks = "".join("      -" if mb is None else f"{mb:>7.0f}" for mb in (row.ours_peak_mb, row.peer_peak_mb))
    seconds = f"{1000 * row.ours_s:>8.1f} ms{1000 * row.peer_s:>8.1f} ms"
    return f"{seconds}{row.times:>7.2f}{target:>8}{peaks}{row.error:>10.1e}"
