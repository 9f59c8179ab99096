"""A web server on the app itself, and one on a real socket."""

import threading
import time

import anyio
import httpx
import pytest

from dicom_node.web.app import build_app
from dicom_node.web.processes import listening_socket, server_of
from storage.index import Origin, find_instance
from tests.dicom_node.dimse.instances import make_settings, part10
from tests.doors import make_receiver


@pytest.fixture
def sections():
    """What the configuration of a test's node says beside its folders; a test may change it."""
    return {}


@pytest.fixture
def app(tmp_path, database_url, database, files_root, sections):
    named = {"http": {"allowed_hosts": ["node"]}, **sections}
    built = build_app(make_settings(tmp_path, database_url, files_root, **named), database)
    yield built
    built.state.services.close()


class Client:
    """httpx on the app, without a socket."""

    def __init__(self, app):
        self._app = app

    def request(self, method, address, **options):
        async def send():
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.request(method, address, **options)

        return anyio.run(send)

    def get(self, address, accept=None, **options):
        headers = {"accept": accept} if accept else {}
        return self.request("GET", address, headers=headers | options.pop("headers", {}), **options)

    def post(self, address, **options):
        return self.request("POST", address, **options)


@pytest.fixture
def client(app):
    return Client(app)


@pytest.fixture
def server(app, free_port):
    """The app behind uvicorn, as a process of `dicom-node web` runs it; gives its port."""
    port = free_port()
    server = server_of(app)
    listening = listening_socket("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield port
    server.should_exit = True
    thread.join(20)
    listening.close()


@pytest.fixture
def keep(database, files_root):
    """A function that stores data sets by the door and returns the first's address."""
    receiver = make_receiver(database, files_root)

    def store(*datasets):
        for dataset in datasets:
            receiver.receive_part10([part10(dataset)], Origin("IMPORT", "test"))
        return address_of(datasets[0])

    return store


@pytest.fixture
def stored(database, files_root):
    def read(sop_instance_uid):
        with database.reading() as tx:
            row = find_instance(tx, str(sop_instance_uid))
        return None if row is None else (files_root / row.path).read_bytes()

    return read


def address_of(dataset):
    """Address of an instance under the DICOMweb root."""
    return (
        f"/dicom-web/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
        f"/instances/{dataset.SOPInstanceUID}"
    )
