"""What the flow tests share: a model repository that worker processes can open, and a receiving PACS."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicom_node.demo_pacs import DemoPacs, open_pacs
from storage.deliveries import DeliveryState
from storage.worklist import newest_deliveries
from tests.flow.nodes import (
    REPOSITORY,
    Node,
    command,
    destination,
    find_free_port,
    node_config,
    running_node,
    until,
)
from tests.flow.orthanc import AE_TITLE as ORTHANC_AE_TITLE
from tests.flow.orthanc import Orthanc, running_orthanc
from tests.inference.runtime.tiny_package import train_tokenizer, write_package

OHIF = REPOSITORY / ".cache" / "ohif"
TRAINED = REPOSITORY / "inference" / "packages"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with a package of a few kilobytes under the name that the rules ask for."""
    repository = tmp_path_factory.mktemp("models")
    write_package(repository / "sim4seg-s", train_tokenizer())
    return repository


@pytest.fixture(scope="session")
def models() -> Path:
    """The model repository with the trained package."""
    assert (TRAINED / "sim4seg-s" / "model.toml").is_file(), "the trained model package is not here"
    return TRAINED


@pytest.fixture
def pacs_port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def pacs(tmp_path: Path, pacs_port: int) -> Iterator[DemoPacs]:
    """A PACS that takes everything."""
    with open_pacs(tmp_path / "pacs", pacs_port) as opened:
        yield opened


@dataclass(frozen=True)
class RealStudy:
    """Real images wrapped as DICOM, and their known masks by SOP Instance UID."""

    name: str
    study_instance_uid: str
    paths: tuple[Path, ...]
    known_masks: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Hospital:
    """A node with the trained model and OHIF, Orthanc as its destination, and studies that went through."""

    node: Node
    orthanc: Orthanc
    studies: tuple[RealStudy, ...]


SENT = (
    # name, modality, body part, data set, images
    ("malignant", "US", "BREAST", "busbra", ("bus_0030-s",)),
    ("benign", "US", "BREAST", "busbra", ("bus_0026-s",)),
    ("polyp", "ES", "COLON", "kvasirseg", ("0",)),
    (
        "heart",
        "MR",
        "HEART",
        "sunnybrook_cmr",
        tuple(f"SC-HF-I-01-IM-0001-00{number}" for number in (48, 59, 68)),
    ),
)


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Hospital]:
    """Sends real images to the node with DCMTK's storescu, and waits for the results at Orthanc."""
    folder = tmp_path_factory.mktemp("hospital")
    studies = tuple(_real_study(folder, sent) for sent in SENT)
    with running_orthanc(folder / "orthanc") as orthanc:
        config = node_config(
            find_free_port,
            models,
            destinations=[destination(orthanc.dicom_port, ORTHANC_AE_TITLE)],
            viewer={"ohif_root": str(OHIF)},
            inference={"threads": 0},
        )
        with running_node(folder / "node", config) as node:
            for study in studies:
                _storescu(node, study.paths)
            jobs = node.wait_for_jobs(len(studies), 150)
            assert {job["state"] for job in jobs} == {"COMPLETED"}, jobs
            until(lambda: not _waiting_deliveries(node), "the results to be at Orthanc")
            yield Hospital(node, orthanc, studies)


def _real_study(folder: Path, sent: tuple[str, str, str, str, tuple[str, ...]]) -> RealStudy:
    name, modality, body_part, dataset, images = sent
    data = REPOSITORY.parent / "shared" / "data" / "train" / dataset
    sources = [str(data / "images" / f"{image}.jpg") for image in images]
    out = folder / "sent" / name
    command("make-dicom", *sources, "--modality", modality, "--body-part", body_part, "--out", str(out))
    paths = tuple(sorted(out.glob("*.dcm")))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    masks = {
        str(header.SOPInstanceUID): np.asarray(Image.open(data / "masks" / f"{image}.png")) > 127
        for header, image in zip(headers, images, strict=True)
    }
    return RealStudy(name, str(headers[0].StudyInstanceUID), paths, masks)


def _storescu(node: Node, paths: tuple[Path, ...]) -> None:
    peer = node.peer
    arguments = ["storescu", "-aec", peer.ae_title, peer.host, str(peer.port), *map(str, paths)]
    done = subprocess.run(
        arguments,
        env={**os.environ, "TCP_NODELAY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _waiting_deliveries(node: Node) -> int:
    with node.database.reading() as tx:
        return len(newest_deliveries(tx, state=DeliveryState.QUEUED))
