"""Every real file that was taken in comes back by C-MOVE and by C-GET, with the bytes of its data set."""

import pytest
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class
from sqlalchemy import select

from dicom_node.dimse.listener import start_listener
from dicom_node.dimse.negotiation import KNOWN_SYNTAXES
from dicom_node.dimse.query_model import STUDY_ROOT
from dicom_node.errors import InstanceRefused
from storage.records import Origin
from storage.tables import Instance
from tests.dicom_node.dimse.instances import data_set_bytes, make_settings
from tests.dicom_node.dimse.queries import identifier
from tests.doors import make_receiver

pytestmark = [pytest.mark.shared, pytest.mark.timeout(600)]


class Taker:
    """Takes whatever is sent, as it comes."""

    def __init__(self, rows):
        self.received = {}
        self.handlers = [(evt.EVT_C_STORE, self._take)]
        self.classes = sorted({row.sop_class_uid for row in rows})

    def _take(self, event):
        uid = str(event.request.AffectedSOPInstanceUID)
        self.received[uid] = str(event.context.transfer_syntax), event.request.DataSet.getvalue()
        return 0x0000

    def listen(self, port):
        ae = AE("TAKER")
        for sop_class in self.classes:
            ae.add_supported_context(sop_class, sorted(KNOWN_SYNTAXES))
        return ae.start_server(("127.0.0.1", port), block=False, evt_handlers=self.handlers)


@pytest.fixture
def archive(tmp_path, database, database_url, files_root, free_port, real_files):
    """A node that holds every real file that it takes; its port, that of the taker, and its rows."""
    receiver = make_receiver(database, files_root)
    for path in real_files:
        try:
            receiver.receive_part10([path.read_bytes()], Origin("IMPORT", "test"))
        except InstanceRefused:
            continue
    with database.reading() as tx:
        rows = tx.scalars(select(Instance)).all()
    taker = {"name": "taker", "ae_title": "TAKER", "host": "127.0.0.1", "port": free_port()}
    dimse = {"port": free_port(), "others_may": ["retrieve"]}
    settings = make_settings(tmp_path, database_url, files_root, dimse=dimse, peers=[taker])
    listener = start_listener(settings, receiver, database)
    yield settings.dimse.port, taker["port"], rows
    listener.shutdown()


def outcome(answers):
    """The last response."""
    return [status for status, _ in answers][-1]


@pytest.mark.parametrize("is_move", [True, False], ids=["C-MOVE", "C-GET"])
def test_every_file_comes_back(archive, files_root, is_move):
    port, taker_port, rows = archive
    if is_move:  # the taker is pynetdicom's, which knows fewer classes than we do
        rows = [row for row in rows if uid_to_service_class(row.sop_class_uid) is StorageServiceClass]
    assert len(rows) > 150
    taker = Taker(rows)
    asked = identifier("IMAGE", SOPInstanceUID=[row.sop_instance_uid for row in rows])
    ae, roles = AE("TESTER"), []
    contexts = [build_context(STUDY_ROOT.move if is_move else STUDY_ROOT.get)]
    server = taker.listen(taker_port) if is_move else None
    if not is_move:
        pairs = sorted({(row.sop_class_uid, row.transfer_syntax_uid) for row in rows})
        contexts += [build_context(sop_class, syntax) for sop_class, syntax in pairs]
        roles = [build_role(sop_class, scp_role=True) for sop_class in taker.classes]
    association = ae.associate(
        "127.0.0.1", port, contexts=contexts, ae_title="SIM4SEG", ext_neg=roles, evt_handlers=taker.handlers
    )
    assert association.is_established
    try:
        if is_move:
            last = outcome(association.send_c_move(asked, "TAKER", STUDY_ROOT.move))
        else:
            last = outcome(association.send_c_get(asked, STUDY_ROOT.get))
    finally:
        association.release()
        if server is not None:
            server.shutdown()
    assert (last.Status, last.NumberOfCompletedSuboperations) == (0x0000, len(rows))
    for row in rows:
        stored = data_set_bytes((files_root / row.path).read_bytes())
        assert taker.received[row.sop_instance_uid] == (row.transfer_syntax_uid, stored), row.sop_class_uid
