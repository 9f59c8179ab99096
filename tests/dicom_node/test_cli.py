import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node import readiness
from dicom_node.__main__ import build_parser, main
from dicom_node.predictors import WorkerModels
from dicom_node.samples import breast_ultrasound
from dicom_node.settings import load_settings
from inference.errors import EngineRejected
from storage.database import Database
from tests.builders import make_ultrasound, write_datasets
from tests.inference.runtime.tiny_package import train_tokenizer, write_package

COMMANDS = {
    "serve", "scp", "web", "worker", "sweep", "migrate", "run", "make-dicom", "samples", "jobs", "fsck",
    "rebuild-index", "check", "models", "doctor", "bench", "echo", "demo", "prepare",
}  # fmt: skip
ML = ("onnxruntime", "tokenizers", "torch", "celery", "inference.runtime")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `dicom-node`: status, output, errors."""

    def run_command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


@pytest.fixture
def home(tmp_path: Path, run: Run) -> Path:
    """The home of a node with tables and nothing else."""
    assert run("migrate", "--home", tmp_path / "home")[0] == 0
    return tmp_path / "home"


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    write_package(repository / "sim4seg-s", train_tokenizer())
    return repository


@pytest.fixture
def models(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DICOM_NODE_INFERENCE__MODEL_REPOSITORY", str(tiny_models))
    return tiny_models


def test_every_command_is_there() -> None:
    help_text = build_parser().format_help()
    listed = {
        words[0] for line in help_text.splitlines() if line.startswith("    ") and (words := line.split())
    }
    assert listed >= COMMANDS
    assert "Not a medical device" in help_text.replace("\n", " ")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "Research use only" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    "command", ["serve", "scp", "web", "sweep", "migrate", "jobs", "fsck", "rebuild-index"]
)
def test_a_command_with_state_asks_for_its_home(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DICOM_NODE_HOME", raising=False)
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "command", ["serve", "scp", "web", "sweep", "migrate", "jobs", "fsck", "rebuild-index"]
)
def test_a_bad_configuration_is_one_sentence(command: str, tmp_path: Path, run: Run) -> None:
    config = tmp_path / "node.toml"
    config.write_text("[http]\nport = 'eighty'\n", encoding="utf-8")
    status, _, errors = run(command, "--home", tmp_path / "home", "--config", config)
    assert status == 2
    assert errors.startswith("dicom-node: http.port: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["scp", "web", "sweep", "jobs", "fsck"])
def test_a_home_without_tables_says_what_to_do(command: str, tmp_path: Path, run: Run) -> None:
    tmp_path.joinpath("home").mkdir()
    status, _, errors = run(command, "--home", tmp_path / "home")
    assert status == 2
    assert "dicom-node migrate" in errors


def test_an_empty_node(home: Path, run: Run) -> None:
    assert json.loads(run("jobs", "--home", home, "--json")[1]) == []
    report = json.loads(run("fsck", "--home", home, "--json")[1])
    kinds = ("missing", "digest_mismatch", "unreadable", "orphans", "stale_incoming")
    assert report == {
        "is_sound": True,
        "instances": 0,
        "counts": dict.fromkeys(kinds, 0),
        **{kind: [] for kind in kinds},
    }
    assert run("fsck", "--home", home)[0] == 0


def test_migrating_again_changes_nothing(home: Path, run: Run) -> None:
    assert run("migrate", "--home", home)[0] == 0
    Database(load_settings(home).storage.database_url).close()


def test_models_and_their_problem(
    models: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output, _ = run("models")
    assert (status, output.split()) == (0, ["sim4seg-s", "0.0.1", "ok"])
    copy = shutil.copytree(models, tmp_path / "copy")
    (copy / "sim4seg-s" / "tokenizer.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("DICOM_NODE_INFERENCE__MODEL_REPOSITORY", str(copy))
    status, output, _ = run("models")
    assert status == 1
    assert "tokenizer.json" in output


def test_no_model_at_all(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_INFERENCE__MODEL_REPOSITORY", str(tmp_path))
    assert run("models")[0] == 1


def test_run_on_files(models: Path, tmp_path: Path, run: Run) -> None:
    paths = write_datasets(tmp_path / "in", [make_ultrasound()])
    status, output, _ = run("run", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert status == 0
    (summary,) = json.loads(output)
    assert summary["outcome"] == "RESULT"
    assert Path(summary["files"]["seg"]).is_file()
    status, output, _ = run("run", paths[0], "--out", tmp_path / "out")
    assert "diagnosis   benign" in output
    assert output.rstrip().endswith("Not a medical device.")


def test_run_on_what_no_rule_covers(models: Path, tmp_path: Path, run: Run) -> None:
    dataset = make_ultrasound()
    dataset.BodyPartExamined = "THYROID"
    write_datasets(tmp_path / "in", [dataset])
    status, output, _ = run("run", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 1
    assert "no rule matched" in output


def test_run_with_a_model_that_is_not_there(models: Path, tmp_path: Path, run: Run) -> None:
    write_datasets(tmp_path / "in", [make_ultrasound()])
    status, _, errors = run(
        "run", tmp_path / "in", "--out", tmp_path / "out", "--model", "absent", "--query", "What?"
    )
    assert status == 1
    assert "absent" in errors


def test_make_dicom_from_a_png(tmp_path: Path, run: Run) -> None:
    Image.fromarray(np.full((40, 50), 99, np.uint8)).save(tmp_path / "a.png")
    words = ("--modality", "US", "--body-part", "BREAST", "--patient", "Test^One", "--out", tmp_path / "out")
    status, output, _ = run("make-dicom", tmp_path / "a.png", *words)
    assert status == 0
    assert Path(output.strip()).is_file()


def test_make_dicom_from_no_image(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.png").write_text("no image", encoding="utf-8")
    words = ("--modality", "US", "--body-part", "BREAST", "--out", tmp_path / "out")
    status, _, errors = run("make-dicom", tmp_path / "a.png", *words)
    assert status == 1
    assert "a.png" in errors


def test_the_samples(tmp_path: Path, run: Run) -> None:
    status, output, _ = run("samples", "--out", tmp_path)
    assert status == 0
    assert output.count("SYNTHETIC") == 3


def test_the_doctor(models: Path, home: Path, run: Run) -> None:
    status, output, _ = run("doctor", "--home", home)
    assert status == 0, output
    assert "PROBLEM" not in output


def test_a_node_is_not_ready_until_its_engines_are_prepared(
    models: Path, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOM_NODE_INFERENCE__ENGINES", "prepared")
    monkeypatch.setattr("dicom_node.prepare.SAMPLES", {"ultrasound": breast_ultrasound})  # one is enough,
    monkeypatch.setattr("inference.runtime.prepare.available_cores", lambda: 1)  # and two candidates
    settings = load_settings(home)
    worker_models = WorkerModels(settings)
    with pytest.raises(EngineRejected, match="dicom-node prepare"):
        worker_models.open("sim4seg-s")
    (problem,) = readiness.problems(home)
    assert "dicom-node prepare" in problem.sentence
    status, output, _ = run("doctor", "--home", home)
    assert (status, "PROBLEM  engines" in output) == (1, True)
    status, output, _ = run("prepare", "--home", home, "--rounds", "1", "--json")
    assert status == 0
    (evidence,) = json.loads(output)
    assert evidence["winner"]["name"] in {trial["plan"]["name"] for trial in evidence["trials"]}
    assert worker_models.open("sim4seg-s").name == "sim4seg-s"
    assert readiness.problems(home) == []
    worker_models.close()
    status, output, _ = run("doctor", "--home", home)
    assert (status, "ok       engines of sim4seg-s" in output) == (0, True)


def test_the_doctor_finds_what_is_wrong(
    tmp_path: Path, run: Run, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()}
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps([destination]))
    monkeypatch.setenv("DICOM_NODE_INFERENCE__MODEL_REPOSITORY", str(tmp_path / "none"))
    monkeypatch.setenv("DICOM_NODE_VIEWER__OHIF_ROOT", str(tmp_path))
    status, output, _ = run("doctor", "--home", tmp_path / "home")
    assert status == 1
    problems = [line for line in output.splitlines() if line.startswith("PROBLEM")]
    assert [line.split()[1].rstrip(":") for line in problems] == [
        "home",
        "model",
        "viewer",
        "destination",
    ]
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("peer", ["absent", "A@127.0.0.1:99999", "A@127.0.0.1"])
def test_echo_to_nobody(tmp_path: Path, run: Run, peer: str) -> None:
    status, _, errors = run("echo", peer, "--home", tmp_path)
    assert status == 2
    assert peer in errors


def test_bench_pipeline_prints_a_table_and_one_json_line(models: Path, run: Run) -> None:
    status, output, _ = run("bench", "pipeline", "--rounds", "1")
    assert status == 0
    last = json.loads(output.strip().splitlines()[-1])
    assert (last["bench"], last["rounds"]) == ("pipeline", 1)
    assert last["median_s"] > 0


@pytest.mark.parametrize(
    "modules",
    ["dicom_node.dimse.listener, dicom_node.services", "dicom_node.web.app", "dicom_node.completion"],
)
def test_what_receives_and_shows_loads_no_ml(modules: str, repository: Path) -> None:
    program = f"""
import sys
import dicom_node.__main__, dicom_node.supervisor, dicom_node.logs, storage.database, {modules}
print([name for name in {ML} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
