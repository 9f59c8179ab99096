"""An engine is refused unless it is the one the predictor needs, and says where it runs."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from inference.errors import EngineRejected, OutputInvalid
from inference.runtime.engine import FREE, GraphSpec, TensorSpec, require_graph, require_output
from inference.runtime.onnx_engine import OnnxEngine, available_cores, session_options
from tests.inference.runtime import tiny_package

PIXELS = TensorSpec("float32", (1, 3, 256, 256))
EMBEDDING = TensorSpec("float32", (1, 256, 64, 64))
CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def encoder() -> OnnxEngine:
    return OnnxEngine("image_encoder.onnx", tiny_package.image_encoder().SerializeToString(), threads=1)


def test_an_engine_tells_its_inputs_and_outputs(encoder: OnnxEngine) -> None:
    assert encoder.inputs == {"pixels": PIXELS}
    assert encoder.outputs == {"image_embedding": EMBEDDING}
    assert encoder.execution_providers == (CPU,)
    require_graph(encoder, GraphSpec({"pixels": PIXELS}, {"image_embedding": EMBEDDING}))


def test_an_engine_runs(encoder: OnnxEngine) -> None:
    pixels = np.full((1, 3, 256, 256), 2.0, np.float32)
    embedding = encoder.run({"pixels": pixels})["image_embedding"]
    assert embedding.shape == (1, 256, 64, 64)
    assert np.allclose(embedding[0, 0], 2.0)
    encoder.warm_up({"pixels": pixels})


@pytest.mark.parametrize(
    ("inputs", "outputs", "complaint"),
    [
        ({"image": PIXELS}, {}, "has no input 'image'; it has pixels"),
        ({"pixels": PIXELS}, {"embedding": EMBEDDING}, "has no output 'embedding'"),
        ({"pixels": TensorSpec("float32", (1, 3, 512, 512))}, {}, r"is float32 \(1, 3, 256, 256\), needed"),
        ({"pixels": TensorSpec("float16", PIXELS.shape)}, {}, "needed is float16"),
        ({"pixels": TensorSpec("float32", (3, 256, 256))}, {}, "needed is"),
        ({"pixels": TensorSpec("float32", (FREE, 3, 256, 256))}, {}, r"needed is float32 \(\?, 3"),
        ({}, {}, "asks for inputs nobody gives: pixels"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(
    encoder: OnnxEngine, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], complaint: str
) -> None:
    with pytest.raises(EngineRejected, match=complaint):
        require_graph(encoder, GraphSpec(inputs, outputs))


def test_a_free_axis_meets_any_need() -> None:
    free = TensorSpec("float32", (1, None))
    assert TensorSpec("float32", (1, FREE)).is_met_by(free)
    assert TensorSpec("float32", (1, 7)).is_met_by(free)
    assert TensorSpec(None, (1, None)).is_met_by(free)
    assert not TensorSpec("float32", (1, FREE)).is_met_by(TensorSpec("float32", (1, 7)))


@pytest.mark.parametrize("model", [b"", b"not a graph", b"\x08\x09" * 50])
def test_bytes_that_are_no_graph_are_refused(model: bytes) -> None:
    with pytest.raises(EngineRejected, match=r"cannot load odd\.onnx"):
        OnnxEngine("odd.onnx", model)


def test_a_provider_that_is_not_there_is_refused_with_what_is() -> None:
    model = tiny_package.image_encoder().SerializeToString()
    with pytest.raises(
        EngineRejected, match=r"asked for NoSuchExecutionProvider.*offers .*CPUExecutionProvider"
    ):
        OnnxEngine("image_encoder.onnx", model, execution_providers=["NoSuchExecutionProvider"])


def test_falling_back_to_the_cpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_package.image_encoder().SerializeToString()
    with caplog.at_level(logging.WARNING):
        engine = OnnxEngine("a.onnx", model, execution_providers=["NoSuchExecutionProvider", CPU], threads=1)
    assert engine.execution_providers == (CPU,)
    assert "asked for NoSuchExecutionProvider, CPUExecutionProvider, got CPUExecutionProvider" in caplog.text


def test_a_wrong_shape_is_told_as_a_sentence(encoder: OnnxEngine) -> None:
    with pytest.raises(OutputInvalid, match=r"image_encoder\.onnx could not be run"):
        encoder.run({"pixels": np.zeros((1, 3, 128, 128), np.float32)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    value = np.zeros((2, 2), np.float32)
    value[1, 0] = bad
    with pytest.raises(OutputInvalid, match="not finite"):
        require_output("a.onnx", "logits", value, (2, 2))


def test_a_shape_that_was_not_promised_is_refused() -> None:
    with pytest.raises(OutputInvalid, match=r"shape \(2,\), not \(3,\)"):
        require_output("a.onnx", "logits", np.zeros(2, np.float32), (3,))


def test_the_machine_is_shared_politely() -> None:
    options = session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_threads_follow_the_quota_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        write(tmp_path / name, text)
    assert available_cores(tmp_path) == expected
