"""Engines are chosen before a node starts: measured, refused where they differ, kept for one machine."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import prompts
from inference.contract import Prompt
from inference.errors import EngineRejected
from inference.runtime import open_predictor
from inference.runtime import prepare as workshop
from inference.runtime.binding import BoundRuns
from inference.runtime.engine import Array, Engine, Tensors, TensorSpec
from inference.runtime.engine_plan import CPU, CUDA, PLAIN, TENSORRT, EnginePlan, candidates
from inference.runtime.gate import compare
from inference.runtime.gate_report import GateReport
from inference.runtime.machine import Device, accelerator, nvidia_driver, processor
from inference.runtime.model_repository import open_package
from inference.runtime.onnx_engine import OnnxEngine, SessionExtras
from inference.runtime.predictors import Sim4SegPredictor
from inference.runtime.prepare import Ordeal, choose, prepare
from inference.runtime.prepared import EVIDENCE, GRAPHS, Trial, find_prepared
from inference.runtime.provider_options import cuda_options, provider_chain, tensorrt_options
from inference.runtime.serving import on_plan
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package
from tests.inference.runtime.test_predictors import bright_box, ramp, same

PROMPT = Prompt(tiny_package.QUERY)
IMAGES = (bright_box((64, 64), (8, 8, 30, 30))[0], ramp((50, 80), 0, 60))
ORDEAL = Ordeal(IMAGES, PROMPT, rounds=1)
Break = Callable[[dict[str, Array]], dict[str, Array]]


@pytest.fixture
def wanted(settings: InferenceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InferenceSettings:
    monkeypatch.setattr(workshop, "available_cores", lambda: 1)  # two candidates are enough
    return settings.model_copy(update={"engines": "prepared", "prepared_root": tmp_path / "engines"})


def take_saved(trials: Sequence[Trial]) -> EnginePlan:
    return next(trial.plan for trial in trials if trial.plan.is_saved)


def test_what_was_prepared_serves_and_says_the_same(
    wanted: InferenceSettings, predictor: Sim4SegPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop, "choose", take_saved)
    made = prepare("tiny", wanted, ORDEAL)
    evidence = json.loads((made.folder / EVIDENCE).read_text())
    assert [trial["refused"] for trial in evidence["trials"]] == [None] * len(evidence["trials"])
    assert evidence["identity"]["onnxruntime"] == ort.__version__
    assert all(trial["gate"]["embedding_cosine"] > 0.999 for trial in evidence["trials"])
    served = open_predictor("tiny", wanted)
    for image in IMAGES:
        assert same(served.predict(image, PROMPT), predictor.predict(image, PROMPT))


def test_nothing_serves_until_it_is_prepared(wanted: InferenceSettings) -> None:
    with pytest.raises(EngineRejected, match="dicom-node prepare"):
        open_predictor("tiny", wanted)
    with pytest.raises(EngineRejected, match="prepared_root is not set"):
        open_predictor("tiny", wanted.model_copy(update={"prepared_root": None}))


def test_what_was_prepared_for_something_else_does_not_serve(
    wanted: InferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("tiny", wanted, ORDEAL)
    package = open_package(wanted.model_repository, "tiny")
    assert find_prepared(package, wanted).evidence.model == "tiny"
    with pytest.raises(EngineRejected, match="holds no evidence"):
        find_prepared(package, wanted.model_copy(update={"threads": 2}))
    for name, other in (
        ("accelerator", lambda: Device("NVIDIA H200", "575.57.08")),
        ("processor", lambda: Device("another processor", "")),
        ("available_cores", lambda: 63),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"inference.runtime.prepared.{name}", other)
            patch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
            with pytest.raises(EngineRejected, match="holds no evidence"):
                find_prepared(package, wanted)
    monkeypatch.setattr(ort, "__version__", "1.99.0")
    with pytest.raises(EngineRejected, match="holds no evidence"):
        find_prepared(package, wanted)


def test_a_graph_that_was_changed_since_does_not_serve(
    wanted: InferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop, "choose", take_saved)
    made = prepare("tiny", wanted, ORDEAL)
    graph = made.folder / GRAPHS / "mask_decoder.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(EngineRejected, match="not the file that was prepared"):
        open_predictor("tiny", wanted)
    graph.unlink()
    with pytest.raises(EngineRejected, match="cannot be read"):
        open_predictor("tiny", wanted)
    (made.folder / EVIDENCE).write_text("{}")
    with pytest.raises(EngineRejected, match="cannot be understood"):
        open_predictor("tiny", wanted)


def test_a_repeat_replaces_what_was_there_and_leaves_no_draft(wanted: InferenceSettings) -> None:
    first, second = (prepare("tiny", wanted, ORDEAL) for _ in range(2))
    assert first.folder == second.folder
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


# --- the gate --------------------------------------------------------------------------------------


class Broken:
    """An engine whose outputs are changed on the way."""

    def __init__(self, engine: Engine, change: Break) -> None:
        self._engine, self._change = engine, change
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs

    def run(self, feeds: Tensors) -> dict[str, Array]:
        return self._change(self._engine.run(feeds))

    def warm_up(self, feeds: Tensors) -> None:
        self.run(feeds)


def add_noise(out: dict[str, Array]) -> dict[str, Array]:
    noise = np.random.default_rng(1).standard_normal(out["image_embedding"].shape, np.float32)
    return {"image_embedding": out["image_embedding"] + noise}


def move_mask(out: dict[str, Array]) -> dict[str, Array]:
    return {**out, "low_res_logits": np.roll(out["low_res_logits"], 3, axis=-1)}


def say_other_words(out: dict[str, Array]) -> dict[str, Array]:
    logits = np.zeros_like(out["logits"])
    logits[:, list(prompts.SPECIAL_TOKENS).index(prompts.EOS)] = 1
    return {**out, "logits": logits}


@pytest.mark.parametrize(
    ("graph", "change", "words"),
    [
        ("image_encoder.onnx", add_noise, "cosine"),
        ("mask_decoder.onnx", move_mask, "masks have IoU"),
        ("language_step.onnx", say_other_words, "other words"),
    ],
)
def test_an_engine_that_differs_is_refused(
    predictor: Sim4SegPredictor, settings: InferenceSettings, graph: str, change: Break, words: str
) -> None:
    def open_engine(name: str, model: bytes) -> Engine:
        engine = OnnxEngine(name, model, threads=1)
        return Broken(engine, change) if name == graph else engine

    package = open_package(settings.model_repository, "tiny")
    broken = Sim4SegPredictor(package, settings, open_engine=open_engine)
    images = [IMAGES[1 if graph == "language_step.onnx" else 0]]  # the second has no mask that could differ
    refusal = compare(broken, predictor, images, PROMPT).refusal
    assert refusal is not None
    assert words in refusal
    assert compare(predictor, predictor, IMAGES, PROMPT).refusal is None


def test_numbers_that_are_none_pass_no_gate() -> None:
    good = GateReport(images=1, embedding_cosine=None, mask_iou=1.0, is_text_same=True)
    assert good.refusal is None
    assert good.model_copy(update={"embedding_cosine": float("nan")}).refusal is not None
    assert good.model_copy(update={"mask_iou": float("nan")}).refusal is not None


TIMES = st.floats(0.001, 10)
TRIALS = st.lists(
    st.builds(
        Trial,
        plan=st.builds(EnginePlan, name=st.sampled_from("abc"), is_spinning=st.booleans()),
        open_s=TIMES,
        median_s=TIMES,
        plain_median_s=TIMES,
        refused=st.sampled_from([None, None, "it says other words"]),
    ),
    min_size=1,
    max_size=6,
)


@given(TRIALS)
def test_the_winner_is_admitted_and_none_is_clearly_quicker(trials: list[Trial]) -> None:
    admitted = [trial for trial in trials if trial.refused is None]
    if not admitted:
        with pytest.raises(EngineRejected, match="plain engine"):
            choose(trials)
        return
    shares = [
        trial.median_s / trial.plain_median_s for trial in admitted if trial.median_s and trial.plain_median_s
    ]
    winners = [share for share, trial in zip(shares, admitted, strict=True) if trial.plan == choose(trials)]
    assert min(winners) <= 1.03 * min(shares) + 1e-9


# --- execution providers, up to the call of the driver: nothing here was measured ------------------


def test_candidates_of_a_device_appear_with_its_provider() -> None:
    def providers(*available: str) -> list[str]:
        return [plan.provider for plan in candidates(available, cores=2)]

    assert set(providers(CPU)) == {CPU}
    assert CUDA in providers(CUDA, CPU)
    assert TENSORRT not in providers(CUDA, CPU)
    assert TENSORRT in providers(TENSORRT, CUDA, CPU)
    assert candidates([CPU], cores=1) == [PLAIN, EnginePlan(name="saved", is_saved=True)]


def test_a_plan_reaches_the_session_with_its_options(
    settings: InferenceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def session(model: bytes, *, sess_options: Any, providers: Any) -> None:
        asked.append((model, sess_options, providers))
        raise RuntimeError("no driver here")

    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", session)
    plan = EnginePlan(name="tensorrt", provider=TENSORRT)
    with pytest.raises(RuntimeError, match="no driver"):
        on_plan(settings, plan, lambda _: b"saved", tmp_path)("image_encoder.onnx", b"graph")
    ((model, _, providers),) = asked
    assert model == b"graph"
    assert [name for name, _ in providers] == [TENSORRT, CUDA, CPU]
    options = dict(providers)
    assert options[CUDA]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options[TENSORRT]["trt_engine_cache_path"] == str(tmp_path)
    assert options[TENSORRT]["trt_timing_cache_path"] == str(tmp_path)
    assert options[TENSORRT]["trt_ep_context_file_path"] == str(tmp_path)
    assert not any("fp16" in option for option in options[TENSORRT])


def test_options_of_devices() -> None:
    captured = EnginePlan(name="captured", provider=CUDA, is_graph_captured=True)
    assert cuda_options(captured)["enable_cuda_graph"] == "1"
    assert cuda_options(PLAIN)["enable_cuda_graph"] == "0"
    assert provider_chain(PLAIN, None) == [(CPU, {})]
    with pytest.raises(ValueError, match="folder"):
        tensorrt_options(PLAIN, None)


def test_tensorrt_is_never_built_while_the_node_runs(settings: InferenceSettings) -> None:
    with pytest.raises(EngineRejected, match="dicom-node prepare"):
        open_predictor("tiny", settings.model_copy(update={"execution_providers": (TENSORRT, CPU)}))


def test_bound_memory_gives_the_same_numbers_for_every_shape() -> None:
    model = tiny_package.image_encoder().SerializeToString()
    plain = OnnxEngine("a.onnx", model, threads=1)
    bound = OnnxEngine("a.onnx", model, threads=1, extras=SessionExtras(bound_to="cpu"))
    rng = np.random.default_rng(2)
    kept = []
    for _ in range(3):
        feeds = {"pixels": rng.random((1, 3, tiny_package.SIDE, tiny_package.SIDE), np.float32)}
        kept.append((plain.run(feeds)["image_embedding"], bound.run(feeds)["image_embedding"]))
    for expected, found in kept:  # a later run must not change what an earlier one gave
        assert np.array_equal(expected, found)


class FakeBinding:
    def __init__(self) -> None:
        self.bound: list[str] = []

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        self.bound.append(f"in {name}")

    def bind_ortvalue_output(self, name: str, value: object) -> None:
        self.bound.append(f"out {name}")

    def bind_output(self, name: str, device: str, number: int) -> None:
        self.bound.append(f"out {name} {device}")

    def copy_outputs_to_cpu(self) -> list[Array]:
        return [np.zeros(1, np.float32)]


class FakeSession:
    def __init__(self) -> None:
        self.runs: list[tuple[FakeBinding, str]] = []

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: ort.RunOptions) -> None:
        self.runs.append((binding, options.get_run_config_entry("gpu_graph_id")))


@pytest.mark.parametrize(
    ("length", "graphs", "output"), [(4, ["1", "2", "1"], "out y"), (None, ["-1", "-1", "-1"], "out y cpu")]
)
def test_a_graph_is_captured_for_each_shape_that_is_fixed(
    length: int | None, graphs: list[str], output: str
) -> None:
    session = FakeSession()
    outputs: Mapping[str, TensorSpec] = {"y": TensorSpec("float32", (1, length))}
    runs = BoundRuns(session, outputs, "cpu", is_graph_captured=True)
    for batch in (1, 2, 1):
        runs.run({"x": np.zeros((batch, 4), np.float32)})
    assert [number for _, number in session.runs] == graphs
    assert session.runs[0][0].bound == ["in x", output]


def test_driver_and_devices_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    assert accelerator(tmp_path) is None
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24 2026\n"
    (tmp_path / "version").write_text(text)
    assert accelerator(tmp_path) == Device("NVIDIA H200", "575.57.08")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1")
    assert nvidia_driver(tmp_path) == "580.1"
    assert processor(tmp_path / "none").name.startswith("unknown")
