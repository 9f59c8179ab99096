"""One node for all files: what was received before makes no difference to what comes."""

import csv
import os
from pathlib import Path

import anyio
import httpx
import pytest

from dicom_node.web.app import build_app
from storage.database import Database, upgrade
from tests.dicom_node.dimse.instances import make_settings

MANIFEST = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom" / "manifest.csv"
ROUNDS = int(os.environ.get("TOLERANCE_ROUNDS", "1"))  # of every kind of damage, for every file


def pytest_generate_tests(metafunc):
    if "real_file" in metafunc.fixturenames:
        names = []
        if MANIFEST.is_file():
            with MANIFEST.open(encoding="utf-8", newline="") as rows:
                names = [row["file"] for row in csv.DictReader(rows)]
        metafunc.parametrize(
            "real_file", names or ["none"], indirect=True, ids=lambda name: name.removeprefix("dicom/")
        )


@pytest.fixture
def real_file(request, shared_data):
    return shared_data / "data" / request.param


@pytest.fixture(scope="session")
def real_files(shared_data):
    """Every file of the manifest, by its path."""
    with (shared_data / "data" / "dicom" / "manifest.csv").open(encoding="utf-8", newline="") as rows:
        return [shared_data / "data" / row["file"] for row in csv.DictReader(rows)]


class Node:
    """The web server of a node without a socket, and its database."""

    def __init__(self, home):
        url = f"sqlite:///{home}/node.sqlite"
        self.files_root = home / "files"
        self.files_root.mkdir()
        upgrade(url)
        self.database = Database(url)
        self.settings = make_settings(home, url, self.files_root)
        self.app = build_app(self.settings, self.database)

    def send(self, method, address, **options):
        async def once():
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://node", timeout=None
            ) as client:
                return await client.request(method, address, **options)

        return anyio.run(once)

    def get(self, address, accept):
        return self.send("GET", address, headers={"accept": accept})

    def close(self):
        self.app.state.services.close()
        self.database.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    opened = Node(tmp_path_factory.mktemp("node"))
    yield opened
    opened.close()
