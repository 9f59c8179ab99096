"""Canary values in forty attributes, through success and thirty failures at DEBUG level: none shows up.

Nowhere: logs, metrics, the audit trail, error answers, broker messages, process arguments, what the commands
print. The files and the index hold them, of course; that is checked too, or the search would prove nothing.
"""

import base64
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import JPEGBaseline8Bit, generate_uid
from pynetdicom import AE, evt

from tests.builders import make_ultrasound, part10
from tests.fake_pacs import fake_pacs
from tests.flow.nodes import REPOSITORY, Node, destination, find_free_port, node_config, running_node, until
from tests.stub_engine import write_stub_package

# The bad values that are sent are bad on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CANARY = "ZQCANARY"
ATTRIBUTES = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName",
    "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "EthnicGroup",
    "Occupation", "AdditionalPatientHistory", "MedicalAlerts", "Allergies", "MilitaryRank",
    "BranchOfService", "RegionOfResidence", "CountryOfResidence", "PatientReligiousPreference",
    "IssuerOfPatientID", "AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription",
    "ReferringPhysicianName", "PhysiciansOfRecord", "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy", "OperatorsName", "RequestingPhysician", "InstitutionName",
    "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "ProtocolName",
    "RequestedProcedureDescription", "RequestedProcedureID", "PerformedProcedureStepDescription",
    "AdmittingDiagnosesDescription", "CurrentPatientLocation", "ImageComments", "ReasonForStudy",
)  # fmt: skip
CT = "1.2.840.10008.5.1.4.1.1.2"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
CRASH, NONSENSE = "ZQ-CRASH", "ZQ-NONSENSE"  # Station-like words of the rules, no patient's
JSON = "application/dicom+json"


def marked(dataset: Dataset) -> Dataset:
    """`dataset` with a canary in every attribute, each of its own."""
    for number, keyword in enumerate(ATTRIBUTES):
        word = f"{CANARY}{number:02d}"
        setattr(
            dataset,
            keyword,
            f"{word}^X" if dictionary_VR((0x0010, 0x0010)) == dictionary_VR(keyword) else word,
        )
    return dataset


def fresh(**changes: Any) -> Dataset:
    dataset = marked(make_ultrasound())
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


@dataclass
class Trial:
    """The node, and every answer that it gave."""

    node: Node
    folder: Path
    first: Dataset
    answers: list[bytes] = field(default_factory=list)
    statuses: dict[str, object] = field(default_factory=dict)

    def http(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        http_settings = self.node.settings.http
        connection = http.client.HTTPConnection(http_settings.host, http_settings.port, timeout=60)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, names)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status >= 400:  # what succeeds may show what was asked for
            self.answers.append(content + str(answer.getheaders()).encode())
        connection.close()
        return answer.status

    def stow(self, *objects: bytes, path: str = "/dicom-web/studies", end: bytes = b"--b--\r\n") -> int:
        parts = b"".join(
            b"--b\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in objects
        )
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        return self.http("POST", path, parts + end, Content_Type=kind, Accept=JSON)

    def store(self, dataset: Dataset, encoded: bytes | None = None, sop_class: str = "") -> int | None:
        """C-STORE of any bytes under the UIDs of `dataset`."""
        meta = deepcopy(dataset.file_meta)
        meta.MediaStorageSOPClassUID = sop_class or meta.MediaStorageSOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        head = DicomBytesIO(b"\0" * 128 + b"DICM")
        head.seek(132)
        write_file_meta_info(head, meta)
        path = self.folder / "to-send.dcm"
        path.write_bytes(head.getvalue() + (encode(dataset) if encoded is None else encoded))
        (status,) = self.node.send([path])
        self.answers.append(status.detail.encode())
        return status.status

    def query(self, sop_class: str, **keys: str) -> list[int]:
        ae: Any = AE("SCANNER")
        ae.add_requested_context(sop_class)
        peer = self.node.peer
        association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title)
        identifier = Dataset()
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        if sop_class == MOVE:
            found = list(association.send_c_move(identifier, "NOBODY", sop_class))
        else:
            found = list(association.send_c_find(identifier, sop_class))
        association.release()
        for status, _ in found:
            self.answers.append(str(status).encode())
        return [int(status.get("Status", -1)) for status, _ in found]

    def command(self, *words: str) -> None:
        arguments = [sys.executable, "-m", "dicom_node", *words, "--home", str(self.node.home)]
        done = subprocess.run(
            [*arguments, "--config", str(self.node.config)], cwd=REPOSITORY, capture_output=True, check=False
        )
        self.answers.append(done.stdout + done.stderr)


