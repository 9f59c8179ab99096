"""Real senders against the listener: what arrives, what is refused, and what does not stop it."""

import os
import socket
import subprocess
import time
from argparse import Namespace
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, build_context

from dicom_node.dimse.scu import send_instances
from tests.dicom_node.dimse.instances import (
    BASIC_TEXT_SR,
    COMPRESSED,
    CT,
    ENCAPSULATED_PDF,
    SEGMENTATION,
    DeflatedExplicitVRLittleEndian,
    data_set_bytes,
    make_bits,
    make_data_set,
    make_image,
    part10,
    save,
    with_meta,
)
from tests.doors import make_receiver

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
PERFORMED_STEP = "1.2.840.10008.3.1.2.3.3"  # MPPS, a service that nobody here offers
PRIVATE_CLASS = "1.3.12.2.1107.5.9.1"
VERIFICATION = "1.2.840.10008.1.1"
TO_US = ("-aec", "SIM4SEG")


class ToUs:
    ae_title = "SIM4SEG"
    host = "127.0.0.1"
    tls = False

    def __init__(self, port):
        self.port = port


def run(*command):
    """Run a DCMTK tool; Nagle's algorithm off, or DCMTK waits 40 ms an instance for itself."""
    environment = os.environ | {"TCP_NODELAY": "1"}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def echo(port, *options):
    return run("echoscu", *TO_US, "-to", "5", *options, "127.0.0.1", port).returncode


def associate(port, *contexts, calling="TESTER", called="SIM4SEG"):
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    return ae.associate("127.0.0.1", port, contexts=list(contexts), ae_title=called)


def store(port, dataset, syntax=ExplicitVRLittleEndian, **changes):
    """Send `dataset` by pynetdicom, with command UIDs of our choice; returns the status."""
    association = associate(port, build_context(changes.get("sop_class", dataset.SOPClassUID), syntax))
    assert association.is_established
    try:
        return association.send_c_store(dataset)
    finally:
        association.release()


def test_echo_by_dcmtk(listen):
    assert echo(listen()) == 0


