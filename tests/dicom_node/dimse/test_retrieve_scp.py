"""C-MOVE and C-GET by DCMTK and pynetdicom: the same bytes, the right counts, and who may be called."""

import os
import subprocess
import threading

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless
from pynetdicom import AE, build_role, evt

from dicom_node.dimse.query_model import PATIENT_ROOT, STUDY_ROOT
from tests.damage import HARM, harm
from tests.dicom_node.dimse.instances import CT, ULTRASOUND, data_set_bytes, make_image
from tests.dicom_node.dimse.queries import identifier

CLASSES = (CT, ULTRASOUND)
SUCCESS, CANCELED = 0x0000, 0xFE00


class Archive:
    """A pynetdicom AE that takes instances; `statuses` in turn, then success."""

    def __init__(self, port, syntaxes, statuses=(), before=None):
        self.port, self.received, self.originators = port, {}, []
        self._statuses, self._before = iter(statuses), before
        ae = AE("ARCHIVE")
        for sop_class in CLASSES:
            ae.add_supported_context(sop_class, list(syntaxes))
        handlers = [(evt.EVT_C_STORE, self.take)]
        self.server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def take(self, event):
        if self._before is not None:
            self._before(event)
        status = next(self._statuses, SUCCESS)
        if status == SUCCESS:
            encoded = event.request.DataSet.getvalue()
            self.received[str(event.request.AffectedSOPInstanceUID)] = event.context.transfer_syntax, encoded
        request = event.request
        self.originators.append(
            (request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID)
        )
        return status

    @property
    def entry(self):
        return {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": self.port}


@pytest.fixture
def archive(free_port):
    archives = []

    def start(*syntaxes, **options):
        archives.append(Archive(free_port(), syntaxes or (ExplicitVRLittleEndian,), **options))
        return archives[-1]

    yield start
    for started in archives:
        started.server.shutdown()


def study_of(count, **attributes):
    first = make_image(**attributes)
    uids = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    return [first, *(make_image(**uids, **attributes) for _ in range(count - 1))]


def responses(node, asked, model, destination=None, handlers=(), cancel_after=None, syntaxes=None):
    """Every (status, identifier) of a C-MOVE to `destination`, or of a C-GET."""
    ae = AE("TESTER")
    service = model.get if destination is None else model.move
    ae.add_requested_context(service)
    roles = []
    if destination is None:
        for sop_class in CLASSES:
            ae.add_requested_context(sop_class, list(syntaxes or (ExplicitVRLittleEndian,)))
            roles.append(build_role(sop_class, scp_role=True))
    association = ae.associate(
        "127.0.0.1", node.port, ae_title="SIM4SEG", ext_neg=roles, evt_handlers=list(handlers)
    )
    assert association.is_established
    try:
        found = []
        if destination is None:
            answers = association.send_c_get(asked, service, msg_id=9)
        else:
            answers = association.send_c_move(asked, destination, service, msg_id=9)
        for status, failed in answers:
            found.append((status, failed))
            if len(found) == cancel_after:
                association.send_c_cancel(9, query_model=service)
        return found
    finally:
        association.release()


def counts(status):
    names = ("Remaining", "Completed", "Failed", "Warning")
    return tuple(status.get(f"NumberOf{name}Suboperations") for name in names)


def dcmtk(program, node, *arguments):
    command = [program, "-aec", "SIM4SEG", *arguments]
    environment = os.environ | {"TCP_NODELAY": "1"}
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_movescu_brings_a_study_byte_for_byte(node, keep, archive):
    taker = archive()
    datasets = study_of(3)
    paths = keep(*datasets, make_image())
    running = node(peers=[taker.entry])
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={datasets[0].StudyInstanceUID}"]
    done = dcmtk("movescu", running, "-v", "-S", "-aem", "ARCHIVE", *keys, "127.0.0.1", running.port)
    assert done.returncode == 0, done.stderr
    for dataset, path in zip(datasets, paths, strict=False):
        assert taker.received[dataset.SOPInstanceUID][1] == data_set_bytes(path.read_bytes())
    assert len(taker.received) == 3
    assert {title for title, _ in taker.originators} == {"MOVESCU"}


def test_getscu_brings_a_series(node, keep, tmp_path):
    datasets = study_of(2)
    keep(*datasets)
    running = node()
    keys = ["-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={datasets[0].StudyInstanceUID}"]
    keys += ["-k", f"SeriesInstanceUID={datasets[0].SeriesInstanceUID}"]
    folder = tmp_path / "got"
    folder.mkdir()
    done = dcmtk("getscu", running, "-S", "-od", folder, *keys, "127.0.0.1", running.port)
    assert done.returncode == 0, done.stderr
    got = {dataset.SOPInstanceUID: dataset for dataset in map(dcmread, folder.iterdir())}
    assert set(got) == {dataset.SOPInstanceUID for dataset in datasets}
    for dataset in datasets:
        assert (got[dataset.SOPInstanceUID].pixel_array == dataset.pixel_array).all()


@pytest.mark.parametrize("level", ["PATIENT", "STUDY", "SERIES", "IMAGE"])
def test_every_level_of_the_patient_root(node, keep, archive, level):
    taker = archive()
    first, second = study_of(2, PatientID="P-9")
    keep(first, second, make_image(PatientID="P-8"))
    keys = {
        "PATIENT": {"PatientID": "P-9"},
        "STUDY": {"PatientID": "P-9", "StudyInstanceUID": first.StudyInstanceUID},
        "SERIES": {"SeriesInstanceUID": first.SeriesInstanceUID},
        "IMAGE": {"SOPInstanceUID": [first.SOPInstanceUID]},
    }[level]
    found = responses(node(peers=[taker.entry]), identifier(level, **keys), PATIENT_ROOT, "ARCHIVE")
    assert found[-1][0].Status == SUCCESS
    expected = {first.SOPInstanceUID} | (set() if level == "IMAGE" else {second.SOPInstanceUID})
    assert set(taker.received) == expected


def test_the_counts_go_down_and_up(node, keep, archive):
    taker = archive(statuses=[SUCCESS, 0xA700, 0xB007, SUCCESS])
    datasets = study_of(4)
    keep(*datasets)
    asked = identifier("STUDY", StudyInstanceUID=datasets[0].StudyInstanceUID)
    found = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")
    statuses = [status.Status for status, _ in found]
    assert statuses == [0xFF00, 0xFF00, 0xFF00, 0xB000]
    assert [counts(status) for status, _ in found] == [
        (3, 1, 0, 0), (2, 1, 1, 0), (1, 1, 1, 1), (None, 2, 1, 1),
    ]  # fmt: skip
    assert len(found[-1][1].FailedSOPInstanceUIDList.split("\\")) == 1
    assert found[-1][1].FailedSOPInstanceUIDList in {dataset.SOPInstanceUID for dataset in datasets}


def test_when_every_instance_fails_it_says_so(node, keep, archive):
    taker = archive(statuses=[0xA700, 0xA700])
    datasets = study_of(2)
    keep(*datasets)
    asked = identifier("STUDY", StudyInstanceUID=datasets[0].StudyInstanceUID)
    status, failed = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")[-1]
    assert (status.Status, counts(status)) == (0xA702, (None, 0, 2, 0))
    assert set(failed.FailedSOPInstanceUIDList) == {dataset.SOPInstanceUID for dataset in datasets}


def test_only_configured_peers_are_called(node, keep, archive):
    stranger = archive()
    datasets = study_of(1)
    keep(*datasets)
    asked = identifier("STUDY", StudyInstanceUID=datasets[0].StudyInstanceUID)
    ((status, _),) = responses(node(), asked, STUDY_ROOT, "ARCHIVE")
    assert status.Status == 0xA801
    assert "peers" in status.ErrorComment
    assert stranger.received == {}


def test_a_peer_that_does_not_answer_fails_every_suboperation(node, keep, free_port):
    datasets = study_of(2)
    keep(*datasets)
    silent = {"name": "gone", "ae_title": "GONE", "host": "127.0.0.1", "port": free_port()}
    asked = identifier("STUDY", StudyInstanceUID=datasets[0].StudyInstanceUID)
    status, _ = responses(node(peers=[silent]), asked, STUDY_ROOT, "GONE")[-1]
    assert (status.Status, counts(status)) == (0xA702, (None, 0, 2, 0))


def test_nothing_to_send_is_a_success(node, archive):
    taker = archive()
    asked = identifier("STUDY", StudyInstanceUID="1.2.3")
    ((status, _),) = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")
    assert (status.Status, counts(status)) == (SUCCESS, (None, 0, 0, 0))


@pytest.mark.parametrize("is_move", [True, False])
def test_cancel_stops_after_the_instance_at_hand(node, keep, archive, is_move):
    is_cancelled = threading.Event()
    taker = archive(before=lambda _event: len(taker.received) and is_cancelled.wait(5))
    datasets = study_of(30)
    keep(*datasets)
    asked = identifier("STUDY", StudyInstanceUID=datasets[0].StudyInstanceUID)
    received = []
    handlers = [(evt.EVT_C_STORE, lambda event: received.append(event.request.AffectedSOPInstanceUID) or 0)]
    options = {"destination": "ARCHIVE"} if is_move else {"handlers": handlers}
    threading.Timer(0.5, is_cancelled.set).start()
    found = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, cancel_after=1, **options)
    status = found[-1][0]
    remaining, completed, failed, _ = counts(status)
    assert status.Status == CANCELED
    assert remaining + completed + failed == 30
    assert 0 < remaining < 30
    assert completed == (len(taker.received) if is_move else len(received))


