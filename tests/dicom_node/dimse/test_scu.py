"""Our sender against a peer that is not ours: DCMTK's storescp, and pynetdicom where a fault must be made."""

import os
import socket
import subprocess
import time

import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from pynetdicom import AE, AllStoragePresentationContexts, evt

from dicom_node.dimse.calling import Caller
from dicom_node.dimse.scu import echo, send_instances
from dicom_node.errors import AssociationRejected, PeerUnreachable
from tests.dicom_node.dimse.instances import (
    BASIC_TEXT_SR,
    CT,
    DeflatedExplicitVRLittleEndian,
    data_set_bytes,
    make_data_set,
    make_image,
    save,
)

# pynetdicom leaves the socket of a refused connection to the garbage collector.
refused_connection = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


US = Caller("SIM4SEG")


class Peer:
    ae_title = "PACS"
    host = "127.0.0.1"
    tls = False

    def __init__(self, port):
        self.port = port


@pytest.fixture
def peer(free_port):
    """A function that starts a pynetdicom AE answering with the given statuses in turn."""
    servers = []

    def start(*statuses, contexts=(CT,), before=None, **options):
        port, answers = free_port(), iter(statuses)
        ae = AE("PACS")
        for sop_class in contexts:
            ae.add_supported_context(sop_class, [ExplicitVRLittleEndian, RLELossless])
        for name, value in options.items():
            setattr(ae, name, value)

        def answer(event):
            if before is not None:
                before(event)
            return next(answers, 0x0000)

        handlers = [(evt.EVT_C_STORE, answer)]
        servers.append(ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers))
        return Peer(port)

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture
def storescp(free_port, tmp_path):
    """DCMTK's storescp, accepting every encoding; returns its peer and its folder."""
    port, folder = free_port(), tmp_path / "pacs"
    folder.mkdir()
    command = ["storescp", "+xa", "-pm", "-od", str(folder), "-aet", "PACS", "+B", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield Peer(port), folder
    process.terminate()
    process.wait(10)


def test_sends_files_byte_for_byte_to_dcmtk(storescp, tmp_path):
    pacs, folder = storescp
    datasets = [
        make_image(),
        make_image(frames=2, syntax=RLELossless),
        make_image(syntax=DeflatedExplicitVRLittleEndian),
        make_data_set(BASIC_TEXT_SR, Modality="SR"),
    ]
    paths = [save(dataset, tmp_path) for dataset in datasets]

    statuses = send_instances(paths, pacs, "SIM4SEG")

    assert [status.status for status in statuses] == [0x0000] * 4
    assert [status.path for status in statuses] == paths
    for dataset, path in zip(datasets, paths, strict=True):
        (arrived,) = folder.glob(f"*{dataset.SOPInstanceUID}*")
        assert data_set_bytes(arrived.read_bytes()) == data_set_bytes(path.read_bytes())


def test_echo_reaches_dcmtk(storescp):
    pacs, _folder = storescp
    echo(pacs, US)


def test_more_than_128_kinds_take_more_than_one_association(peer, tmp_path):
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts[:130]]
    ports = set()
    pacs = peer(
        contexts=(classes[0], classes[129]), before=lambda event: ports.add(event.assoc.requestor.port)
    )
    paths = [save(make_data_set(sop_class), tmp_path) for sop_class in classes]

    statuses = send_instances(paths, pacs, "SIM4SEG")

    assert [status.path for status in statuses] == paths
    assert [status.status for status in statuses] == [0x0000] + [0x0122] * 128 + [0x0000]
    assert len(ports) == 2


def test_a_peer_that_takes_nothing_of_it_is_not_asked_again(peer, tmp_path):
    pacs = peer(contexts=(BASIC_TEXT_SR,))
    (status,) = send_instances([save(make_image(), tmp_path)], pacs, "SIM4SEG")
    assert status.status == 0x0122
    assert not status.is_retryable
    with pytest.raises(AssociationRejected, match="C-ECHO"):
        echo(pacs, US)


def test_each_status_is_told_apart(peer, tmp_path):
    pacs = peer(0x0000, 0xB000, 0xA700, 0x0111)
    statuses = send_instances([save(make_image(), tmp_path) for _image in range(4)], pacs, "SIM4SEG")
    assert [status.status for status in statuses] == [0x0000, 0xB000, 0xA700, 0x0111]
    assert [status.is_delivered for status in statuses] == [True, True, False, True]  # 0x0111: it is there
    assert [status.is_retryable for status in statuses] == [False, False, True, False]


def test_a_kind_that_the_peer_does_not_take_is_told_and_the_others_go(peer, tmp_path):
    pacs = peer(contexts=(CT,))
    paths = [save(make_data_set(BASIC_TEXT_SR), tmp_path), save(make_image(), tmp_path)]
    refused, delivered = send_instances(paths, pacs, "SIM4SEG")
    assert refused.status == 0x0122
    assert not refused.is_retryable
    assert delivered.is_delivered


@refused_connection
def test_nobody_there_is_retryable(free_port, tmp_path):
    (status,) = send_instances([save(make_image(), tmp_path)], Peer(free_port()), "SIM4SEG")
    assert status.status is None
    assert status.is_retryable
    assert "no association" in status.detail


def test_a_peer_that_does_not_know_us_needs_a_person_and_says_what_to_do(peer, tmp_path):
    pacs = peer(require_calling_aet=["SOMEONE"])
    (status,) = send_instances([save(make_image(), tmp_path)], pacs, "SIM4SEG")
    assert str(status.answer) == "RJ 01/01/03"
    assert not status.is_retryable
    assert "registered" in status.detail


def test_a_peer_that_breaks_off_fails_the_rest_retryably(peer, tmp_path):
    pacs = peer(0x0000, before=lambda event: event.assoc.abort() if len(seen) else seen.append(1))
    seen = []
    statuses = send_instances([save(make_image(), tmp_path) for _image in range(3)], pacs, "SIM4SEG")
    assert statuses[0].is_delivered
    assert [status.is_retryable for status in statuses[1:]] == [True, True]


@refused_connection
def test_echo_tells_who_does_not_answer_and_who_refuses(peer, free_port):
    with pytest.raises(PeerUnreachable) as nobody:
        echo(Peer(free_port()), US)
    assert nobody.value.advice
    with pytest.raises(AssociationRejected):
        echo(peer(require_calling_aet=["SOMEONE"]), US)
