"""A volume that is not mounted is not taken for an empty one; a folder somebody tidied away comes back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest

from dicom_node.errors import StorageExhausted
from dicom_node.services import open_pressure, open_receiver
from dicom_node.settings import NodeSettings
from dicom_node.web.app import build_app
from storage.database import Database
from tests.builders import part10
from tests.dicom_node.dimse.instances import make_settings
from tests.ward import SCANNER, stack


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> NodeSettings:
    return make_settings(tmp_path, database_url, tmp_path / "files")


@pytest.fixture
def take(settings: NodeSettings, database: Database) -> Callable[[], str]:
    """A function that has a process, started anew, take an instance of its own."""

    def take() -> str:
        receiver = open_receiver(settings, database)
        receiver.prepare()
        try:
            received = receiver.receive_part10([part10(stack(1)[0])], SCANNER)
        finally:
            receiver.close()
        return str(received.result)

    return take


def readiness_of(settings: NodeSettings, database: Database) -> httpx.Response:
    app = build_app(settings, database)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
            return await client.get("/health/ready")

    try:
        return anyio.run(ask)
    finally:
        app.state.services.close()


def test_a_new_node_makes_its_folders(
    take: Callable[[], str], settings: NodeSettings, database: Database
) -> None:
    assert readiness_of(settings, database).status_code == 200
    take()
    assert readiness_of(settings, database).status_code == 200


def test_nothing_is_received_beside_a_volume_that_is_not_mounted(
    take: Callable[[], str], settings: NodeSettings, database: Database, tmp_path: Path
) -> None:
    take()
    root = settings.storage.files_root
    root.rename(tmp_path / "volume")
    root.mkdir()
    with pytest.raises(StorageExhausted):
        take()
    assert list(root.iterdir()) == [], "what is made below a mount point hides that nothing is mounted there"
    answer = readiness_of(settings, database)
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["files"]
    assert "mount the volume" in answer.json()["problems"][0]
    problem = open_pressure(settings, database).soft_problem()
    assert problem is not None
    assert "mount the volume" in problem
    root.rmdir()
    (tmp_path / "volume").rename(root)
    take()
    assert readiness_of(settings, database).status_code == 200


def test_the_folder_of_incoming_files_comes_back(settings: NodeSettings, database: Database) -> None:
    receiver = open_receiver(settings, database)
    for _ in range(2):
        receiver.receive_part10([part10(stack(1)[0])], SCANNER)
        shutil.rmtree(settings.storage.files_root / "incoming")
    receiver.close()
