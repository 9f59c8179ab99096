"""Which ONNX Runtime is here, what it can use, and why not; two builds in one environment are refused."""

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from inference.errors import EngineRejected
from inference.runtime import open_predictor
from inference.runtime import serving as serving_module
from inference.runtime.engine_plan import CPU, CUDA, TENSORRT
from inference.runtime.installation import Installation, builds_of, look, require_one_build
from inference.settings import InferenceSettings

WHOLE = Installation(
    builds={"onnxruntime-gpu": "1.31.1"},
    offered=(TENSORRT, CUDA, CPU),
    driver="575.57.08",
    devices=("NVIDIA H200",),
    cuda="13.5.37",
    tensorrt="11.4.0.106",
)


@pytest.mark.parametrize(
    ("lacking", "provider", "words"),
    [
        (WHOLE, TENSORRT, None),
        (WHOLE, CUDA, None),
        (replace(WHOLE, tensorrt=None), CUDA, None),
        (replace(WHOLE, driver=None, devices=(), cuda=None), CPU, None),
        (replace(WHOLE, tensorrt=None), TENSORRT, "extra `tensorrt`"),
        (replace(WHOLE, cuda=None), CUDA, "extra `gpu`"),
        (replace(WHOLE, devices=()), CUDA, "sees no device"),
        (replace(WHOLE, driver=None), CUDA, "driver is not loaded"),
        (
            replace(WHOLE, offered=(CPU,), builds={"onnxruntime": "1.32.0"}),
            CUDA,
            "onnxruntime 1.32.0 does not",
        ),
        (replace(WHOLE, offered=(), builds={}), CPU, "no ONNX Runtime"),
    ],
)
def test_what_is_missing_is_named(lacking: Installation, provider: str, words: str | None) -> None:
    reason = lacking.why_not(provider)
    assert reason is None if words is None else reason is not None and words in reason


def test_this_machine_is_seen_as_it_is() -> None:
    found = look()
    assert list(found.builds.values()) == [ort.__version__]
    assert found.offered == tuple(ort.get_available_providers())
    assert found.why_not(CPU) is None


def test_two_builds_are_refused(settings: InferenceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    both = builds_of({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}.get)
    with pytest.raises(EngineRejected, match="one of the extras"):
        require_one_build(list(both))
    require_one_build(["onnxruntime"])
    monkeypatch.setattr(serving_module, "require_one_build", lambda: require_one_build(list(both)))
    with pytest.raises(EngineRejected, match="overwritten"):
        open_predictor("tiny", settings)


def test_no_lock_file_brings_both_builds() -> None:
    for lock in (Path(__file__).parents[3] / "locks").glob("*.txt"):
        lines = [line for line in lock.read_text().splitlines() if line.startswith("onnxruntime")]
        assert len(lines) <= 1, lock.name
