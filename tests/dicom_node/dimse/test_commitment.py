"""Storage Commitment both ways: what is true of the instances, and reports that arrive late but arrive."""

import json
import threading
import time

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from sqlalchemy import select, update

from dicom_node.dimse.commitment import STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, write_request
from dicom_node.dimse.commitment_scu import commitment_outcome, request_commitment
from dicom_node.errors import AssociationRejected, PeerUnreachable
from storage.commitment_ledger import CommitmentState, Reference
from storage.tables import CommitmentReport, CommitmentRequest
from tests.dicom_node.dimse.instances import CT, ULTRASOUND, make_image

QUICK = {"delivery": {"first_retry_s": 0.2, "max_retry_s": 0.2}}


def until(condition, limit_s=30.0):
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


class Requestor:
    """A pynetdicom AE that asks for commitments and takes the reports, on either kind of association."""

    def __init__(self, port, statuses=()):
        self.port, self.reports, self._statuses = port, [], iter(statuses)
        self._ae = AE("MODALITY")
        self._ae.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        self._ae.add_requested_context(STORAGE_COMMITMENT)
        self._handlers = [(evt.EVT_N_EVENT_REPORT, self._take)]
        self._server = None

    @property
    def entry(self):
        return {"name": "modality", "ae_title": "MODALITY", "host": "127.0.0.1", "port": self.port}

    def _take(self, event):
        information = event.event_information
        committed = {item.ReferencedSOPInstanceUID for item in information.get("ReferencedSOPSequence", [])}
        failed = {
            item.ReferencedSOPInstanceUID: item.FailureReason
            for item in information.get("FailedSOPSequence", [])
        }
        status = next(self._statuses, 0x0000)
        if status == 0x0000:
            self.reports.append((event.event_type, information.TransactionUID, committed, failed))
        return status, None

    def listen(self):
        address = ("127.0.0.1", self.port)
        self._server = self._ae.start_server(address, block=False, evt_handlers=self._handlers)

    def close(self):
        if self._server is not None:
            self._server.shutdown()

    def ask(self, node, references, transaction_uid=None, stay_until=None, **changes):
        """The status of the N-ACTION."""
        transaction_uid = transaction_uid or str(generate_uid())
        information = write_request(transaction_uid, [Reference(*pair) for pair in references])
        association = self._ae.associate(
            "127.0.0.1", node.port, ae_title="SIM4SEG", evt_handlers=self._handlers
        )
        assert association.is_established
        try:
            action = changes.get("action", 1)
            instance = changes.get("instance", WELL_KNOWN_INSTANCE)
            status, _ = association.send_n_action(
                changes.get("information", information), action, STORAGE_COMMITMENT, instance
            )
            if stay_until is not None:
                until(stay_until)
        finally:
            association.release()
        return status


@pytest.fixture
def requestor(free_port):
    made = []

    def make(is_listening=True, **options):
        made.append(Requestor(free_port(), **options))
        if is_listening:
            made[-1].listen()
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_report_says_what_is_true_of_each_instance(node, keep, requestor):
    asker = requestor()
    good, corrupted, gone = make_image(), make_image(), make_image()
    _, corrupted_path, gone_path = keep(good, corrupted, gone)
    corrupted_path.chmod(0o600)
    corrupted_path.write_bytes(corrupted_path.read_bytes()[:-1] + b"\1")
    gone_path.unlink()
    never, transaction = str(generate_uid()), str(generate_uid())
    references = [
        (CT, good.SOPInstanceUID),
        (CT, corrupted.SOPInstanceUID),
        (CT, gone.SOPInstanceUID),
        (CT, never),
    ]
    assert asker.ask(node(peers=[asker.entry]), references, transaction).Status == 0x0000
    ((event_type, uid, committed, failed),) = until(lambda: asker.reports)
    assert (event_type, uid) == (2, transaction)
    assert committed == {good.SOPInstanceUID}
    assert failed == {corrupted.SOPInstanceUID: 0x0110, gone.SOPInstanceUID: 0x0112, never: 0x0112}


def test_another_class_is_a_conflict_and_all_right_is_event_one(node, keep, requestor):
    asker = requestor()
    image = make_image()
    keep(image)
    running = node(peers=[asker.entry])
    asker.ask(running, [(ULTRASOUND, image.SOPInstanceUID)])
    until(lambda: len(asker.reports) == 1)
    asker.ask(running, [(CT, image.SOPInstanceUID)])
    until(lambda: len(asker.reports) == 2)
    assert asker.reports[0][0::3] == (2, {image.SOPInstanceUID: 0x0119})
    assert asker.reports[1][0::2] == (1, {image.SOPInstanceUID})


