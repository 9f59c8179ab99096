"""Sending the trail on: TLS to a real server, up, down, strange and broken; UDP; what stays in the spool."""

import os
import re
import signal
import socket
import threading
from contextlib import nullcontext, suppress

import pytest

from dicom_node.audit.forward import Forwarder, cursor_of, waiting
from dicom_node.audit.keeper import Keeper
from dicom_node.audit.syslog import NotSent, sender_of
from dicom_node.audit.trail import spool_of
from dicom_node.audit.verify import verify
from dicom_node.errors import TlsUnusable
from tests.certificates import Authority
from tests.dicom_node.audit.repository import Repository
from tests.dicom_node.audit.test_spool import writer
from tests.flow.nodes import until

HEAD = re.compile(
    rb"<85>1 \d{4}-\d\d-\d\dT[0-9:.]+\+00:00 [!-~]+ dicom-node \d+ DICOM\+RFC3881 - \xef\xbb\xbf"
)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("hospital"), "hospital")


@pytest.fixture(scope="module")
def pair(hospital):
    return hospital.sign("repository")


@pytest.fixture(scope="module")
def ours(hospital):
    return hospital.sign("node")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture
def port(free_port):
    return free_port()


@pytest.fixture
def node(settings_of, hospital, port):
    """The settings of a node that sends to 127.0.0.1."""

    def make(**audit):
        tls = {
            "syslog": "tls",
            "syslog_host": "127.0.0.1",
            "syslog_port": port,
            "trusted": hospital.certificate,
        }
        return settings_of(audit=tls | audit)

    return make


def send(settings):
    """Send until nothing is left; returns how many."""
    forwarder, total = Forwarder(spool_of(settings), sender_of(settings)), 0
    while count := forwarder.step():
        total += count
    return total


def texts(messages):
    assert all(HEAD.match(message) for message in messages)
    return [HEAD.sub(b"", message).decode() for message in messages]


def test_records_go_over_tls_in_order_and_once(node, port, pair):
    settings = node(segment_mb=0.01)
    written = [f"<a>{number} ä</a>" * 40 for number in range(700)]
    spool_of(settings).append(written)
    assert waiting(spool_of(settings)) == 700
    with Repository(port, pair) as repository:
        assert send(settings) == 700
        assert texts(repository.messages) == written
        assert send(settings) == 0
    assert waiting(spool_of(settings)) == 0


def test_a_message_of_40_000_octets_goes_whole(node, port, pair):
    settings = node()
    spool_of(settings).append(["<a>" + "ö" * 20_000 + "</a>", "<b/>"])
    with Repository(port, pair) as repository:
        send(settings)
    assert len(repository.messages[0]) > 40_000
    assert texts(repository.messages) == ["<a>" + "ö" * 20_000 + "</a>", "<b/>"]


def test_a_repository_that_only_closes_has_read_everything_too(node, port, pair):
    settings = node()
    spool_of(settings).append(["<a/>"])
    with Repository(port, pair, is_curt=True) as repository:
        assert send(settings) == 1
    assert texts(repository.messages) == ["<a/>"]


def test_while_the_repository_is_down_the_trail_waits(node, port, pair):
    settings = node()
    spool = spool_of(settings)
    spool.append(["<a/>"])
    with pytest.raises(NotSent, match=f"127.0.0.1:{port}: Connection refused"):
        send(settings)
    spool.append(["<b/>"])
    assert waiting(spool) == 2
    with Repository(port, pair) as repository:
        assert send(settings) == 2
    assert texts(repository.messages) == ["<a/>", "<b/>"]


def test_what_a_repository_did_not_read_to_its_end_is_sent_again(node, port, pair):
    settings = node()
    spool_of(settings).append(["<a>" + "x" * 3000 + "</a>"] * 200)
    with Repository(port, pair, breaks_off=True) as repository:
        with pytest.raises(NotSent):
            send(settings)
        assert cursor_of(spool_of(settings)).number == 0
        assert send(settings) == 200
    assert len(repository.messages) == 200


def test_a_repository_of_another_authority_gets_nothing(node, port, stranger):
    settings = node()
    spool_of(settings).append(["<a/>"])
    evil = Repository(port, stranger.sign("evil"))
    with evil as repository, pytest.raises(NotSent, match="its certificate is not believed"):
        send(settings)
    assert repository.messages == []
    assert waiting(spool_of(settings)) == 1


