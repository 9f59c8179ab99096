import argparse
import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicom_node import demo
from dicom_node.demo import Progress, run_demo
from dicom_node.demo_pacs import Arrival, open_pacs
from dicom_node.demo_studies import DemoStudy, group, studies_at
from dicom_node.dimse.calling import Caller
from dicom_node.dimse.scu import echo, send_instances
from dicom_node.make_dicom import BadImage
from dicom_node.settings import load_settings
from dicom_node.settings_network import PeerSettings
from tests.builders import make_ellipse, make_stack, make_ultrasound, write_datasets

STUDY = DemoStudy("1.2.3", "US BREAST", ())
UIDS = {"seg": "1.2.3.4", "sr": "1.2.3.5"}


def job(state: str = "COMPLETED", uids: dict[str, str | None] | None = None) -> dict[str, Any]:
    return {"state": state, "summary": {"sop_instance_uids": uids or UIDS}}


def arrived(*uids: str) -> dict[str, Arrival]:
    return {uid: Arrival(uid, "SEG", Path("x"), 0.0) for uid in uids}


@pytest.mark.parametrize(
    ("progress", "is_over", "is_complete"),
    [
        (Progress(STUDY), False, False),
        (Progress(STUDY, outcome="no rule matched"), True, False),
        (Progress(STUDY, outcome="1 job", jobs=[{"state": "IN PROGRESS", "summary": None}]), False, False),
        (Progress(STUDY, outcome="1 job", jobs=[{"state": "CANCELED", "summary": None}]), True, False),
        (Progress(STUDY, outcome="1 job", jobs=[job()]), False, False),
        (Progress(STUDY, outcome="1 job", jobs=[job()], arrivals=arrived("1.2.3.4")), False, False),
        (Progress(STUDY, outcome="1 job", jobs=[job()], arrivals=arrived("1.2.3.4", "1.2.3.5")), True, True),
        (
            Progress(
                STUDY,
                outcome="1 job",
                jobs=[job(uids={"seg": None, "sr": "1.2.3.5"})],
                arrivals=arrived("1.2.3.5"),
            ),
            True,
            True,
        ),
    ],
)
def test_a_study_is_complete_only_when_everything_has_arrived(
    progress: Progress, is_over: bool, is_complete: bool
) -> None:
    assert (progress.is_over, progress.is_complete) == (is_over, is_complete)


def test_a_dicom_folder_is_sent_study_by_study(tmp_path: Path) -> None:
    stack = make_stack([make_ellipse((32, 32), (16, 16), (5, 5))] * 2)
    write_datasets(tmp_path / "a", stack)
    write_datasets(tmp_path / "b", [make_ultrasound()])
    (tmp_path / "notes.txt").write_text("no DICOM", encoding="utf-8")
    studies = studies_at(tmp_path, tmp_path / "made", "US", "BREAST")
    assert sorted((study.title, len(study.paths)) for study in studies) == [("MR HEART", 2), ("US BREAST", 1)]


def test_images_become_one_study(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        Image.fromarray(np.full((40, 50), 99, np.uint8)).save(tmp_path / name)
    (study,) = studies_at(tmp_path, tmp_path / "made", "ES", "COLON")
    assert (study.title, len(study.paths)) == ("ES COLON", 2)
    (one,) = studies_at(tmp_path / "a.png", tmp_path / "other", "US", "BREAST")
    assert pydicom.dcmread(one.paths[0]).Modality == "US"


def test_nothing_to_send_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="holds no DICOM"):
        studies_at(tmp_path, tmp_path / "made", "US", "BREAST")
    assert group([tmp_path / "absent"]) == []


def test_the_pacs_keeps_what_it_gets_under_names_of_its_own(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    (path,) = write_datasets(tmp_path / "in", [make_ultrasound()])
    peer = PeerSettings(name="pacs", ae_title="DEMO_PACS", host="127.0.0.1", port=free_port())
    with open_pacs(tmp_path / "pacs", peer.port) as pacs:
        echo(peer, Caller("NODE"))
        assert [status.status for status in send_instances([path], peer, "NODE")] == [0x0000]
        (arrival,) = pacs.arrivals()
    assert arrival.path == tmp_path / "pacs" / "OTHER-0001.dcm"
    assert pacs.arrival(arrival.sop_instance_uid) == arrival
    assert pydicom.dcmread(arrival.path) == pydicom.dcmread(path)


def test_a_taken_port_is_replaced_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        port = demo._port("web", wanted)
    assert port != wanted
    assert f"Port {wanted} is taken, so web listens on {port}." in capsys.readouterr().out


def test_a_study_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(home=tmp_path, study=tmp_path / "absent", once=True, viewer=None)
    assert run_demo(options) == 1
    assert "there is no such file or folder" in capsys.readouterr().err


class Stranger(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything, as another node would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_stranger_on_our_ports_is_not_taken_for_our_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        http.server.HTTPServer(("127.0.0.1", 0), Stranger) as web,
        socket.create_server(("127.0.0.1", 0)) as scp,
    ):
        monkeypatch.setenv("DICOM_NODE_HTTP__PORT", str(web.server_port))
        monkeypatch.setenv("DICOM_NODE_DIMSE__PORT", str(scp.getsockname()[1]))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with (
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]) as ours,
            pytest.raises(demo.DemoFailed, match="did not start"),
        ):
            demo._until_ready(ours, load_settings(tmp_path, None))
        web.shutdown()