@pytest.mark.parametrize("stored", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("accepted", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_the_peer_cannot_read_is_decoded(node, keep, archive, stored, accepted):
    taker = archive(accepted)
    compressed = make_image(frames=2, syntax=stored)
    keep(compressed)
    asked = identifier("STUDY", StudyInstanceUID=compressed.StudyInstanceUID)
    status, _ = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")[-1]
    assert status.Status == SUCCESS
    ((syntax, encoded),) = taker.received.values()
    assert syntax == accepted
    assert make_image(frames=2).PixelData in encoded


def test_what_the_peer_can_read_stays_compressed(node, keep, archive):
    taker = archive(RLELossless, ExplicitVRLittleEndian)
    compressed = make_image(syntax=RLELossless)
    (path,) = keep(compressed)
    asked = identifier("STUDY", StudyInstanceUID=compressed.StudyInstanceUID)
    responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")
    ((syntax, encoded),) = taker.received.values()
    assert syntax == RLELossless
    assert encoded == data_set_bytes(path.read_bytes())


def test_a_class_that_the_peer_does_not_take_fails_and_the_others_go(node, keep, archive):
    taker = archive()
    image = make_image()
    other = make_image(sop_class="1.2.840.10008.5.1.4.1.1.4", StudyInstanceUID=image.StudyInstanceUID)
    keep(image, other)
    asked = identifier("STUDY", StudyInstanceUID=image.StudyInstanceUID)
    status, failed = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")[-1]
    assert (status.Status, counts(status)) == (0xB000, (None, 1, 1, 0))
    assert failed.FailedSOPInstanceUIDList == other.SOPInstanceUID


def test_a_lost_file_fails_alone(node, keep, archive):
    taker = archive()
    datasets = study_of(2)
    paths = keep(*datasets)
    paths[0].unlink()
    asked = identifier("STUDY", StudyInstanceUID=datasets[0].StudyInstanceUID)
    status, failed = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")[-1]
    assert (status.Status, failed.FailedSOPInstanceUIDList) == (0xB000, datasets[0].SOPInstanceUID)


@pytest.mark.parametrize(
    "asked",
    [
        identifier("STUDY"),
        identifier("STUDY", StudyInstanceUID="*"),
        identifier("SERIES", StudyInstanceUID="1.2"),
        identifier("PATIENT", PatientID="P-1"),
    ],
)
def test_a_request_without_its_unique_key_is_refused(node, archive, asked):
    taker = archive()
    ((status, _),) = responses(node(peers=[taker.entry]), asked, STUDY_ROOT, "ARCHIVE")
    assert status.Status == 0xA900
    assert status.ErrorComment


def test_rights_by_ae_title(node, keep, archive):
    taker = archive()
    (dataset,) = study_of(1)
    keep(dataset)
    running = node(dimse={"others_may": ["store", "query"]}, peers=[taker.entry])
    asked = identifier("STUDY", StudyInstanceUID=dataset.StudyInstanceUID)
    for destination in ("ARCHIVE", None):
        ((status, _),) = responses(running, asked, STUDY_ROOT, destination)
        assert status.Status == 0x0124
    assert taker.received == {}


def test_get_keeps_the_bytes_and_the_encoding(node, keep):
    compressed = make_image(syntax=RLELossless)
    (path,) = keep(compressed)
    received = []

    def take(event):
        received.append((event.context.transfer_syntax, event.request.DataSet.getvalue()))
        return SUCCESS

    asked = identifier("IMAGE", SOPInstanceUID=compressed.SOPInstanceUID)
    found = responses(node(), asked, STUDY_ROOT, handlers=[(evt.EVT_C_STORE, take)], syntaxes=[RLELossless])
    assert counts(found[-1][0]) == (None, 1, 0, 0)
    assert received == [(RLELossless, data_set_bytes(path.read_bytes()))]


@pytest.mark.parametrize("destination", ["ARCHIVE", None])
@pytest.mark.parametrize("kind", HARM)
def test_a_damaged_file_fails_alone(node, keep, archive, kind, destination):
    taker, got = archive(), []
    images = study_of(3)
    damaged, *_ = keep(*images)
    running = node(peers=[taker.entry])
    harm(damaged, kind)
    asked = identifier(StudyInstanceUID=images[0].StudyInstanceUID)

    def take(event):
        got.append(str(event.request.AffectedSOPInstanceUID))
        return SUCCESS

    last, failed = responses(running, asked, STUDY_ROOT, destination, [(evt.EVT_C_STORE, take)])[-1]
    assert (last.Status, counts(last)) == (0xB000, (None, 2, 1, 0))
    assert failed.FailedSOPInstanceUIDList == images[0].SOPInstanceUID
    assert sorted(got or taker.received) == sorted(str(image.SOPInstanceUID) for image in images[1:])
