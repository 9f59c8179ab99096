"""Five kinds of study in OHIF by our link: overlay and report lie on the mask, label and colour are right."""

import base64
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from dicom_node.make_dicom import SeriesDetails, build_series
from dicom_node.web.app import build_app
from dicom_node.web.processes import listening_socket, server_of
from storage.database import Database, upgrade
from tests import builders
from tests.dicom_node.dimse.instances import make_settings
from tests.flow.conftest import OHIF
from tests.flow.nodes import REPOSITORY, find_free_port, until
from tests.flow.test_edit_in_ohif import IS_LOADED
from tests.flow.test_ohif import CHROMIUM, FLAGS, LOAD_LIMIT_MS
from tests.ward import Ward

pytestmark = [pytest.mark.timeout(400)]

SIZE = (120, 160)
MASKS = [builders.make_ellipse(SIZE, (40 + 4 * n, 55 + 6 * n), (14 + n, 22 + 2 * n)) for n in range(4)]
OBLIQUE = ("0.707107", "0.612372", "-0.353553", "0", "-0.5", "-0.866025")
SAGITTAL = ("0", "1", "0", "0", "0", "-1")
LABEL = "breast lesion"
NEAREST_PX = 2.0  # of the screen; a pixel of the image is 4 to 8 of them
MOST_ALIKE = 0.95  # Dice; the drawn outline is a little wider than its region
# Where the corner of the shown image and the ends of its edges lie on the viewport, and what is shown there.
PLACE = """() => {
  const id = services.viewportGridService.getActiveViewportId();
  const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
  const { imageData, dimensions } = viewport.getImageData();
  const at = (i, j) => viewport.worldToCanvas(imageData.indexToWorld([i - 0.5, j - 0.5, 0])).slice(0, 2);
  const [segmentation] = services.segmentationService.getSegmentations();
  const of = segmentation?.segmentationId;
  return {
    id, segmentation: of, image: viewport.getCurrentImageId(),
    corner: at(0, 0), right: at(dimensions[0], 0), lower: at(0, dimensions[1]),
    labels: Object.values(segmentation?.segments ?? {}).map((each) => [each.segmentIndex, each.label]),
    colour: of && services.segmentationService.getSegmentColor(id, of, 1)?.slice(0, 3),
    report: services.displaySetService.getActiveDisplaySets().find((each) => each.Modality === "SR")
      ?.displaySetInstanceUID,
  };
}"""
PIXELS = """() => services.cornerstoneViewportService.getCornerstoneViewport(
  services.viewportGridService.getActiveViewportId()).canvas.toDataURL()"""