def encode(dataset: Dataset) -> bytes:
    bare = Dataset()
    bare.update(dataset)
    buffer = BytesIO()
    dcmwrite(buffer, bare, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    inner = Dataset()
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = [inner]
        outer.TextValue = CANARY
        inner = outer
    dataset = fresh()
    dataset.ContentSequence = inner.ContentSequence
    return encode(dataset)


def without(keyword: str) -> Dataset:
    dataset = fresh()
    delattr(dataset, keyword)
    return dataset


def conflicting(trial: Trial) -> Dataset:
    other = deepcopy(trial.first)
    other.PatientComments = f"{CANARY} changed"
    return other


def undecodable() -> Dataset:
    dataset = fresh(PatientComments=CANARY)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = (
        b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x08\0\0\0" + CANARY.encode() + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def aborted(trial: Trial) -> None:
    peer = trial.node.peer
    with socket.create_connection((peer.host, peer.port), timeout=10) as connection:
        connection.sendall(b"\x04\0\0\0\x10\0" + CANARY.encode() + b"\0" * 16)
        with suppress(OSError):
            trial.answers.append(connection.recv(4096))


def rejected(trial: Trial) -> int | None:
    note = fresh(Modality="KO")
    note.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.59"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "113001", "DCM", CANARY
    note.ConceptNameCodeSequence = [title]
    evidence, series = Dataset(), Dataset()
    series.ReferencedSOPSequence = [Dataset()]  # without the UIDs it should have
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = CANARY, [series]
    note.CurrentRequestedProcedureEvidenceSequence = [evidence]
    return trial.store(note, sop_class=str(note.SOPClassUID))


Path_ = Callable[[Trial], object]
TRUNCATED = slice(0, -777)
FAILURES: dict[str, Path_] = {
    "a truncated C-STORE": lambda t: t.store(fresh(), encode(fresh())[TRUNCATED]),
    "garbage by C-STORE": lambda t: t.store(fresh(), CANARY.encode() * 500),
    "an unknown VR": lambda t: t.store(fresh(), encode(fresh()).replace(b"PN", b"Q9")),
    "other UIDs than announced": lambda t: t.store(fresh(), encode(fresh())),
    "no Study Instance UID": lambda t: t.store(without("StudyInstanceUID")),
    "no SOP Class UID": lambda t: t.store(without("SOPClassUID")),
    "an illegal UID": lambda t: t.store(fresh(SeriesInstanceUID=CANARY)),
    "deep nesting": lambda t: t.store(fresh(), nested(90)),
    "the same UID with other content": lambda t: t.store(conflicting(t)),
    "another patient in the study": lambda t: t.store(
        fresh(StudyInstanceUID=t.first.StudyInstanceUID, PatientID=f"{CANARY}-OTHER")
    ),
    "another series of a known UID": lambda t: t.store(fresh(SeriesInstanceUID=t.first.SeriesInstanceUID)),
    "another SOP class": lambda t: t.store(fresh(), sop_class=CT),
    "an unknown character set": lambda t: t.store(fresh(SpecificCharacterSet=CANARY)),
    "an endless name": lambda t: t.store(fresh(PatientComments=CANARY * 8000)),
    "a PDU in the wrong state": aborted,
    "a rejection note that cannot be read": rejected,
    "truncated STOW": lambda t: t.stow(part10(fresh())[TRUNCATED]),
    "STOW without its end": lambda t: t.stow(part10(fresh()), end=b""),
    "garbage by STOW": lambda t: t.stow(CANARY.encode() * 500),
    "STOW into another study": lambda t: t.stow(part10(fresh()), path="/dicom-web/studies/1.2.3"),
    "STOW of a conflict": lambda t: t.stow(part10(conflicting(t))),
    "STOW of the wrong type": lambda t: t.http(
        "POST", "/dicom-web/studies", CANARY.encode(), Content_Type="text/csv"
    ),
    "STOW of broken metadata": lambda t: t.http(
        "POST",
        "/dicom-web/studies",
        b'--b\r\nContent-Type: application/dicom+json\r\n\r\n[{"00100010": '
        + CANARY.encode()
        + b"]\r\n--b--\r\n",
        Content_Type=f'multipart/related; type="{JSON}"; boundary=b',
    ),
    "a bad limit": lambda t: t.http("GET", f"/dicom-web/studies?PatientName={CANARY}&limit=many"),
    "an unknown attribute": lambda t: t.http("GET", f"/dicom-web/studies?{CANARY}={CANARY}"),
    "a bad date": lambda t: t.http("GET", f"/dicom-web/studies?StudyDate={CANARY}"),
    "a path that is no UID": lambda t: t.http("GET", f"/dicom-web/studies/{CANARY}/series"),
    "a path that is nothing": lambda t: t.http("GET", f"/{CANARY}?name={CANARY}"),
    "a type that is not given": lambda t: t.http(
        "GET", f"/dicom-web/studies/{t.first.StudyInstanceUID}", Accept=f"image/{CANARY}"
    ),
    "a frame that is not there": lambda t: t.http(
        "GET",
        f"/dicom-web/studies/{t.first.StudyInstanceUID}/series/{t.first.SeriesInstanceUID}"
        f"/instances/{t.first.SOPInstanceUID}/frames/99",
    ),
    "a method that is not offered": lambda t: t.http("DELETE", f"/dicom-web/studies/{CANARY}"),
    "a broken workitem": lambda t: t.http(
        "POST", "/dicom-web/workitems", f'[{{"00100010": "{CANARY}"'.encode(), Content_Type=JSON
    ),
    "an operator's bad page": lambda t: t.http("GET", f"/api/jobs?limit={CANARY}"),
    "C-FIND at an unknown level": lambda t: t.query(FIND, QueryRetrieveLevel=CANARY, PatientName=CANARY),
    "C-FIND by a bad date": lambda t: t.query(
        FIND, QueryRetrieveLevel="STUDY", StudyDate=CANARY, PatientName=f"{CANARY}*"
    ),
    "C-MOVE to nobody": lambda t: t.query(
        MOVE, QueryRetrieveLevel="STUDY", StudyInstanceUID=str(t.first.StudyInstanceUID)
    ),
    "pixels that cannot be decoded": lambda t: t.stow(part10(undecodable())),
    "a model that crashes": lambda t: t.store(fresh(BodyPartExamined=CRASH)),
    "a model that talks nonsense": lambda t: t.store(fresh(BodyPartExamined=NONSENSE)),
    "fsck of a lost file": lambda t: t.command("fsck"),
    "redelivery of nothing": lambda t: t.command("redeliver", "nothing"),
}


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    """A node at DEBUG level, whose PACS refuses everything and repeats a canary in its answer."""
    port = find_free_port()

    def refuse(event: evt.Event) -> Dataset:
        del event
        status = Dataset()
        status.Status, status.ErrorComment = 0xC000, f"{CANARY} is not known here"
        return status

    routes = [
        {"name": "crash", "body_part": [CRASH], "model": "sim4seg-s", "query": "stub crash"},
        {"name": "nonsense", "body_part": [NONSENSE], "model": "sim4seg-s", "query": "stub nonsense"},
        {"name": "all", "modality": ["US"], "model": "sim4seg-s", "query": "Outline it.", "target": "lesion"},
    ]
    models = write_stub_package(tmp_path / "models")
    config = node_config(
        find_free_port,
        models,
        logs={"level": "DEBUG"},
        inference={"test_mode": True},
        jobs={"max_attempts": 2, "first_retry_s": 0.1, "max_retry_s": 0.1},
        delivery={"slow_retry_s": 0.3},
        destinations=[destination(port, "PACS"), destination(find_free_port(), "DOWN") | {"name": "down"}],
        peers=[{"name": "scanner", "ae_title": "SCANNER", "host": "127.0.0.1", "port": find_free_port()}],
        routes=routes,
    )
    with (
        fake_pacs(port, handlers=[(evt.EVT_C_STORE, refuse)]),
        running_node(tmp_path / "node", config) as node,
    ):
        yield Trial(node, tmp_path, fresh())


def needles() -> list[bytes]:
    """The canary as it is, in hexadecimal, as UTF-16 and in the three places of base64."""
    word = CANARY.encode()
    encoded = [base64.b64encode(b"\0" * shift + word)[4:-4] for shift in range(3)]
    return [word, word.lower(), word.hex().encode(), CANARY.encode("utf-16-le"), *encoded]


def hits(content: bytes) -> list[bytes]:
    return [needle for needle in needles() if needle in content]


def arguments_of(node: Node) -> dict[str, bytes]:
    """The command lines of the node's processes and of all their descendants."""
    lines: dict[str, bytes] = {}
    waiting = [node.process.pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        with suppress(OSError):  # it has ended
            lines[str(process)] = (process / "cmdline").read_bytes()
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return lines


@pytest.mark.timeout(900)
def test_canaries_show_up_nowhere(trial: Trial) -> None:
    assert len(ATTRIBUTES) >= 40
    assert len(FAILURES) >= 30
    node = trial.node
    seen: dict[str, list[bytes]] = {}

    def look(name: str, content: bytes) -> None:
        if found := hits(content):
            seen[name] = found

    assert trial.store(trial.first) == 0x0000
    assert trial.stow(part10(fresh())) == 200
    node.wait_for_jobs(2)
    assert trial.query(FIND, QueryRetrieveLevel="STUDY", PatientName=f"{CANARY}*")[0] == 0xFF00
    assert trial.http("GET", f"/dicom-web/studies?PatientName={CANARY}*") == 200
    for name, fail in FAILURES.items():
        trial.statuses[name] = fail(trial)
        for process, line in arguments_of(node).items():
            look(f"arguments of {process} after {name}", line)
    refused = {
        name for name, status in trial.statuses.items() if isinstance(status, int) and status >= 0x0100
    }
    assert len(refused) >= 20, trial.statuses

    def all_settled() -> bool:
        jobs = node.jobs()
        return len(jobs) >= 5 and all(job["state"] in {"COMPLETED", "CANCELED"} for job in jobs)

    until(all_settled, "the jobs to end", 120)
    until(lambda: b"0xC000" in node.get("/api/studies")[1] or _was_refused(node), "a delivery to be refused")
    trial.command("jobs")
    trial.command("deliveries")
    for number, answer in enumerate(trial.answers):
        look(f"answer {number}: {answer[:300]!r}", answer)
    for path in ("/metrics", "/health/ready", "/health/live", "/api/jobs"):
        look(path, node.get(path)[1])
    folders = [node.home / name for name in ("logs", "run", "broker", "audit")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} >= {"logs", "run", "audit"}
    for file in files:
        look(str(file), file.read_bytes())
    assert seen == {}
    # The search finds what it should: the index and the files do hold them.
    assert any(hits(file.read_bytes()) for file in node.home.glob("node.sqlite*"))
    assert any(hits(file.read_bytes()) for file in (node.home / "files").rglob("*.dcm"))
    logged = b"".join(file.read_bytes() for file in (node.home / "logs").glob("*"))
    assert b'"level": "DEBUG"' in logged
    assert str(trial.first.SOPInstanceUID).encode() in logged
    told = b"".join(file.read_bytes() for file in (node.home / "audit").glob("*.jsonl"))
    assert str(trial.first.StudyInstanceUID).encode() in told


def _was_refused(node: Node) -> bool:
    from storage.worklist import newest_deliveries

    with node.database.reading() as tx:
        return any(row.last_status == "0xC000" for row in newest_deliveries(tx))


def test_the_search_can_fail() -> None:
    for shift in range(3):
        assert hits(base64.b64encode(b"x" * shift + b"name " + CANARY.encode() + b"!"))
    assert hits(json.dumps({"name": CANARY}).encode())
    assert hits(b"nothing of the kind") == []
