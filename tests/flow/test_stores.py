"""The main flow from outside on all stores: SQLite and PostgreSQL, the embedded broker and real ones."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import Dataset
from sqlalchemy import select

from storage.tables import Instance
from tests.builders import make_ellipse, make_ultrasound, write_datasets
from tests.fake_pacs import FakePacs, fake_pacs
from tests.flow.brokers import rabbitmq, redis
from tests.flow.nodes import Node, destination, find_free_port, node_config, running_node, until
from tests.storage.postgresql_server import create_database, running_postgresql
from tests.stub_engine import write_stub_package
from tests.ward import rejection_note, stack

EMBEDDED = "filesystem://"
Broker = Callable[[Path], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with running_postgresql() as url:
        yield url


@pytest.fixture(
    params=[
        ("sqlite", lambda _: nullcontext(EMBEDDED)),
        ("postgresql", redis),
        ("postgresql", rabbitmq),
    ],
    ids=["sqlite-embedded", "postgresql-redis", "postgresql-rabbitmq"],
)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Sections of a configuration: where the index is, and the broker."""
    kind, broker = request.param
    folder = tmp_path / "broker"
    folder.mkdir()
    name = f"flow_{request.param_index}"
    storage = {}
    if kind == "postgresql":
        storage["database_url"] = create_database(request.getfixturevalue("postgresql"), name)
    with broker(folder) as url:
        yield {"storage": storage, "broker": {"url": url}}


class Story:
    """A node on some stores, its PACS, and what is sent."""

    def __init__(self, node: Node, pacs: FakePacs, folder: Path) -> None:
        self.node, self.pacs, self.folder = node, pacs, folder
        self._sent = 0

    def send(self, *images: Dataset) -> list[int | None]:
        self._sent += 1
        paths = write_datasets(self.folder / f"sent-{self._sent}", images)
        return [sent.status for sent in self.node.send(paths)]

    def wait(self, jobs: int) -> None:
        """Until so many jobs are done, and the PACS has SEG and SR of each."""
        done = self.node.wait_for_jobs(jobs, 150)
        assert [(job["state"], job["outcome"], job["attempts"]) for job in done] == [
            ("COMPLETED", "RESULT", 1)
        ] * jobs
        until(lambda: len(self.pacs.kept) == 2 * jobs, "the results at the PACS", 150)

    def results(self, study: Dataset) -> dict[str | None, list[Instance]]:
        """Our own results for a study, by how they were retired; the current ones under None."""
        with self.node.database.reading() as tx:
            rows = tx.scalars(
                select(Instance)
                .where(Instance.study_instance_uid == str(study.StudyInstanceUID))
                .where(Instance.origin_kind == "OWN RESULT")
            ).all()
        return {
            mark: [row for row in rows if row.retired_as == mark] for mark in {r.retired_as for r in rows}
        }

    def found(self, study: Dataset) -> Counter[str]:
        """What a search shows of a study, by modality."""
        path = f"/dicom-web/studies/{study.StudyInstanceUID}/instances?includefield=Modality"
        return Counter(each["00080060"]["Value"][0] for each in self.node.get_json(path))

    def report(self, results: list[Instance]) -> str:
        (row,) = (row for row in results if row.number_of_frames is None)
        return pydicom.dcmread(self.node.home / "files" / row.path).to_json()


@pytest.mark.timeout(600)
def test_the_main_flow(stores: dict[str, Any], tmp_path: Path) -> None:
    port = find_free_port()
    config = node_config(
        find_free_port,
        write_stub_package(tmp_path / "models"),
        destinations=[destination(port, "PACS")],
        inference={"test_mode": True},
        completion={"quiet_period_s": 2.5},  # a busy machine must not take a pause for the study's end
        jobs={"lease_s": 60.0},
        delivery={"lease_s": 60.0},
        **stores,
    )
    with fake_pacs(port) as pacs, running_node(tmp_path / "node", config) as node:
        story = Story(node, pacs, tmp_path)
        growing, rejected = stack(3), stack(3)
        single = make_ultrasound(make_ellipse((60, 81), (30, 40), (12, 18)))
        assert story.send(*growing[:2], *rejected, single) == [0x0000] * 6
        story.wait(3)
        before = story.results(growing[0])[None]

        changed = deepcopy(single)
        changed.PatientComments = "other content under the same UID"
        assert story.send(single) == [0x0000], "known already"
        assert story.send(changed) == [0x0111]
        assert story.send(growing[2], rejection_note("113001", rejected[1])) == [0x0000] * 2
        story.wait(5)

        # A late image: the second version names the first and takes its place.
        after = story.results(growing[0])
        assert {row.sop_instance_uid for row in after["SUPERSEDED"]} == {r.sop_instance_uid for r in before}
        assert all(
            row.sop_instance_uid in story.report(after[None]) for row in before if not row.number_of_frames
        )
        assert story.found(growing[0]) == Counter(MR=3, SEG=1, SR=1)
        study = node.study(str(growing[0].StudyInstanceUID))
        assert study is not None
        assert study.version == 2
        # A rejected image is gone, and so is the result that had seen it.
        assert len(story.results(rejected[0])["WITHDRAWN"]) == 2
        assert str(rejected[1].SOPInstanceUID) not in story.report(story.results(rejected[0])[None])
        assert story.found(rejected[0]) == Counter(MR=2, KO=1, SEG=1, SR=1)
        # The duplicate and the conflict made no work.
        assert story.found(single) == Counter(US=1, SEG=1, SR=1)
        by_study = Counter(job["study_instance_uid"] for job in node.jobs())
        assert sorted(by_study.values()) == [1, 2, 2]

        assert set(pacs.times.values()) == {1}, "each result came exactly once"
        assert {arrival.status for arrival in pacs.arrivals} == {0x0000}
        assert json.loads(node.command("fsck", "--json"))["is_sound"] is True
        is_embedded = stores["broker"]["url"] == EMBEDDED
        assert (node.home / "broker").exists() == is_embedded
        assert list(node.home.glob("node.sqlite")) == (
            [] if stores["storage"] else [node.home / "node.sqlite"]
        )
        assert "guest:guest" not in node.logs()
