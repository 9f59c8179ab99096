"""Bad input gives a clear error or a recorded outcome, and the node goes on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_node.dimse.calling import Caller
from dicom_node.dimse.scu import echo
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.flow.nodes import REPOSITORY, Node, find_free_port, node_config, running_node, until, write_config

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Node]:
    with running_node(
        tmp_path_factory.mktemp("bad") / "node", node_config(find_free_port, tiny_models)
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def goes_on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """After each of these tests, a good study still gets its result."""
    yield
    if "node" not in request.fixturenames:
        return
    running: Node = request.getfixturevalue("node")
    good = make_ultrasound(make_ellipse((60, 81), (30, 40), (14, 9)))
    good.PatientID = request.node.name[:64]
    good.StudyInstanceUID, good.SeriesInstanceUID = generate_uid(), generate_uid()
    good.SOPInstanceUID = good.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    assert running.send(write_datasets(tmp_path / "good", [good]))[0].status == 0x0000
    until(lambda: outcome_of(running, good), "the good study to be complete")
    running.wait_for_jobs()
    (job,) = [job for job in running.jobs() if job["study_instance_uid"] == good.StudyInstanceUID]
    assert job["state"] == "COMPLETED"
    assert running.get("/health/ready")[0] == 200


def outcome_of(node: Node, dataset: Dataset) -> str | None:
    study = node.study(str(dataset.StudyInstanceUID))
    return study.outcome if study else None


def stow(node: Node, body: bytes) -> tuple[int, bytes]:
    """POST one object as it is."""
    head = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
    request = urllib.request.Request(
        f"{node.url}/dicom-web/studies",
        head + body + b"\r\n--b--\r\n",
        {
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=b',
            "Accept": "application/dicom+json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_truncated_file(node: Node, tmp_path: Path) -> None:
    dataset = make_ultrasound()
    (path,) = write_datasets(tmp_path / "in", [dataset])
    path.write_bytes(path.read_bytes()[:-1000])
    (status,) = node.send([path])
    assert status.status == 0xC000
    assert stow(node, path.read_bytes())[0] in {400, 409}
    assert stow(node, b"no DICOM at all")[0] in {400, 409}
    assert node.study(str(dataset.StudyInstanceUID)) is None


def test_an_object_that_is_no_image(node: Node, tmp_path: Path) -> None:
    dataset = make_ultrasound()
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = BASIC_TEXT_SR
    dataset.Modality = "SR"
    dataset.StudyInstanceUID = generate_uid()
    assert node.send(write_datasets(tmp_path / "in", [dataset]))[0].status == 0x0000
    until(lambda: outcome_of(node, dataset), "the study to be complete")
    assert (outcome_of(node, dataset) or "").startswith("no rule matched")


def test_an_image_without_pixels_that_a_rule_covers(node: Node, tmp_path: Path) -> None:
    dataset = make_ultrasound()
    del dataset.PixelData
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    assert node.send(write_datasets(tmp_path / "in", [dataset]))[0].status == 0x0000
    until(lambda: outcome_of(node, dataset), "the study to be complete")
    node.wait_for_jobs()
    (job,) = [job for job in node.jobs() if job["study_instance_uid"] == dataset.StudyInstanceUID]
    assert (job["state"], job["outcome"]) == ("CANCELED", "NOT SUITABLE")
    assert job["reason"]


def test_an_image_that_no_rule_covers(node: Node, tmp_path: Path) -> None:
    dataset = make_ultrasound()
    dataset.BodyPartExamined = "THYROID"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    assert node.send(write_datasets(tmp_path / "in", [dataset]))[0].status == 0x0000
    until(lambda: outcome_of(node, dataset), "the study to be complete")
    assert "breast-ultrasound: body part is not BREAST" in (outcome_of(node, dataset) or "")


def test_a_job_whose_file_is_gone(node: Node, tmp_path: Path) -> None:
    dataset = make_ultrasound()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    before = set(node.settings.storage.files_root.rglob("*.dcm"))
    node.send(write_datasets(tmp_path / "in", [dataset]))
    (stored,) = set(node.settings.storage.files_root.rglob("*.dcm")) - before
    content = stored.read_bytes()
    stored.unlink()
    until(lambda: outcome_of(node, dataset), "the study to be complete")
    node.wait_for_jobs()
    (job,) = [job for job in node.jobs() if job["study_instance_uid"] == dataset.StudyInstanceUID]
    assert job["state"] == "CANCELED"
    assert job["reason"]
    assert "missing" in node.command("fsck", status=1)
    stored.write_bytes(content)
    assert "sound" in node.command("fsck")


def serve_fails(home: Path, config: Path) -> str:
    """Start a node that must not start; gives its only line."""
    arguments = [sys.executable, "-m", "dicom_node", "serve", "--home", str(home), "--config", str(config)]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_broken_configuration(tmp_path: Path) -> None:
    config = write_config(tmp_path / "node.toml", {"dimse": {"prot": 11112}})
    assert "dimse.prot: there is no setting of this name" in serve_fails(tmp_path / "home", config)
    assert not (tmp_path / "home").exists()


def test_a_taken_port(tmp_path: Path, tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(
            tmp_path / "node.toml", node_config(find_free_port, tiny_models, dimse={"port": port})
        )
        assert f"dimse.port: 127.0.0.1:{port} is taken" in serve_fails(tmp_path / "home", config)


def test_a_second_node_on_the_same_home(node: Node) -> None:
    assert "another node already runs" in serve_fails(node.home, node.config)


def test_a_tampered_model(tmp_path: Path, tiny_models: Path) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    graph = models / "sim4seg-s" / "mask_decoder.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with running_node(tmp_path / "node", node_config(find_free_port, models), is_ready=False) as tampered:
        status, body = tampered.get("/health/ready")
        assert status == 503
        assert b"mask_decoder.onnx" in body
        assert tampered.send(write_datasets(tmp_path / "in", [make_ultrasound()]))[0].status == 0x0000
        (job,) = tampered.wait_for_jobs(1)
        assert (job["state"], job["outcome"]) == ("CANCELED", "FAILED")
        assert "mask_decoder.onnx" in job["reason"]
        echo(tampered.peer, Caller("SCANNER"))
        worker = tampered.pid("worker-run")
        assert worker == tampered.pid("worker-run") != 0
        assert "mask_decoder.onnx" in tampered.command("models", status=1)
        # Repaired, the same worker runs the next job.
        graph.write_bytes((tiny_models / "sim4seg-s" / "mask_decoder.onnx").read_bytes())
        second = make_ultrasound(make_ellipse((60, 81), (30, 40), (14, 9)))
        tampered.send(write_datasets(tmp_path / "second", [second]))
        until(lambda: outcome_of(tampered, second), "the second study to be complete")
        tampered.wait_for_jobs(2)
        assert sorted(job["state"] for job in tampered.jobs()) == ["CANCELED", "COMPLETED"]
        assert tampered.get("/health/ready")[0] == 200
        assert tampered.pid("worker-run") == worker
        os.kill(worker, signal.SIGTERM)  # and one that ends by itself is started again
        until(lambda: tampered.pid("worker-run") not in {0, worker}, "another worker")