@pytest.mark.parametrize(
    ("syntax", "options"),
    [
        (ExplicitVRLittleEndian, ("-xe",)),
        (ImplicitVRLittleEndian, ("-xi",)),
        (ExplicitVRBigEndian, ("-xb",)),
        (RLELossless, ("-xr",)),
        (JPEGLSLossless, ("-xt",)),
        (DeflatedExplicitVRLittleEndian, ("-xd",)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_storescu_in_every_kind_of_encoding_is_kept_as_sent(listen, stored, tmp_path, syntax, options):
    image = make_image(frames=2, rows=32, columns=32, syntax=syntax)
    if syntax == ExplicitVRBigEndian:
        image["PixelData"].VR = "OW"
    path = save(image, tmp_path)

    sent = run("storescu", *options, *TO_US, "127.0.0.1", listen(), path)

    assert sent.returncode == 0, sent.stderr
    kept = stored(image.SOPInstanceUID)
    assert dcmread(BytesIO(kept)).file_meta.TransferSyntaxUID == syntax
    if syntax != DeflatedExplicitVRLittleEndian:  # DCMTK deflates anew
        assert data_set_bytes(kept) == data_set_bytes(path.read_bytes())
    assert dcmread(BytesIO(kept)).PixelData == dcmread(path).PixelData


def test_dcmsend_a_mixed_folder(listen, rows, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    bits, _mask = make_bits()
    datasets = [
        make_image(),
        make_image(syntax=RLELossless),
        bits,
        make_data_set(BASIC_TEXT_SR, Modality="SR"),
        make_data_set(ENCAPSULATED_PDF, EncapsulatedDocument=b"%PDF-1.4"),
    ]
    for dataset in datasets:
        save(dataset, folder)

    sent = run("dcmsend", *TO_US, "+sd", "127.0.0.1", listen(), folder)

    assert sent.returncode == 0, sent.stderr
    assert {row.sop_instance_uid for row in rows()} == {dataset.SOPInstanceUID for dataset in datasets}
    assert {row.origin_kind for row in rows()} == {"DIMSE"}
    assert {row.origin_detail for row in rows()} == {"DCMSEND"}


@pytest.mark.parametrize("sop_class", [LABEL_MAP, PRIVATE_CLASS, "1.2.840.10008.5.1.4.1.1.999.1"])
def test_newer_private_and_unknown_storage_classes_are_taken(listen, stored, sop_class):
    dataset = make_data_set(sop_class)
    assert store(listen(), dataset).Status == 0x0000
    assert data_set_bytes(stored(dataset.SOPInstanceUID)) == data_set_bytes(part10(dataset))


def test_high_throughput_jpeg_2000_is_kept_as_received(listen, stored, tmp_path):
    image = make_image(syntax=RLELossless)  # nobody here decodes it, so any code stream will do
    path = save(with_meta(image, HTJ2KLossless), tmp_path)
    (status,) = send_instances([path], ToUs(listen()), "TESTER")
    assert status.is_delivered, status
    assert data_set_bytes(stored(image.SOPInstanceUID)) == data_set_bytes(path.read_bytes())


def test_other_services_are_not_offered(listen):
    association = associate(listen(), build_context(PERFORMED_STEP), build_context(VERIFICATION))
    accepted = [context.abstract_syntax for context in association.accepted_contexts]
    association.release()
    assert accepted == [VERIFICATION]


def test_the_better_of_several_encodings_is_chosen(listen):
    proposal = build_context(CT, ["1.2.840.113619.5.2", ExplicitVRBigEndian, ExplicitVRLittleEndian])
    association = associate(listen(), proposal)
    (context,) = association.accepted_contexts
    association.release()
    assert context.transfer_syntax == [ExplicitVRLittleEndian]


def test_announces_the_pdu_size_and_itself(listen):
    association = associate(listen(max_pdu=65536), build_context(VERIFICATION))
    acceptor = association.acceptor
    association.release()
    assert acceptor.maximum_length == 65536
    assert acceptor.implementation_version_name == "SIM4SEG_NODE"


def test_another_called_ae_title_is_rejected_unless_allowed(listen):
    port = listen()
    rejected = run("echoscu", "-aec", "SOMEONE", "127.0.0.1", port)
    assert rejected.returncode != 0
    assert "Called AE Title Not Recognized" in rejected.stderr
    assert run("echoscu", "-aec", "SOMEONE", "127.0.0.1", listen(require_called_ae=False)).returncode == 0


def test_only_allowed_calling_ae_titles_come_in(listen):
    port = listen(allowed_calling_aes=["MODALITY1"])
    rejected = run("echoscu", *TO_US, "-aet", "STRANGER", "127.0.0.1", port)
    assert rejected.returncode != 0
    assert "Calling AE Title Not Recognized" in rejected.stderr
    assert echo(port, "-aet", "MODALITY1") == 0


def test_too_many_associations_are_told_so_and_one_that_ends_makes_room(listen):
    port = listen(max_associations=1)
    first = associate(port, build_context(VERIFICATION))
    second = associate(port, build_context(VERIFICATION))
    primitive = second.acceptor.primitive
    assert second.is_rejected
    assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 2)
    first.release()
    wait_until(lambda: echo(port) == 0)


def wait_until(is_true, within_s=10.0):
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_health_probes_and_silent_peers_take_no_place(listen):
    port = listen(max_associations=2, acse_timeout_s=3)
    for _probe in range(12):
        socket.create_connection(("127.0.0.1", port)).close()
    silent = [socket.create_connection(("127.0.0.1", port)) for _peer in range(6)]
    for dripping in silent[:3]:
        dripping.sendall(b"\x01\x00\x00\x00")
    assert echo(port) == 0
    for peer in silent:
        peer.close()


@pytest.mark.parametrize(
    "opening",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff", b"\x04\x00\x00\x00\x00\x10" + bytes(16)],
)
def test_what_is_no_association_request_is_closed_at_once(listen, opening):
    with socket.create_connection(("127.0.0.1", listen(acse_timeout_s=30)), timeout=5) as peer:
        peer.sendall(opening)
        answer = peer.recv(100)
        assert answer[:6] == b"\x07\x00\x00\x00\x00\x04"
        assert answer[8] == 2  # by the service provider
        assert peer.recv(1) == b""


def test_a_silent_peer_is_given_up_after_the_timeout(listen):
    with socket.create_connection(("127.0.0.1", listen(acse_timeout_s=0.3)), timeout=5) as peer:
        assert peer.recv(1) == b""


def test_the_same_instance_twice_is_a_success_and_one_row(listen, rows):
    port, image = listen(), make_image()
    assert [store(port, image).Status for _time in range(2)] == [0x0000, 0x0000]
    assert len(rows()) == 1


def test_other_content_under_the_same_uid_is_0111(listen, stored):
    port, image = listen(), make_image()
    store(port, image)
    first = stored(image.SOPInstanceUID)
    image.PixelData = bytes(len(image.PixelData))
    answer = store(port, image)
    assert answer.Status == 0x0111
    assert "SOP Instance UID" in answer.ErrorComment
    assert stored(image.SOPInstanceUID) == first


def test_command_and_data_set_must_agree(listen, tmp_path, rows):
    path = save(make_image(SOPInstanceUID="1.2.3.4"), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"1.2.3.4", b"1.2.3.5", 1))
    (status,) = send_instances([path], ToUs(listen()), "TESTER")
    assert status.status == 0xA900
    assert rows() == []


def test_an_object_without_a_study_is_refused(listen, tmp_path):
    image = make_image()
    del image.StudyInstanceUID
    (status,) = send_instances([save(image, tmp_path)], ToUs(listen()), "TESTER")
    assert status.status == 0xA900


def test_a_truncated_file_is_refused_and_the_node_goes_on(listen, tmp_path, rows):
    port = listen()
    path = save(make_image(rows=64, columns=64), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    (status,) = send_instances([path], ToUs(port), "TESTER")
    assert status.status == 0xC000
    assert "truncated" in status.detail
    assert rows() == []
    assert echo(port) == 0


def test_a_full_disk_is_a700_and_what_comes_after_it_goes_on(listen, database, files_root, monkeypatch):
    full = make_receiver(database, files_root, hard_bytes=1)
    image = make_image()
    association = associate(listen(full), build_context(CT, ExplicitVRLittleEndian))
    monkeypatch.setattr(os, "statvfs", lambda _root: Namespace(f_bavail=0, f_frsize=4096))
    wait_until(full.pressure.hard_problem)
    assert association.send_c_store(image).Status == 0xA700
    monkeypatch.undo()
    wait_until(lambda: full.pressure.hard_problem() is None)
    assert association.send_c_store(image).Status == 0x0000
    association.release()


def test_little_disk_refuses_new_associations_politely(listen, database, files_root):
    port = listen(make_receiver(database, files_root, hard_bytes=2**62))
    association = associate(port, build_context(VERIFICATION))
    primitive = association.acceptor.primitive
    assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 1)


@pytest.mark.parametrize("sop_class", [CT, PRIVATE_CLASS])
def test_a_fault_of_ours_is_0110_and_shows_nothing(listen, receiver, sop_class, caplog, monkeypatch):
    def fail(*_arguments):
        raise ZeroDivisionError("Müller")

    monkeypatch.setattr(receiver, "commit", fail)
    port = listen()
    answer = store(port, make_data_set(sop_class))
    assert answer.Status == 0x0110
    assert "Müller" not in answer.ErrorComment
    assert "failed unexpectedly" in caplog.text
    assert echo(port) == 0


def test_logs_carry_no_patient_attribute(listen, caplog):
    caplog.set_level("DEBUG", "dicom_node")
    port, image = listen(), make_image()
    store(port, image)
    image.PatientID = "MRN-2"
    store(port, image)
    written = " ".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert image.SOPInstanceUID in written
    assert not [secret for secret in ("Müller", "MRN-", "A-77") if secret in written]


def test_an_abort_in_the_middle_leaves_nothing(listen, rows, files_root):
    port, image = listen(), make_image()
    association = associate(port, build_context(CT, ExplicitVRLittleEndian))
    association.send_c_store(image)
    association.abort()
    wait_until(lambda: len(rows()) == 1)
    assert list((files_root / "incoming").iterdir()) == []


def test_four_senders_at_once(listen, rows, tmp_path):
    port = listen()
    senders = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _image in range(5):
            save(make_image(rows=64, columns=64), folder)
        command = ["storescu", "-xe", *TO_US, "+sd", "127.0.0.1", str(port), str(folder)]
        senders.append(subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"}))
    assert [sender.wait(60) for sender in senders] == [0, 0, 0, 0]
    assert len(rows()) == 20


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_compressed_files_by_dcmsend(listen, rows, stored, shared_data):
    folder = shared_data / "data" / "dicom" / "cornerstone3D" / "testImages"
    paths = sorted(folder.glob("CTImage.dcm_JPEG*")) + sorted(folder.glob("*RLE*"))
    assert len(paths) >= 8
    port, first = listen(), {}
    for path in paths:  # some share a SOP Instance UID: the first content stays
        run("dcmsend", *TO_US, "-dn", "127.0.0.1", port, path)
        first.setdefault(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID), path)
    assert {row.sop_instance_uid for row in rows()} == set(first)
    for uid, path in first.items():
        kept, sent = dcmread(BytesIO(stored(uid))), dcmread(path)  # DCMTK writes other sequence lengths
        assert kept.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert kept.PixelData == sent.PixelData


def test_segmentations_come_in_by_storescu_when_proposed(listen, rows, tmp_path):
    bits, _mask = make_bits()
    assert run("dcmsend", *TO_US, "127.0.0.1", listen(), save(bits, tmp_path)).returncode == 0
    assert [row.sop_class_uid for row in rows()] == [SEGMENTATION]


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_compressed_truncation_over_the_wire(listen, tmp_path, syntax):
    path = save(make_image(frames=2, rows=32, columns=32, syntax=syntax), tmp_path)
    path.write_bytes(path.read_bytes()[:-12])
    (status,) = send_instances([path], ToUs(listen()), "TESTER")
    assert status.status == 0xC000
