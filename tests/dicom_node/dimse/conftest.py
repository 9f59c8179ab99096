"""A listener on a free port of this machine, and what it stored."""

import pytest
from sqlalchemy import select

from dicom_node.dimse.listener import start_listener
from storage.index import find_instance, index_instance
from storage.part10 import StoredFile, new_incoming
from storage.records import Origin, record_from_dataset
from storage.tables import Instance
from tests.dicom_node.dimse.instances import make_settings, part10
from tests.doors import make_receiver


@pytest.fixture
def receiver(database, files_root):
    return make_receiver(database, files_root)


@pytest.fixture
def listen(tmp_path, database, database_url, files_root, receiver, free_port):
    """A function that starts a listener; `dimse` and `tls` as in the configuration. Returns its port."""
    listeners = []

    def start(used_receiver=receiver, tls=None, **dimse):
        dimse = {"port": free_port(), **dimse}
        settings = make_settings(tmp_path, database_url, files_root, dimse=dimse, tls=tls or {})
        listeners.append(start_listener(settings, used_receiver, database))
        return listeners[-1].server_address[1]

    yield start
    for listener in listeners:
        listener.shutdown()


@pytest.fixture
def listen_and_keep(tmp_path, database, database_url, files_root, receiver, free_port):
    """A function that starts a listener which the test ends itself; returns its port, and the listener."""

    def start():
        settings = make_settings(tmp_path, database_url, files_root, dimse={"port": free_port()})
        listener = start_listener(settings, receiver, database)
        return listener.server_address[1], listener

    return start


@pytest.fixture
def stored(database, files_root):
    """A function that gives the stored file of a SOP Instance UID, or None."""

    def read(sop_instance_uid):
        with database.reading() as tx:
            row = find_instance(tx, str(sop_instance_uid))
        return None if row is None else (files_root / row.path).read_bytes()

    return read


@pytest.fixture
def rows(database):
    def all_rows():
        with database.reading() as tx:
            return tx.scalars(select(Instance)).all()

    return all_rows


class Node:
    """A listener with its settings, as a peer."""

    ae_title = "SIM4SEG"
    host = "127.0.0.1"
    tls = False

    def __init__(self, settings, receiver, database):
        self.settings = settings
        self._listener = start_listener(settings, receiver, database)
        self.port = self._listener.server_address[1]
        self.is_open = True

    def close(self):
        if self.is_open:
            self._listener.shutdown()
        self.is_open = False


@pytest.fixture
def node(tmp_path, database_url, files_root, database, free_port):
    """A function that starts a node; sections as in the configuration. Everybody may do everything."""
    nodes = []

    def start(**sections):
        everything = ["store", "query", "retrieve", "commit"]
        dimse = {"port": free_port(), **sections.pop("dimse", {"others_may": everything})}
        settings = make_settings(tmp_path, database_url, files_root, dimse=dimse, **sections)
        nodes.append(Node(settings, make_receiver(database, files_root), database))
        return nodes[-1]

    yield start
    for started in nodes:
        started.close()


@pytest.fixture
def keep(database, files_root):
    """A function that stores data sets as if they had been received; returns their rows' paths."""

    def store(*datasets):
        paths = []
        with database.transaction() as tx:
            for dataset in datasets:
                with new_incoming(files_root) as incoming:
                    incoming.write(part10(dataset))
                    stored_file = incoming.keep()
                index_instance(tx, record_from_dataset(dataset, stored_file, Origin("IMPORT", "test")))
                paths.append(files_root / stored_file.path)
        return paths

    return store


@pytest.fixture
def enter(database):
    """A function that enters data sets into the index, without files: enough for a query."""

    def index(*datasets):
        with database.transaction() as tx:
            for dataset in datasets:
                no_file = StoredFile("objects/none", str(dataset.SOPInstanceUID), 0)
                index_instance(tx, record_from_dataset(dataset, no_file, Origin("IMPORT", "test")))

    return index
