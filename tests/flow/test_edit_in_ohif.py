"""A SEG of ours edited in OHIF and saved back, as its Save button does: it ends as modified, with Dice."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from pydicom import dcmread

from tests import builders
from tests.flow.conftest import OHIF
from tests.flow.nodes import Node, destination, node_config, running_node, until
from tests.flow.test_ohif import page
from tests.stub_engine import write_stub_package
from tests.ward import stack

__all__ = ["page"]
pytestmark = [pytest.mark.shared, pytest.mark.timeout(400)]

RULE = {"name": "mr", "modality": ["MR"], "model": "sim4seg-s", "query": "Outline it."}
BINARY, EXPLICIT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.2.1"
LABEL_MAP, RLE = "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.1.2.5"
IS_LOADED = """() => {
  const service = window.services?.segmentationService;
  const [found] = service?.getSegmentations() ?? [];
  return found?.representationData?.Labelmap
    && service.getRepresentationsForSegmentation(found.segmentationId).length > 0;
}"""
# What the Save button runs, without its dialog: `isAsOhif` leaves the form of the SEG to OHIF.
SAVE = """async ({ columns, isAsOhif }) => {
  const [found] = services.segmentationService.getSegmentations();
  for (const id of found.representationData.Labelmap.imageIds) {
    const image = cornerstone.cache.getImage(id);
    const pixels = image.getPixelData();
    for (let at = 0; at < pixels.length; at++) if (at % image.columns < columns) pixels[at] = 0;
  }
  const source = extensionManager.getDataSourceDefinition("sim4seg");
  const kept = source.configuration.segmentation;
  if (isAsOhif) source.configuration.segmentation = undefined;
  const options = { dataSource: "sim4seg", SeriesDescription: "Edited", SeriesNumber: 3100 };
  const wanted = { segmentationId: found.segmentationId, options };
  const { dataset } = await commandsManager.runCommand("generateSegmentation", wanted);
  await commandsManager.runCommand("createStoreFunction", { dataSource: "sim4seg" })(dataset, {});
  source.configuration.segmentation = kept;
  return dataset.SOPInstanceUID;
}"""


def test_an_edit_saved_back_is_a_modification(
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
    with running_node(tmp_path / "node", config) as node:
        node.send(paths)
        (job,) = node.wait_for_jobs(1)
        study = str(images[0].StudyInstanceUID)
        page.goto(node.url + node.get_json(f"/api/studies/{study}")["viewer"])
        page.wait_for_function(IS_LOADED)
        edited = page.evaluate(SAVE, {"columns": 20, "isAsOhif": False})
        first = judged(node, edited)
        saved = page.evaluate(SAVE, {"columns": 28, "isAsOhif": True})
        second = judged(node, saved)
        assert [each["verdict"] for each in (first, second)] == ["MODIFIED", "MODIFIED"]
        assert [each["matched_by"] for each in (first, second)] == ["CONTENT", "CONTENT"]
        ((_, dice),), ((_, less),) = first["dice"].items(), second["dice"].items()
        assert 0 < less < dice < 1
        assert stored_form(node, study, edited) == (BINARY, EXPLICIT)  # as our configuration of OHIF says
        assert stored_form(node, study, saved) == (LABEL_MAP, RLE)  # as OHIF does by itself
        assert {each["job_id"] for each in (first, second)} == {job["job_id"]}
        assert len(node.jobs()) == 1  # an edit is no image
        sent = {
            each["sop_instance_uid"]: each["state"]
            for each in node.get_json(f"/api/studies/{study}")["deliveries"]
        }
        assert sent[saved] == "QUEUED"
        assert sent[first["result_uid"]] == sent[edited] == "WITHDRAWN"


def judged(node: Node, sop_instance_uid: str) -> dict[str, Any]:
    """What the node says of an object, once it has compared it."""

    def found() -> dict[str, Any] | None:
        lines = node.get_json("/api/corrections")["corrections"]
        return next(
            (each for each in lines if each["sop_instance_uid"] == sop_instance_uid and each["judged_at"]),
            None,
        )

    line: dict[str, Any] = until(found, "the verdict")
    return line


def stored_form(node: Node, study: str, sop_instance_uid: str) -> tuple[str, str]:
    """SOP class and transfer syntax as the node keeps it."""
    for path in (node.home / "files").rglob("*.dcm"):
        header = dcmread(BytesIO(path.read_bytes()), stop_before_pixels=True)
        if (header.StudyInstanceUID, header.SOPInstanceUID) == (study, sop_instance_uid):
            return str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
    raise AssertionError("it is not stored")
