import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.logs import FIELDS, JsonFormatter, configure_logging, safe_text
from storage.errors import InstanceMissing
from storage.tables import Study

SECRET = "DOE^JOHN"
PATIENT_COLUMNS = {
    "patient_id", "patient_name", "patient_birth_date", "patient_sex", "accession_number",
    "study_description", "study_id", "referring_physician_name", "study_date", "study_time",
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The log file of this process; logging is as before afterwards."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging(tmp_path, "part", "INFO")
    yield tmp_path / "logs" / "part.log"
    logging.captureWarnings(capture=False)
    for handler in root.handlers[:]:
        handler.close()
        root.removeHandler(handler)
    root.handlers, root.level = handlers, level


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_line_is_json_with_ids(log: Path) -> None:
    logging.getLogger("dicom_node.x").info("job finished", extra={"job_id": "abc", "seconds": 1.5})
    (line,) = lines(log)
    assert (line["message"], line["job_id"], line["seconds"], line["level"]) == (
        "job finished",
        "abc",
        1.5,
        "INFO",
    )


def test_an_error_that_ends_a_thread_is_told_without_its_text(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise LookupError(SECRET)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = lines(log)
    assert (line["level"], line["message"]) == ("CRITICAL", "an error ended a thread")
    assert "LookupError" in str(line["exception"])
    assert SECRET not in log.read_text() + "".join(capfd.readouterr())


def test_an_error_that_ends_the_process_is_told_without_its_text(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dicom_node.logs import configure_logging\n"
        "configure_logging(Path(sys.argv[1]), 'part', 'INFO')\n"
        f"raise LookupError({SECRET!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    told = (tmp_path / "logs" / "part.log").read_text()
    assert done.returncode == 1
    assert "an error ended the process" in told
    assert SECRET not in told + done.stdout + done.stderr


def test_a_patient_attribute_given_as_extra_is_left_out(log: Path) -> None:
    logging.getLogger("dicom_node.x").info(
        "stored", extra={"patient_name": SECRET, "sop_instance_uid": "1.2"}
    )
    assert lines(log)[0]["sop_instance_uid"] == "1.2"
    assert SECRET not in log.read_text()


def test_no_column_that_names_a_patient_is_a_field() -> None:
    assert set(Study.__table__.columns.keys()) >= PATIENT_COLUMNS
    assert not FIELDS & PATIENT_COLUMNS


@pytest.mark.parametrize("name", ["pydicom", "pynetdicom.acse", "highdicom.seg", "sqlalchemy.engine", "PIL"])
def test_texts_of_others_are_withheld(log: Path, name: str) -> None:
    logging.getLogger(name).error("invalid value %s", SECRET)
    assert SECRET not in log.read_text()
    assert "test_logs.py" in str(lines(log)[0]["where"])


def test_warnings_are_withheld(log: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn(f"Invalid value for VR DA: '{SECRET}'", stacklevel=1)
    assert SECRET not in log.read_text()
    assert lines(log)[0]["logger"] == "py.warnings"


def test_an_exception_of_others_keeps_its_place_and_loses_its_text(log: Path) -> None:
    try:
        raise ValueError(f"could not convert {SECRET}")
    except ValueError:
        logging.getLogger("dicom_node.tasks").exception("attempt failed")
    (line,) = lines(log)
    assert SECRET not in log.read_text()
    assert isinstance(line["exception"], dict)
    assert line["exception"]["kind"] == "builtins.ValueError"
    assert "test_logs.py" in line["exception"]["places"][0]


def test_an_exception_of_ours_keeps_its_text() -> None:
    try:
        raise InstanceMissing("the file of 1.2.3 is not here")
    except InstanceMissing:
        record = logging.LogRecord("dicom_node", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())
    assert json.loads(JsonFormatter().format(record))["exception"]["text"] == "the file of 1.2.3 is not here"


def test_what_rows_and_answers_say_of_an_error() -> None:
    assert safe_text(InstanceMissing("gone")) == "gone"
    assert safe_text(ValueError(SECRET)) == "ValueError"
    assert (
        safe_text(FileNotFoundError(2, "No such file", f"/data/{SECRET}"))
        == "FileNotFoundError: No such file"
    )


def test_access_logs_are_off(log: Path) -> None:
    logging.getLogger("uvicorn.access").info("GET /dicom-web/studies?PatientName=%s", SECRET)
    assert log.read_text() == ""