def test_a_report_that_cannot_be_delivered_arrives_later_once(node, keep, requestor, database):
    asker = requestor(is_listening=False)
    image = make_image()
    keep(image)
    assert asker.ask(node(peers=[asker.entry], **QUICK), [(CT, image.SOPInstanceUID)]).Status == 0x0000

    def attempts():
        with database.reading() as tx:
            return tx.scalar(select(CommitmentReport.attempts))

    until(lambda: attempts() >= 1)
    assert asker.reports == []
    asker.listen()
    until(lambda: asker.reports, 60)

    def states():
        with database.reading() as tx:
            return tx.scalars(select(CommitmentReport.state)).all()

    until(lambda: states() == ["REPORTED"])
    assert len(asker.reports) == 1


def test_a_report_survives_the_node(node, keep, requestor):
    asker = requestor(is_listening=False)
    image = make_image()
    keep(image)
    first = node(peers=[asker.entry], **QUICK)
    asker.ask(first, [(CT, image.SOPInstanceUID)])
    first.close()
    asker.listen()
    node(peers=[asker.entry], **QUICK)
    until(lambda: asker.reports, 60)


def test_a_report_that_is_refused_is_sent_again(node, keep, requestor):
    asker = requestor(statuses=[0x0110])
    image = make_image()
    keep(image)
    asker.ask(node(peers=[asker.entry], **QUICK), [(CT, image.SOPInstanceUID)])
    assert until(lambda: asker.reports, 60)[0][0] == 1


def test_an_ae_that_is_no_peer_gets_the_report_on_its_own_association(node, keep, requestor):
    asker = requestor(is_listening=False)
    image = make_image()
    keep(image)
    asker.ask(node(), [(CT, image.SOPInstanceUID)], stay_until=lambda: asker.reports)
    assert asker.reports[0][0::2] == (1, {image.SOPInstanceUID})


def test_a_transaction_uid_in_use_for_others_fails_with_131(node, keep, requestor):
    asker = requestor(is_listening=False)
    first, second = make_image(), make_image()
    keep(first, second)
    running, transaction = node(peers=[asker.entry], **QUICK), str(generate_uid())
    assert asker.ask(running, [(CT, first.SOPInstanceUID)], transaction).Status == 0x0000
    assert asker.ask(running, [(CT, first.SOPInstanceUID)], transaction).Status == 0x0000
    assert asker.ask(running, [(CT, second.SOPInstanceUID)], transaction).Status == 0x0000
    asker.listen()
    until(lambda: len(asker.reports) == 2, 60)
    by_type = {report[0]: report for report in asker.reports}
    assert by_type[1][2] == {first.SOPInstanceUID}
    assert by_type[2][3] == {second.SOPInstanceUID: 0x0131}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"action": 2}, 0x0123),
        ({"instance": "1.2.3"}, 0x0112),
        ({"information": Dataset()}, 0x0115),
        ({"information": write_request("1.2.3", [])}, 0x0115),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(node, requestor, changes, status):
    asker = requestor()
    if "information" in changes:
        changes["information"].StudyInstanceUID = "1.2.3"  # pynetdicom sends no empty data set
    assert asker.ask(node(peers=[asker.entry]), [(CT, "1.2.3")], **changes).Status == status


def test_without_the_right_there_is_no_commitment(node, requestor):
    asker = requestor()
    answer = asker.ask(node(peers=[asker.entry | {"may": ["store"]}]), [(CT, "1.2.3")])
    assert answer.Status == 0x0124


