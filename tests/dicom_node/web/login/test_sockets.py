"""On a real socket: the events of UPS over a WebSocket, and who a proxy says that it speaks for."""

import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from dicom_node.settings_web import Role
from dicom_node.web.login import gate
from tests.dicom_node.web.login.conftest import PASSWORD, bearer
from tests.dicom_node.web.ohif import JSON
from tests.dicom_node.web.test_ups import WORKITEMS, workitem
from tests.dicom_node.web.test_ups_events import GLOBAL, heard, wait_for_first_look

WATCH = "/dicom-web/ws/subscribers/WATCHER"


@pytest.fixture
def root(server):
    return f"127.0.0.1:{server}"


@pytest.fixture
def sender(root, known):
    token = known.add_token("ris", [Role.SENDER])

    def send(address, content=None):
        answer = httpx.post(
            f"http://{root}{address}",
            content=json.dumps(content or {}),
            headers=bearer(token) | {"content-type": JSON},
        )
        assert answer.status_code in (200, 201), answer.text

    return send


def test_the_socket_wants_a_role(root, known):
    known.add_token("z", [Role.MONITOR])
    monitor = known.add_token("zabbix", [Role.MONITOR])
    for headers, status in (({}, 401), (bearer("sim4seg_guess"), 401), (bearer(monitor), 403)):
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"ws://{root}{WATCH}", additional_headers=headers),
        ):
            pass
        assert refused.value.response.status_code == status


def test_a_session_listens_and_is_cut_off_when_its_user_goes(root, known, sender, monkeypatch):
    monkeypatch.setattr(gate, "LOOK_AGAIN_S", 0.0)
    known.add_user("alice", PASSWORD, [Role.VIEWER])
    with httpx.Client(base_url=f"http://{root}") as browser:
        browser.post("/login", data={"name": "alice", "password": PASSWORD})
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    sender(f"{WORKITEMS}/{GLOBAL}/subscribers/WATCHER")
    with connect(f"ws://{root}{WATCH}", additional_headers={"cookie": cookie}) as socket:
        wait_for_first_look(socket)
        sender(f"{WORKITEMS}?workitem=2.25.40", workitem())
        assert heard(socket, 1) == [("2.25.40", 1, "SCHEDULED")]
        known.remove("alice")
        sender(f"{WORKITEMS}?workitem=2.25.41", workitem())
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
        assert closed.value.rcvd.code == 1008


@pytest.fixture
def sections(sections, request):
    proxied = getattr(request, "param", {})
    return {**sections, "http": sections["http"] | proxied}


@pytest.mark.parametrize(
    ("sections", "address"),
    [
        ({}, "127.0.0.1"),
        ({"behind_tls_proxy": True}, "203.0.113.9"),
        ({"behind_tls_proxy": True, "proxies": ["10.0.0.0/8"]}, "127.0.0.1"),
    ],
    indirect=["sections"],
)
def test_only_a_proxy_of_ours_says_who_called(root, address, caplog):
    headers = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}
    httpx.get(f"http://{root}/metrics", headers=headers | bearer("sim4seg_guess"))
    assert [record.peer for record in caplog.records if hasattr(record, "peer")] == [address]
