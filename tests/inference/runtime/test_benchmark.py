"""The benchmark counts work rightly and ends in one line of JSON; how fast it was is not tested."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from inference.contract import Image
from inference.runtime.benchmark import measure_machine, print_report, run_benchmark
from inference.runtime.graph_work import count_work, read_profile
from inference.runtime.onnx_engine import OnnxEngine
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package


def node(operator: str, inputs: list[list[int]], output: list[int]) -> dict[str, object]:
    return {
        "cat": "Node",
        "name": operator,
        "args": {
            "op_name": operator,
            "input_type_shape": [{"float": shape} for shape in inputs],
            "output_type_shape": [{"float": output}],
        },
    }


@pytest.mark.parametrize(
    ("event", "flop"),
    [
        (node("MatMul", [[1, 10, 32], [32, 64]], [1, 10, 64]), 2 * 10 * 32 * 64),
        (node("MatMul", [[8, 10, 32], [8, 32, 20]], [8, 10, 20]), 2 * 8 * 10 * 32 * 20),
        (node("Gemm", [[32, 10], [64, 32], [64]], [10, 64]), 2 * 10 * 32 * 64),
        (node("Conv", [[1, 3, 256, 256], [96, 3, 4, 4]], [1, 96, 64, 64]), 2 * 96 * 64 * 64 * 3 * 16),
        (
            node("ConvTranspose", [[1, 256, 64, 64], [256, 64, 2, 2]], [1, 64, 128, 128]),
            2 * 256 * 64**2 * 256,
        ),
        (node("Softmax", [[8, 10, 20]], [8, 10, 20]), 0),
    ],
)
def test_the_work_of_an_operator(event: dict[str, object], flop: int) -> None:
    assert count_work([event]).flop == flop


def test_a_graph_with_uncounted_operators_says_so() -> None:
    work = count_work([node("MultiHeadAttention", [[1, 10, 32]], [1, 10, 32])])
    assert work.uncounted == {"MultiHeadAttention"}


def test_weights_are_read_and_activations_and_tables_are_not() -> None:
    events = [
        node("Gather", [[1000, 32], [1]], [1, 32]),
        node("MatMul", [[1, 32], [32, 8]], [1, 8]),
        node("MatMul", [[4, 10, 32], [4, 32, 8]], [4, 10, 8]),
        node("Conv", [[1, 3, 64, 64], [8, 3, 2, 2]], [1, 8, 32, 32]),
    ]
    assert count_work(events).parameter_bytes == 4 * (32 * 8 + 8 * 3 * 2 * 2)


def test_a_real_profile_gives_the_work_of_one_run(tmp_path: Path) -> None:
    model = tiny_package.image_encoder().SerializeToString()
    engine = OnnxEngine("encoder", model, threads=1, profile_prefix=tmp_path / "encoder")
    for _ in range(3):
        engine.run({"pixels": np.zeros((1, 3, 256, 256), np.float32)})
    work = read_profile(engine.end_profiling())
    assert work.runs == 3
    assert work.per_run() == (2 * 256 * 64 * 64 * 3, 256 * 3 * 4)


def test_every_stage_stands_beside_its_floor(
    pristine_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = InferenceSettings(model_repository=pristine_repository, threads=1)
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 1), np.uint8)
    bright = Image(np.repeat(noise, 3, axis=2))
    bright.pixels[:32] = 255
    measured = run_benchmark("tiny", settings, repeats=2, image=bright)
    print_report(measured)
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(json.dumps(asdict(measured)))
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert (report["model"], report["repeats"], report["has_region"]) == ("tiny", 2, True)
    assert {name: stage["runs"] for name, stage in stages.items() if stage["runs"]} == {
        "image_encoder": 1,
        "language_prefill": 1,
        "language_steps": stages["language_steps"]["runs"],
        "mask_decoder": 1,
    }
    assert stages["language_steps"]["runs"] > 20
    assert stages["image_encoder"]["gflop"] == pytest.approx(2 * 256 * 64 * 64 * 3 / 1e9)
    assert stages["total"]["floor_s"] >= stages["image_encoder"]["floor_s"] > 0
    assert any(line.startswith("image_encoder") for line in lines)
    assert report["paths"]["paths"] == 4
    assert report["paths"]["apart_s"] > report["paths"]["one_s"] > 0
    assert any("4 reasoning paths together cost" in line for line in lines)
    assert report["at_once"]["images"] == 4
    assert report["at_once"]["together_s"] > 0
    assert any(line.startswith("4 images side by side: ") for line in lines)


def test_the_machine_is_measured() -> None:
    machine = measure_machine(side=64, repeats=1)
    assert machine.gflops > 0
    assert machine.gb_per_s > 0
