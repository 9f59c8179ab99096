"""OHIF in a browser on real CT, MR, multi-frame US, DX, SEG, SR: the image is there, the console is clean."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page
from pydicom.uid import generate_uid

from dicom_node.web.app import build_app
from dicom_node.web.processes import listening_socket, server_of
from storage.database import Database, upgrade
from storage.index import Origin
from tests.dicom_node.dimse.instances import make_settings
from tests.doors import make_receiver
from tests.flow.conftest import OHIF
from tests.flow.nodes import find_free_port, until
from tests.flow.test_ohif import LOAD_LIMIT_MS, VIEWPORT, open_study, page

__all__ = ["page"]
pytestmark = [pytest.mark.shared, pytest.mark.timeout(900)]

FILES = {
    "CT": ("highdicom/test_files/ct_image.dcm",),
    "CT with SEG and SR": (
        "highdicom/test_files/ct_image.dcm",
        "highdicom/test_files/seg_image_ct_binary_single_frame.dcm",
        "highdicom/test_files/sr_document.dcm",
    ),
    "MR": ("pydicom/MR_small.dcm",),
    "US multi-frame": ("pydicom/examples_ybr_color.dcm",),
    "DX": ("highdicom/test_files/dx_image.dcm",),
}
# Not of what the node answers: OHIF's own complaints about a page without a graphics card or a log-in.
NOT_OURS = ("WebGL", "GPU", "GL Driver", "manifest", "favicon", "Download the React DevTools")


@dataclass
class Console:
    """What a page complained of."""

    errors: list[str] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        page.on(
            "response",
            lambda answer: (
                self.errors.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
            ),
        )

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(word in message.text for word in NOT_OURS):
            self.errors.append(message.text)


@dataclass(frozen=True)
class Site:
    """A web server with OHIF, and the door to what it shows."""

    url: str
    keep: object

    def show(self, files: list[Path]) -> str:
        """Store the files; the address of their study in the viewer."""
        studies = [self.keep(file) for file in files]
        return f"{self.url}/viewer?StudyInstanceUIDs={studies[0]}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    url, files_root, port = f"sqlite:///{tmp_path}/node.sqlite", tmp_path / "files", find_free_port()
    files_root.mkdir()
    upgrade(url)
    database = Database(url)
    settings = make_settings(tmp_path, url, files_root, viewer={"ohif_root": OHIF}, http={"port": port})
    app = build_app(settings, database)
    server, listening = server_of(app), listening_socket("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the web server")
    receiver = make_receiver(database, files_root)

    def keep(path: Path) -> str:
        content = [in_a_series_of_its_own(path)]
        return receiver.receive_part10(content, Origin("IMPORT", "test")).study_instance_uid

    yield Site(f"http://127.0.0.1:{port}", keep)
    server.should_exit = True
    thread.join(30)
    listening.close()
    app.state.services.close()
    database.close()


def in_a_series_of_its_own(path: Path) -> bytes:
    """The file; this SR says that it belongs to the series of its CT, which no viewer can tell apart."""
    if path.name != "sr_document.dcm":
        return path.read_bytes()
    report, buffer = pydicom.dcmread(path), BytesIO()
    report.SeriesInstanceUID = generate_uid()
    report.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_a_real_study_is_shown_without_an_error(site: Site, page: Page, shared_data: Path, name: str) -> None:
    console = Console()
    console.listen(page)
    address = site.show([shared_data / "data" / "dicom" / file for file in FILES[name]])
    open_study(page, address)
    until(lambda: is_drawn(page), f"the image of {name}", limit_s=120, pause_s=1.0)
    time.sleep(2)  # what else the page asks for
    assert console.errors == []


def is_drawn(page: Page) -> bool:
    """Whether the viewport shows something that is not one colour."""
    picture = page.locator(VIEWPORT).first.screenshot(timeout=LOAD_LIMIT_MS)
    grey = np.asarray(Image.open(BytesIO(picture)).convert("L"))
    height, width = grey.shape
    return float(grey[height // 4 : -height // 4, width // 4 : -width // 4].std()) > 5.0