def test_a_repository_of_another_name_gets_nothing(node, port, hospital):
    settings = node()
    spool_of(settings).append(["<a/>"])
    other = Repository(port, hospital.sign("other", san="DNS:other.example"))
    with other as repository, pytest.raises(NotSent, match="its certificate is not believed"):
        send(settings)
    assert repository.messages == []


def test_nothing_goes_to_a_server_without_tls(node, port):
    settings = node()
    spool_of(settings).append(["<secret/>"])
    with socket.create_server(("127.0.0.1", port)) as plain:
        plain.settimeout(10)
        received = []

        def answer():
            connection, _ = plain.accept()
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(b"220 hello\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NotSent):
            send(settings)
        thread.join(10)
    assert b"secret" not in received[0]
    assert received[0][:1] == b"\x16"  # a TLS handshake


def test_both_sides_may_ask_for_a_certificate(node, port, pair, hospital, ours):
    spool = spool_of(node())
    spool.append(["<a/>"])
    with Repository(port, pair, trusted=hospital.certificate) as repository:
        for _ in range(20):  # TLS 1.3 tells after the handshake, sooner or later than we are done sending
            with pytest.raises(NotSent):
                send(node())
        assert send(node(certificate=ours.certificate, key=ours.key)) == 1
    assert texts(repository.messages) == ["<a/>"]


def test_certificates_that_are_missing_are_a_sentence_and_send_nothing(node, tmp_path):
    with pytest.raises(TlsUnusable, match=r"^audit.syslog: .*gone.crt is not there"):
        sender_of(node(trusted=tmp_path / "gone.crt"))


def test_udp_sends_a_datagram_for_each(node, free_port):
    port = free_port()
    settings = node(syslog="udp", syslog_port=port)
    spool_of(settings).append(["<a/>", "<b>" + "x" * 40_000 + "</b>"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inlet:
        inlet.bind(("127.0.0.1", port))
        inlet.settimeout(10)
        assert send(settings) == 2
        assert texts([inlet.recv(65536), inlet.recv(65536)]) == ["<a/>", "<b>" + "x" * 40_000 + "</b>"]


def test_the_keeper_sends_when_the_repository_is_back(node, port, pair, monkeypatch):
    monkeypatch.setattr("dicom_node.audit.keeper.FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("dicom_node.audit.keeper.MAX_RETRY_S", 0.1)
    settings = node()
    spool = spool_of(settings)
    keeper = Keeper(settings)
    spool.append(["<a/>"])
    keeper.start()
    try:
        for name in "bc":
            with Repository(port, pair) as repository:
                until(lambda: waiting(spool) == 0, "the trail to be sent", 20)
            assert repository.messages
            spool.append([f"<{name}/>"])
        with Repository(port, pair) as repository:
            until(lambda: waiting(spool) == 0, "the trail to be sent", 20)
        assert texts(repository.messages) == ["<c/>"]
    finally:
        keeper.stop()


def test_killed_writers_and_a_bad_repository_lose_and_reorder_nothing(node, port, pair):
    settings = node(segment_mb=0.02)
    spool, told = spool_of(settings), []
    forwarder = Forwarder(spool, sender_of(settings))
    repository = Repository(port, pair)
    for turn in range(12):
        repository.behaviour["breaks_off"] = turn % 3 == 1
        with writer(spool, f"w{turn}", 100_000) as process, writer(spool, f"v{turn}", 40) as other:
            told += [int(process.stdout.readline()) for _ in range(60)]
            with nullcontext() if turn % 3 == 2 else repository, suppress(NotSent):
                forwarder.step()
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
            told += [int(line) for line in other.stdout.read().split()]
    repository.behaviour["breaks_off"] = False
    with repository:
        while forwarder.step():
            pass
    kept = [record.message for _, record in spool.records()]
    assert verify(spool).findings == ()
    assert len(told) >= 1000
    assert set(told) <= set(range(1, len(kept) + 1))
    assert texts(repository.messages) == kept


def test_files_that_are_old_and_sent_are_removed(node, port, pair):
    settings = node(segment_mb=0.01, keep_days=1e-9)
    spool = spool_of(settings)
    for _ in range(30):
        spool.append(["<a>" + "x" * 1000 + "</a>"])
    keeper = Keeper(settings)
    assert keeper.remove_old() == 0
    with Repository(port, pair):
        send(settings)
    assert keeper.remove_old() == 3
    assert len(spool.segments()) == 1
