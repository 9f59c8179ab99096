"""OHIF behind the log-in, in a real browser: the page first, then images and overlay, then the way out."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response
from pydicom.dataset import Dataset

from dicom_node.settings_web import Role
from dicom_node.web.app import build_app
from dicom_node.web.login.users import UsersFile
from dicom_node.web.processes import listening_socket, server_of
from storage.database import Database
from tests import builders
from tests.dicom_node.dimse.instances import make_settings
from tests.flow.conftest import OHIF
from tests.flow.nodes import find_free_port, until
from tests.flow.test_edit_in_ohif import IS_LOADED
from tests.flow.test_ohif import page
from tests.flow.test_overlay_in_ohif import KINDS, LABEL
from tests.ward import Ward

__all__ = ["page"]
pytestmark = [pytest.mark.timeout(400)]

PASSWORD = "a horse, a staple"
LISTEN = """() => new Promise((done) => {
  const socket = new WebSocket(`ws://${location.host}/dicom-web/ws/subscribers/VIEWER`);
  socket.onopen = () => done("open");
  socket.onerror = () => done("refused");
})"""
WORKER = """() => new Promise((done) => {
  const text = "fetch(`${origin}/dicom-web/studies`).then((answer) => postMessage(answer.status))";
  const worker = new Worker(URL.createObjectURL(new Blob([text])));
  worker.onmessage = (event) => done(event.data);
})"""


@dataclass(frozen=True)
class Site:
    """A node that wants a log-in, with one study that was analysed."""

    url: str
    users: UsersFile
    study: str
    link: str


@dataclass
class Answers:
    """Addresses that the node refused to a page."""

    refused: list[str] = field(default_factory=list)

    def see(self, answer: Response) -> None:
        if answer.status in (401, 403, 429) and "manifest" not in answer.url:  # fetched without cookies
            self.refused.append(answer.url)


@pytest.fixture
def site(tmp_path: Path, database_url: str, database: Database) -> Iterator[Site]:
    port = find_free_port()
    (tmp_path / "files").mkdir()
    ward = Ward(database, tmp_path)
    ward.settings = ward.settings.model_copy(update={"routes": (builders.route(target=LABEL),)})
    images: list[Dataset] = KINDS["dx"]()
    ward.receive(*images)
    ward.work()
    sections = {"viewer": {"ohif_root": OHIF}, "http": {"port": port, "login": "required"}}
    app = build_app(make_settings(tmp_path, database_url, tmp_path / "files", **sections), database)
    server, listening = server_of(app), listening_socket("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the web server")
    seg = ward.read(ward.results(images[0])["SEG"])
    link = (
        f"/viewer?StudyInstanceUIDs={seg.StudyInstanceUID}&initialSeriesInstanceUID={seg.SeriesInstanceUID}"
    )
    yield Site(f"http://127.0.0.1:{port}", UsersFile(tmp_path), str(seg.StudyInstanceUID), link)
    server.should_exit = True
    thread.join(30)
    listening.close()
    app.state.services.close()


def test_a_person_logs_in_sees_the_overlay_and_goes(site: Site, page: Page) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(site.url + site.link)
    site.users.add_user("alice", PASSWORD, [Role.VIEWER])

    page.goto(site.url + site.link)
    page.fill("#name", "alice")
    page.fill("#password", "a wrong password")
    page.click("button")
    page.wait_for_selector("[role=alert]")
    page.fill("#name", "alice")
    page.fill("#password", PASSWORD)
    answers = Answers()
    page.on("response", answers.see)
    page.click("button")
    page.wait_for_function(IS_LOADED)
    assert page.url == site.url + site.link
    assert page.evaluate(LISTEN) == "open"
    assert page.evaluate(WORKER) == 200
    assert "sim4seg" not in page.evaluate("document.cookie"), "no script sees the session"
    assert answers.refused == []

    # A link on a page of another site: the browser keeps the cookie back at first.
    page.goto(f"data:text/html,<a href='{site.url}/ask?StudyInstanceUIDs={site.study}'>Ask</a>")
    page.click("a")
    page.wait_for_selector("#question")

    page.goto(f"{site.url}/login")
    assert page.request.get(f"{site.url}/dicom-web/studies").status == 200
    page.click("text=Log out")
    page.wait_for_selector("#password")
    assert page.request.get(f"{site.url}/dicom-web/studies").status == 401
    page.goto(site.url + site.link)
    assert page.locator("#password").count() == 1
