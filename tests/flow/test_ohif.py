"""OHIF, served by the node, in a real browser: the overlay appears with the SEG."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.flow.conftest import OHIF, Hospital
from tests.flow.nodes import REPOSITORY

pytestmark = [pytest.mark.shared, pytest.mark.timeout(400)]

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL without a graphics card
    "--ignore-gpu-blocklist",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
LOAD_LIMIT_MS = 150_000
VIEWPORT = '[data-cy="viewport-pane"]'
COLOURED = 40  # between the strongest and the weakest channel, of 255; a grey image has none


@pytest.fixture
def page() -> Iterator[Page]:
    assert Path(CHROMIUM).exists(), "chromium is not installed: scripts/system_packages.sh"
    assert (OHIF / "index.html").is_file(), "OHIF is not here: scripts/get_ohif.sh"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(LOAD_LIMIT_MS)
        yield opened
        browser.close()


def coloured_pixels(png: bytes) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((pixels.max(axis=2) - pixels.min(axis=2) > COLOURED).sum())


def open_study(page: Page, address: str) -> None:
    """Open the viewer, and wait until the image is there."""
    page.goto(address, wait_until="domcontentloaded", timeout=LOAD_LIMIT_MS)
    page.wait_for_selector(f"{VIEWPORT} canvas")
    page.wait_for_selector('[data-cy="viewport-overlay-bottom-right"]')


def viewport_when(page: Page, is_enough: Callable[[int], bool], limit_s: float = 60.0) -> tuple[bytes, int]:
    """The viewport's picture and its coloured pixels, once `is_enough` of them and no more change."""
    end, before = time.monotonic() + limit_s, -1
    while True:
        picture = page.locator(VIEWPORT).first.screenshot(timeout=LOAD_LIMIT_MS)
        count = coloured_pixels(picture)
        if (count == before and is_enough(count)) or time.monotonic() > end:
            return picture, count
        before = count
        time.sleep(1.0)


def seg_of(hospital: Hospital, name: str) -> tuple[str, str, int]:
    """Study, series of the SEG, and how many pixels it outlines."""
    (study,) = [study for study in hospital.studies if study.name == name]
    (file,) = hospital.orthanc.instances(study.study_instance_uid, "SEG")
    seg = hd.seg.segread(io.BytesIO(file))
    return study.study_instance_uid, str(seg.SeriesInstanceUID), int(seg.pixel_array.sum())


def test_the_overlay_appears_with_the_seg(hospital: Hospital, page: Page) -> None:
    study, series, outlined = seg_of(hospital, "malignant")
    address = f"{hospital.node.url}/viewer?StudyInstanceUIDs={study}"
    open_study(page, address)
    before_picture, before = viewport_when(page, lambda _: True)
    assert page.get_by_text("SEG", exact=True).count() >= 1
    assert page.get_by_text("Skip all").count() == 0, "no tour lies over the images"

    open_study(page, f"{address}&initialSeriesInstanceUID={series}")
    picture, after = viewport_when(page, lambda count: count > before + outlined / 2)

    kept = REPOSITORY / "test-artifacts"
    kept.mkdir(exist_ok=True)
    (kept / "ohif-without-overlay.png").write_bytes(before_picture)
    (kept / "ohif-overlay.png").write_bytes(picture)
    page.screenshot(path=kept / "ohif.png")
    # The image is enlarged, so every outlined pixel becomes more than one on the screen.
    assert after - before > outlined
