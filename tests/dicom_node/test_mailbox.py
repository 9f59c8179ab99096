import json
import pickle
from pathlib import Path

import pytest
from kombu import Connection, Consumer, Producer, Queue

from dicom_node.mailbox import MAX_MESSAGE_BYTES
from dicom_node.settings import load_settings
from dicom_node.tasks import WakeUps, build_app


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    folder = tmp_path / "broker" / "messages"
    folder.mkdir(parents=True)
    return folder


def connect(tmp_path: Path, messages: Path) -> Connection:
    app = build_app(load_settings(tmp_path))
    assert messages.is_dir()
    return app.connection()


def received(connection: Connection, queue: str = "run") -> list[object]:
    """Bodies of everything that waits in `queue`."""
    bodies: list[object] = []
    with connection.channel() as channel:
        bound = Queue(queue)(channel)
        while (message := bound.get(no_ack=True)) is not None:
            bodies.append(message.body)
    return bodies


def test_a_wake_up_comes_out_as_it_went_in_and_nothing_stays(tmp_path: Path, messages: Path) -> None:
    wake_ups = WakeUps(build_app(load_settings(tmp_path)))
    wake_ups.run_jobs()
    wake_ups.deliver("pacs")
    (content,) = (path.read_text() for path in messages.glob("*.run.msg"))
    assert json.loads(content)["headers"]["task"] == "run"
    with connect(tmp_path, messages) as connection:
        assert len(received(connection)) == 1
        assert len(received(connection, "deliver")) == 1
        assert received(connection) == []
    assert list(messages.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"body": "bmV2ZXI=", "conte',
        b"[1, 2]",
        b"null",
        pickle.dumps({"a": 1}),
        b'{"a": "' + b"x" * MAX_MESSAGE_BYTES + b'"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_dropped_and_the_next_is_read(
    tmp_path: Path, messages: Path, content: bytes
) -> None:
    """JOB-15: a half-written, foreign or giant file neither ends the reader nor stays."""
    (messages / "0.run.msg").write_bytes(content)
    with connect(tmp_path, messages) as connection:
        WakeUps(build_app(load_settings(tmp_path))).run_jobs()
        assert len(received(connection)) == 1
    assert list(messages.iterdir()) == []


def test_a_draft_is_not_read(tmp_path: Path, messages: Path) -> None:
    (messages / ".0000_half").write_bytes(b'{"body"')
    with connect(tmp_path, messages) as connection:
        assert received(connection) == []


def test_two_readers_share_the_messages(tmp_path: Path, messages: Path) -> None:
    wake_ups = WakeUps(build_app(load_settings(tmp_path)))
    for _ in range(20):
        wake_ups.run_jobs()
    with connect(tmp_path, messages) as first, connect(tmp_path, messages) as second:
        assert len(received(first)) + len(received(second)) == 20


def test_a_consumer_waits_for_it_as_for_any_broker(tmp_path: Path, messages: Path) -> None:
    seen: list[object] = []
    with connect(tmp_path, messages) as connection:
        Producer(connection).publish({"hello": 1}, routing_key="run", serializer="json")
        with Consumer(connection, [Queue("run")], callbacks=[lambda body, _: seen.append(body)], no_ack=True):
            connection.drain_events(timeout=20)
    assert seen == [{"hello": 1}]
