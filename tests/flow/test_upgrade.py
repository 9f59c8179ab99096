"""A home of the release before is upgraded, and the work that waits in it ends; there is no way back."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from pydicom.dataset import Dataset
from sqlalchemy import create_engine, text

from dicom_node.demo_pacs import DemoPacs
from storage.database import migration_config
from storage.worklist import newest_deliveries
from tests.builders import make_ellipse, make_ultrasound, part10
from tests.flow.nodes import Node, destination, node_config, running_node, until, write_config
from tests.flow.nodes import command as dicom_node

BEFORE = "0003"


def home_of_the_release_before(home: Path) -> tuple[Dataset, Dataset]:
    """A study with a job that is scheduled, and a result in the outbox; gives both data sets."""
    home.mkdir()
    engine = create_engine(f"sqlite:///{home / 'node.sqlite'}")
    image = make_ultrasound(make_ellipse((60, 81), (30, 40), (12, 18)))
    waiting = make_ultrasound(make_ellipse((60, 81), (30, 40), (8, 9)))
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), BEFORE)
        for dataset in (image, waiting):
            _insert(connection, dataset, _old_file(home / "files", part10(dataset)))
        _insert_work(connection, image, waiting)
    engine.dispose()
    return image, waiting


def _insert_work(connection, image: Dataset, waiting: Dataset) -> None:
    """A job and a delivery that were tried once."""
    _row(
        connection,
        "job",
        job_id="a" * 32,
        study_instance_uid=image.StudyInstanceUID,
        study_version=1,
        series_instance_uid=image.SeriesInstanceUID,
        rule="breast",
        model="sim4seg-s",
        query="Outline the lesion.",
        target="lesion",
        priority=0,
        state="SCHEDULED",
        created_at=1.0,
        fence=1,
        attempts=1,
    )
    _row(
        connection,
        "job_attempt",
        job_id="a" * 32,
        attempt=1,
        worker="old:1",
        started_at=1.0,
        error="killed",
    )
    _row(
        connection,
        "delivery",
        delivery_id="b" * 32,
        sop_instance_uid=waiting.SOPInstanceUID,
        destination="pacs",
        state="QUEUED",
        created_at=1.0,
        fence=1,
        attempts=1,
    )
    _row(
        connection,
        "delivery_attempt",
        delivery_id="b" * 32,
        attempt=1,
        worker="old:2",
        started_at=1.0,
        status="0xA700",
    )
    # The outbox gives up after a week by created_at: this one is young.
    connection.execute(text("UPDATE delivery SET created_at = strftime('%s', 'now')"))


def _old_file(files_root: Path, content: bytes) -> tuple[str, str, int]:
    """Where earlier versions put a file: one folder deeper."""
    digest = hashlib.sha256(content).hexdigest()
    path = f"objects/{digest[:2]}/{digest[2:4]}/{digest}.dcm"
    (files_root / path).parent.mkdir(parents=True)
    (files_root / path).write_bytes(content)
    return path, digest, len(content)


def _insert(connection, dataset: Dataset, stored: tuple[str, str, int]) -> None:
    names = (
        "patient_birth_date", "patient_sex", "study_time", "accession_number", "study_description",
        "study_id", "referring_physician_name", "referring_physician_name_folded",
    )  # fmt: skip
    _row(
        connection,
        "study",
        study_instance_uid=dataset.StudyInstanceUID,
        patient_id=dataset.PatientID,
        patient_name=str(dataset.PatientName),
        patient_name_folded=str(dataset.PatientName).casefold(),
        study_date="20260101",
        version=1,
        created_at=1.0,
        last_received_at=1.0,
        completed_at=2.0,
        **dict.fromkeys(names, ""),
    )
    _row(
        connection,
        "series",
        series_instance_uid=dataset.SeriesInstanceUID,
        study_instance_uid=dataset.StudyInstanceUID,
        modality="US",
        is_own_result=False,
        **dict.fromkeys(("series_description", "body_part_examined", "series_date", "series_time"), ""),
        laterality="",
    )
    _row(
        connection,
        "instance",
        sop_instance_uid=dataset.SOPInstanceUID,
        series_instance_uid=dataset.SeriesInstanceUID,
        study_instance_uid=dataset.StudyInstanceUID,
        sop_class_uid=dataset.SOPClassUID,
        transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
        path=stored[0],
        sha256=stored[1],
        size_bytes=stored[2],
        origin_kind="DIMSE",
        origin_detail="SCANNER",
        received_at=1.0,
    )


def _row(connection, table: str, **values: object) -> None:
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    plain = {name: str(value) if isinstance(value, str) else value for name, value in values.items()}
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), plain)


def states(node: Node) -> set[str]:
    with node.database.reading() as tx:
        return {row.state for row in newest_deliveries(tx)}


def test_work_that_waited_ends_after_the_upgrade(
    tmp_path: Path, free_port: Callable[[], int], tiny_models: Path, pacs: DemoPacs, pacs_port: int
) -> None:
    home = tmp_path / "node"
    image, waiting = home_of_the_release_before(home)
    config = node_config(free_port, tiny_models, destinations=[destination(pacs_port)])
    path = write_config(tmp_path / "first.toml", config)
    refused = dicom_node("jobs", "--home", str(home), "--config", str(path), status=2)
    assert "dicom-node migrate" in refused, "an old home is upgraded by `serve` and `migrate` only"

    with running_node(home, config) as node:
        (job,) = node.wait_for_jobs(1)
        assert (job["state"], job["outcome"], job["attempts"]) == ("COMPLETED", "RESULT", 2)
        until(lambda: len(pacs.arrivals()) == 3, "SEG, SR and what waited at the PACS", limit_s=120)
        assert {arrival.kind for arrival in pacs.arrivals()} >= {"SEG", "SR"}
        until(lambda: states(node) <= {"DELIVERED", "CONFIRMED"}, "all deliveries to be over")
        assert len(node.jobs()) == 1
        assert node.study(str(image.StudyInstanceUID)) is not None
        assert '"is_sound": true' in node.command("fsck", "--json")
        assert waiting.SOPInstanceUID != image.SOPInstanceUID


@pytest.mark.parametrize("command", [("serve",), ("scp",), ("migrate",), ("fsck", "--repair")])
def test_a_newer_home_is_refused_and_not_touched(
    tmp_path: Path, free_port: Callable[[], int], command: tuple[str, ...]
) -> None:
    home = tmp_path / "node"
    dicom_node("migrate", "--home", str(home))
    connection = sqlite3.connect(home / "node.sqlite", isolation_level=None)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    before = hashlib.sha256((home / "node.sqlite").read_bytes()).hexdigest()
    config = write_config(tmp_path / "node.toml", {name: {"port": free_port()} for name in ("dimse", "http")})
    told = dicom_node(*command, "--home", str(home), "--config", str(config), status=2)
    assert "9999" in told
    assert "newer program" in told
    assert hashlib.sha256((home / "node.sqlite").read_bytes()).hexdigest() == before
