"""A study with the files in a bucket: received, shown, analysed, delivered, checked, indexed anew."""

import json
from collections.abc import Callable
from pathlib import Path

from dicom_node.demo_pacs import DemoPacs
from storage.s3 import Bucket, S3Files
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.flow.nodes import destination, node_config, running_node, until


def test_a_study_through_a_bucket(
    tmp_path: Path,
    free_port: Callable[[], int],
    tiny_models: Path,
    pacs: DemoPacs,
    pacs_port: int,
    bucket: Bucket,
) -> None:
    storage = {
        "s3_bucket": bucket.name,
        "s3_prefix": bucket.prefix,
        "s3_endpoint_url": bucket.endpoint_url,
        "s3_region": bucket.region,
    }
    config = node_config(free_port, tiny_models, destinations=[destination(pacs_port)], storage=storage)
    image = make_ultrasound(make_ellipse((60, 81), (30, 40), (12, 18)))
    with running_node(tmp_path / "node", config) as node:
        assert node.send(write_datasets(tmp_path / "in", [image]))[0].status == 0x0000
        (job,) = node.wait_for_jobs(1)
        assert (job["state"], job["outcome"]) == ("COMPLETED", "RESULT")
        until(lambda: len(pacs.arrivals()) == 2, "SEG and SR at the PACS")
        uids = (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
        path = "/dicom-web/studies/{}/series/{}/instances/{}".format(*uids)
        status, body = node.get(path)
        assert status == 200
        assert image.PixelData in body
        assert node.get(f"{path}/frames/1")[0] == 200
        assert json.loads(node.command("fsck", "--json"))["is_sound"] is True
    files = S3Files(tmp_path / "spool", bucket)
    assert len(list(files.walk())) == 3
    assert not (node.home / "files" / "objects").exists(), "nothing is kept on the node's disk"
    assert list((node.home / "files" / "incoming").iterdir()) == []
    for part in node.home.glob("node.sqlite*"):
        part.unlink()
    report = json.loads(node.command("rebuild-index", "--json"))
    assert (report["instances"], report["indexed"]) == (3, 3)
    assert json.loads(node.command("fsck", "--json"))["is_sound"] is True
