"""A listener on a free port of this machine, and what it stored."""

import pytest
from sqlalchemy import select

from dicom_node.dimse.listener import start_listener
from dicom_node.receive import ReceiveLimits, Receiver
from storage.index import find_instance
from storage.tables import Instance
from tests.dicom_node.dimse.instances import make_settings


@pytest.fixture
def receiver(database, files_root):
    return Receiver(database, files_root, ReceiveLimits(min_free_bytes=0))


@pytest.fixture
def listen(tmp_path, database_url, files_root, receiver, free_port):
    """A function that starts a listener; `dimse` as in the configuration file. Returns its port."""
    listeners = []

    def start(used_receiver=receiver, **dimse):
        dimse = {"port": free_port(), **dimse}
        settings = make_settings(tmp_path, database_url, files_root, dimse=dimse)
        listeners.append(start_listener(settings, used_receiver))
        return listeners[-1].server_address[1]

    yield start
    for listener in listeners:
        listener.shutdown()


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