class Archive:
    """A pynetdicom AE that commits; `failed` instances with their reasons."""

    def __init__(self, port, node, failed=(), status=0x0000, is_same_association=False):
        self.port, self.ae_title, self.host, self.tls = port, "ARCHIVE", "127.0.0.1", False
        self._node, self._failed, self._status = node, dict(failed), status
        self._is_same = is_same_association
        self.answers = []
        ae = AE("ARCHIVE")
        ae.add_supported_context(STORAGE_COMMITMENT)
        self.server = ae.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_ACTION, self._take)]
        )

    def _take(self, event):
        information = event.action_information
        arguments = (information, event.assoc if self._is_same else None)
        if self._status == 0x0000:
            threading.Timer(0.1, self.report, arguments).start()
        return self._status, None

    def report(self, information, association=None, ae_title="ARCHIVE"):
        answer = Dataset()
        answer.TransactionUID = information.TransactionUID
        items = {item.ReferencedSOPInstanceUID: item for item in information.ReferencedSOPSequence}
        failed = [item for uid, item in items.items() if uid in self._failed]
        for item in failed:
            item.FailureReason = self._failed[item.ReferencedSOPInstanceUID]
        answer.FailedSOPSequence = failed
        answer.ReferencedSOPSequence = [item for uid, item in items.items() if uid not in self._failed]
        kind = 2 if failed else 1
        if association is not None:
            status, _ = association.send_n_event_report(answer, kind, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE)
            self.answers.append(status.Status)
            return
        ae = AE(ae_title)
        ae.add_requested_context(STORAGE_COMMITMENT)
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        association = ae.associate("127.0.0.1", self._node.port, ae_title="SIM4SEG", ext_neg=[role])
        status, _ = association.send_n_event_report(answer, kind, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE)
        association.release()
        self.answers.append(status.Status)


@pytest.fixture
def archive(free_port):
    archives = []

    def start(node, **options):
        archives.append(Archive(free_port(), node, **options))
        return archives[-1]

    yield start
    for started in archives:
        started.server.shutdown()


REFERENCES = [Reference(CT, "1.2.3.1"), Reference(CT, "1.2.3.2")]


def outcome(database, uid):
    with database.reading() as tx:
        return commitment_outcome(tx, uid)


@pytest.mark.parametrize("is_same_association", [False, True])
def test_we_ask_and_take_the_answer_in(node, archive, database, is_same_association):
    running = node()
    peer = archive(running, is_same_association=is_same_association)
    uid = request_commitment(peer, REFERENCES, settings=running.settings, database=database)
    until(lambda: outcome(database, uid).state is CommitmentState.COMMITTED)
    assert until(lambda: peer.answers) == [0x0000]


def test_what_the_peer_has_not_is_told(node, archive, database):
    running = node()
    peer = archive(running, failed={"1.2.3.2": 0x0112})
    uid = request_commitment(peer, REFERENCES, settings=running.settings, database=database)
    until(lambda: outcome(database, uid).state is CommitmentState.FAILED)
    assert outcome(database, uid).failed == {"1.2.3.2": 0x0112}


def test_an_instance_that_the_report_leaves_out_is_not_committed(node, archive, database):
    running = node()
    peer = archive(running, status=0x0000)
    peer._status = 0x0000
    uid = request_commitment(peer, REFERENCES[:1], settings=running.settings, database=database)
    until(lambda: outcome(database, uid).state is CommitmentState.COMMITTED)
    with database.transaction() as tx:
        both = json.dumps([[reference.sop_class_uid, reference.sop_instance_uid] for reference in REFERENCES])
        tx.execute(update(CommitmentRequest).values(references=both, state="PENDING"))
    peer.report(write_request(uid, REFERENCES[:1]))
    assert outcome(database, uid).failed == {"1.2.3.2": 0x0110}


def test_an_answer_from_somebody_else_changes_nothing(node, archive, database):
    running = node()
    peer = archive(running, status=0x0000)
    peer.report(write_request("1.2.3.4", REFERENCES))
    assert peer.answers == [0x0115]
    uid = request_commitment(peer, REFERENCES, settings=running.settings, database=database)
    until(lambda: len(peer.answers) == 2)
    with database.transaction() as tx:
        tx.execute(update(CommitmentRequest).values(state="PENDING"))
    peer.report(write_request(uid, REFERENCES), ae_title="FORGER")
    assert peer.answers[-1] == 0x0115
    assert outcome(database, uid).state is CommitmentState.PENDING


def test_a_peer_that_refuses_or_is_gone_is_told(node, archive, database, free_port):
    running = node()
    peer = archive(running, status=0x0110)
    with pytest.raises(AssociationRejected, match="0x0110"):
        request_commitment(peer, REFERENCES, settings=running.settings, database=database)
    with database.reading() as tx:
        assert tx.scalars(select(CommitmentRequest)).all() == []
    peer.port = free_port()
    with pytest.raises(PeerUnreachable):
        request_commitment(peer, REFERENCES, settings=running.settings, database=database)
