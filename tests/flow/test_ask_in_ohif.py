"""The panel of questions in a real browser: opened beside OHIF, asked by keyboard, answered, sent, shown."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page

from tests import builders
from tests.flow.conftest import OHIF
from tests.flow.nodes import REPOSITORY, destination, node_config, running_node
from tests.flow.test_ohif import VIEWPORT
from tests.flow.test_ohif import page as page  # noqa: PLC0414 - the fixture
from tests.stub_engine import write_stub_package
from tests.ward import stack

pytestmark = [pytest.mark.shared, pytest.mark.timeout(400)]

QUESTION = "Where is the lesion?"
RULE = {"name": "mr", "modality": ["MR"], "model": "sim4seg-s", "query": "Outline it."}


def test_a_question_is_asked_beside_the_images(
    page: Page, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    config = node_config(
        free_port,
        write_stub_package(tmp_path / "models"),
        destinations=[destination(free_port())],
        viewer={"ohif_root": str(OHIF)},
        inference={"test_mode": True},
        completion={"quiet_period_s": 2.0},  # a busy machine must not take a pause for the study's end
        routes=[RULE],
    )
    images = stack(3)
    paths = builders.write_datasets(tmp_path / "sent", images)
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text) if "Content Security" in said.text else None)
    with running_node(tmp_path / "node", config) as node:
        node.send(paths)
        node.wait_for_jobs(1)
        page.goto(f"{node.url}/viewer?StudyInstanceUIDs={images[0].StudyInstanceUID}")
        page.wait_for_selector(f"{VIEWPORT} canvas")
        page.locator("#sim4seg-ask").click()
        panel = page.frame_locator('iframe[title="Ask about this study"]')
        panel.get_by_role("button", name=QUESTION).press("Enter")  # a suggestion goes into the box
        assert panel.get_by_role("textbox", name="Question").input_value() == QUESTION
        panel.get_by_role("textbox", name="Question").press("Enter")
        panel.get_by_text("Answered.").wait_for()
        said = panel.locator("#said").inner_text()
        assert "Firstly, this is a breast ultrasound image" in said
        assert "It is outlined." in said
        assert said.count("held") == 2
        panel.get_by_role("button", name="Send to the PACS").click()
        panel.locator("#said").get_by_text("queued").first.wait_for()
        kept = REPOSITORY / "test-artifacts"
        kept.mkdir(exist_ok=True)
        page.screenshot(path=kept / "ohif-ask.png")

        (asked,) = [job for job in node.jobs() if job["query"] == QUESTION]
        found = node.get_json(f"/api/ask/{asked['job_id']}")
        panel.get_by_role("link", name="Show it in the viewer").click()
        page.wait_for_url("**initialSeriesInstanceUID**", wait_until="commit")
        shown = parse_qs(urlsplit(page.url).query)
        assert shown["initialSeriesInstanceUID"] == [found["objects"][0]["series_instance_uid"]]
    assert refused == []
