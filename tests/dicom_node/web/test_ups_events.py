"""Subscriptions of UPS-RS, and what is told over a WebSocket."""

import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.dicom_node.web.ohif import JSON
from tests.dicom_node.web.test_ups import LABEL, STATE, TRANSACTION, WORKITEMS, cs, workitem

GLOBAL, FILTERED = "1.2.840.10008.5.1.4.34.5", "1.2.840.10008.5.1.4.34.5.1"
GENEROUS_S = 30


class Peer:
    """Another system, on a real socket."""

    def __init__(self, port):
        self.port = port
        self.root = f"http://127.0.0.1:{port}"

    def send(self, method, address, content=None, status=(200, 201, 202)):
        answer = httpx.request(
            method, self.root + address, content=json.dumps(content or {}), headers={"content-type": JSON}
        )
        assert answer.status_code in status, answer.text
        return answer

    def create(self, uid, **changes):
        return self.send("POST", f"{WORKITEMS}?workitem={uid}", workitem(**changes))

    def begin(self, uid):
        content = {STATE: cs("IN PROGRESS"), "00081195": cs(TRANSACTION, "UI")}
        self.send("PUT", f"{WORKITEMS}/{uid}/state", content)

    def subscribe(self, uid, query=""):
        return self.send("POST", f"{WORKITEMS}/{uid}/subscribers/WATCHER{query}")

    def listen(self, **options):
        return connect(f"ws://127.0.0.1:{self.port}/dicom-web/ws/subscribers/WATCHER", **options)


@pytest.fixture
def peer(server):
    return Peer(server)


def heard(socket, count):
    messages = [json.loads(socket.recv(timeout=GENEROUS_S)) for _ in range(count)]
    return [
        (m["00001000"]["Value"][0], m["00001002"]["Value"][0], m.get(STATE, {}).get("Value", [""])[0])
        for m in messages
    ]


def test_a_subscriber_hears_the_state_and_its_changes(peer):
    peer.create("2.25.30")
    answer = peer.subscribe("2.25.30", "?deletionlock=true")
    assert answer.headers["content-location"].endswith(f":{peer.port}/dicom-web/ws/subscribers/WATCHER")
    with connect(answer.headers["content-location"]) as socket:
        assert heard(socket, 1) == [("2.25.30", 1, "SCHEDULED")]
        peer.begin("2.25.30")
        assert heard(socket, 1) == [("2.25.30", 1, "IN PROGRESS")]
        peer.send("POST", f"{WORKITEMS}/2.25.30/cancelrequest", {"00741238": cs("stop", "LT")})
        assert heard(socket, 1) == [("2.25.30", 2, "")]
        progress = {"00741002": {"vr": "SQ", "Value": [{"00741004": cs("50", "DS")}]}}
        peer.send("POST", f"{WORKITEMS}/2.25.30?transaction-uid={TRANSACTION}", progress)
        assert heard(socket, 1) == [("2.25.30", 3, "")]


def test_a_global_subscriber_hears_of_new_workitems_and_a_filtered_one_of_some(peer):
    peer.create("2.25.31")  # before anybody listens: not told
    peer.subscribe(GLOBAL)
    with peer.listen() as socket:
        peer.send("GET", WORKITEMS)  # by now the channel has looked once, or will see the next as new
        wait_for_first_look(socket)
        peer.create("2.25.32")
        assert heard(socket, 1) == [("2.25.32", 1, "SCHEDULED")]
    peer.send("DELETE", f"{WORKITEMS}/{GLOBAL}/subscribers/WATCHER")
    peer.subscribe(FILTERED, "?ProcedureStepLabel=Only*")
    with peer.listen() as socket:
        wait_for_first_look(socket)
        peer.create("2.25.33")
        peer.create("2.25.34", **{LABEL: cs("Only this", "LO")})
        assert heard(socket, 1) == [("2.25.34", 1, "SCHEDULED")]


def wait_for_first_look(socket):
    with pytest.raises(TimeoutError):
        socket.recv(timeout=1.5)


def test_a_subscription_ends(peer):
    peer.create("2.25.35")
    peer.subscribe("2.25.35")
    peer.send("DELETE", f"{WORKITEMS}/2.25.35/subscribers/WATCHER")
    peer.send("DELETE", f"{WORKITEMS}/2.25.35/subscribers/WATCHER", status=(404,))
    peer.subscribe(GLOBAL)
    peer.send("POST", f"{WORKITEMS}/{GLOBAL}/subscribers/WATCHER/suspend")
    peer.send("POST", f"{WORKITEMS}/2.25.35/subscribers/WATCHER/suspend", status=(400,))


def test_a_page_of_another_site_may_not_listen(peer):
    with (
        pytest.raises((InvalidStatus, ConnectionClosed)),
        peer.listen(origin="https://evil.example") as socket,
    ):
        socket.recv(timeout=GENEROUS_S)


def test_names_of_subscribers_are_ae_titles(peer):
    peer.create("2.25.36")
    peer.send("POST", f"{WORKITEMS}/2.25.36/subscribers/{'A' * 17}", status=(400,))
    peer.send("POST", f"{WORKITEMS}/{FILTERED}/subscribers/WATCHER?NoSuchName=1", status=(400,))