NEXT_PICTURE = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"""
SHOW_SEGMENT = """({ id, segmentation, isShown }) =>
  services.segmentationService.setSegmentVisibility(id, segmentation, 1, isShown)"""
SHOW_REPORT = """({ id, report }) => services.viewportGridService.setDisplaySetsForViewport(
  { viewportId: id, displaySetInstanceUIDs: [report] })"""
DRAWN = """() => [...document.querySelectorAll("svg.svg-layer polyline")]
  .map((each) => each.getAttribute("points"))"""
WRITTEN = (
    """() => [...document.querySelectorAll("svg.svg-layer text")].map((each) => each.textContent).join(" ")"""
)
Mask = NDArray[np.bool_]


def flat(modality: str, image: NDArray[np.uint8], spacing_mm: tuple[float, float] | None) -> Dataset:
    details = SeriesDetails(modality, body_part="HAND", patient=builders.PATIENT, spacing_mm=spacing_mm)
    return build_series([image], details)[0]


def endoscopy() -> list[Dataset]:
    dataset = flat("ES", builders.make_colour_image(MASKS[2]), None)
    dataset.compress(JPEG2000Lossless)
    return [dataset]


KINDS: dict[str, Callable[[], list[Dataset]]] = {
    "ct-oblique": lambda: builders.make_stack(MASKS, "CT", OBLIQUE),  # pixels twice as high as wide
    "mr-enhanced": lambda: [builders.make_enhanced(builders.make_stack(MASKS, "MR", SAGITTAL))],
    "us-clip": lambda: [builders.make_multiframe(MASKS)],
    "dx": lambda: [flat("DX", builders.make_grey_image(MASKS[3]), (0.3, 0.2))],
    "endoscopy": endoscopy,
}


@dataclass
class Reader:
    """A node in this process, and a browser before it."""

    ward: Ward
    url: str
    page: Page

    def open(self, images: list[Dataset]) -> dict[str, Any]:
        """Have the study analysed, and follow the link to it until the overlay is there."""
        self.ward.receive(*images)
        self.ward.work()
        with urllib.request.urlopen(f"{self.url}/api/studies/{images[0].StudyInstanceUID}") as answer:
            link = json.load(answer)["viewer"]
        self.page.goto(self.url + link)
        self.page.wait_for_function(IS_LOADED)
        self.page.evaluate(SHOW_SEGMENT, self.place() | {"isShown": True})
        return self.place()

    def place(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.evaluate(PLACE)
        return found

    def picture(self) -> NDArray[np.int16]:
        """Image and overlay (H, W, 3) as the viewport holds them, once they change no more."""
        before = ""
        while (address := self.page.evaluate(PIXELS)) != before:
            before = address
            self.page.evaluate(NEXT_PICTURE)
        png = base64.b64decode(address.partition(",")[2])
        return np.asarray(Image.open(BytesIO(png)).convert("RGB"), np.int16)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    assert (OHIF / "index.html").is_file(), "OHIF is not here: scripts/get_ohif.sh"
    home = tmp_path_factory.mktemp("reader")
    url, port = f"sqlite:///{home}/node.sqlite", find_free_port()
    (home / "files").mkdir()
    upgrade(url)
    database = Database(url)
    ward = Ward(database, home)
    ward.settings = ward.settings.model_copy(update={"routes": (builders.route(target=LABEL),)})
    settings = make_settings(home, url, home / "files", viewer={"ohif_root": OHIF}, http={"port": port})
    app = build_app(settings, database)
    server, listening = server_of(app), listening_socket("127.0.0.1", port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the web server")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 700})
        page.set_default_timeout(LOAD_LIMIT_MS)
        yield Reader(ward, f"http://127.0.0.1:{port}", page)
        browser.close()
    server.should_exit = True
    thread.join(30)
    listening.close()
    app.state.services.close()
    database.close()


def mask_shown(images: list[Dataset], image_id: str) -> Mask:
    """What is dark in the image that the viewport shows."""
    (dataset,) = [each for each in images if f"/instances/{each.SOPInstanceUID}/" in image_id]
    pixels = dataset.pixel_array
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        pixels = pixels[int(image_id.rpartition("/frames/")[2]) - 1]
    grey = pixels[..., 0] if pixels.ndim == 3 else pixels
    return np.asarray(grey < (builders.DARK + builders.BRIGHT) // 2)


def on_screen(mask: Mask, place: dict[str, Any], size: tuple[int, ...]) -> Mask:
    """The mask (H, W) as it must lie on a viewport of `size`."""
    corner = np.array(place["corner"])
    across = (np.array(place["right"]) - corner) / mask.shape[1]
    down = (np.array(place["lower"]) - corner) / mask.shape[0]
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    points = np.stack([columns, rows], axis=-1) - corner
    indices = np.floor(points @ np.linalg.inv(np.stack([across, down]))).astype(int)
    inside = ((indices >= 0) & (indices < (mask.shape[1], mask.shape[0]))).all(axis=-1)
    indices[~inside] = 0
    return np.asarray(mask[indices[..., 1], indices[..., 0]] & inside)


def centroid(mask: Mask) -> NDArray[np.float64]:
    return np.argwhere(mask).mean(axis=0)


def colour_of(reader: Reader, image: Dataset) -> list[int]:
    """The colour that our SEG asks for, in sRGB."""
    (segment,) = reader.ward.read(reader.ward.results(image)["SEG"]).SegmentSequence
    return list(hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb())


@pytest.mark.parametrize("kind", KINDS)
def test_overlay_and_report_lie_where_the_mask_lies(reader: Reader, kind: str) -> None:
    images = KINDS[kind]()
    place = reader.open(images)
    assert place["labels"] == [[1, LABEL]]
    assert place["colour"] == pytest.approx(colour_of(reader, images[0]), abs=3)

    drawn = reader.picture()
    kept = REPOSITORY / "test-artifacts"
    kept.mkdir(exist_ok=True)
    reader.page.screenshot(path=kept / f"ohif-{kind}.png")
    reader.page.evaluate(SHOW_SEGMENT, place | {"isShown": False})
    bare = reader.picture()
    coloured = np.abs(drawn - bare).max(axis=2) > 8
    wanted = on_screen(mask_shown(images, place["image"]), place, coloured.shape)
    assert np.abs(centroid(coloured) - centroid(wanted)).max() < NEAREST_PX
    assert 2 * (coloured & wanted).sum() / (coloured.sum() + wanted.sum()) > MOST_ALIKE

    reader.page.evaluate(SHOW_REPORT, place)
    (points,) = until(lambda: reader.page.evaluate(DRAWN), "the outline of the report", pause_s=0.2)
    outline = np.array([pair.split(",") for pair in points.replace(", ", ",").split(" ") if pair], float)
    place = reader.place()
    wanted = np.argwhere(on_screen(mask_shown(images, place["image"]), place, coloured.shape))
    assert outline.min(axis=0)[::-1] == pytest.approx(wanted.min(axis=0), abs=NEAREST_PX)
    assert outline.max(axis=0)[::-1] == pytest.approx(wanted.max(axis=0) + 1, abs=NEAREST_PX)
    assert "Area: " in reader.page.evaluate(WRITTEN)
    reader.page.screenshot(path=kept / f"ohif-{kind}-report.png")
    assert reader.page.get_by_text("Something went wrong").count() == 0


def test_a_mask_beside_its_place_would_be_seen() -> None:
    place = {"corner": [10.0, 5.0], "right": [170.0, 5.0], "lower": [10.0, 125.0]}
    shown = on_screen(MASKS[0], place, (140, 200))
    assert (shown[5:125, 10:170] == MASKS[0]).all()
    assert shown.sum() == MASKS[0].sum()
    flipped = on_screen(MASKS[0][:, ::-1], place, (140, 200))
    assert np.abs(centroid(shown) - centroid(flipped)).max() > NEAREST_PX
