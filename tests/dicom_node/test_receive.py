"""The one door in: what it takes, what it refuses and how, and what it leaves behind."""

import errno
import os
import struct
import zlib
from io import BytesIO

import pytest
from hypothesis import assume, given, settings, strategies
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from sqlalchemy import func, select

from dicom_node import errors, readiness
from dicom_node.announced import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Announced,
    ExpectedUids,
    encode_meta,
)
from dicom_node.errors import (
    ConflictingInstance,
    IllegalUid,
    IndexUnavailable,
    InstanceTooLarge,
    NodeError,
    StorageExhausted,
    StudyMismatch,
    TransferSyntaxNotSupported,
    UidMismatch,
    Unparseable,
)
from dicom_node.header import HeaderLimits
from dicom_node.intake import ReceiveLimits
from storage.errors import InstanceUnidentified
from storage.index import IndexResult, Origin, find_instance, record_from_dataset
from storage.part10 import StoredFile
from storage.plain import KEYWORDS, read_plain
from storage.tables import Conflict, Instance, Series, Study
from tests.dicom_node.dimse.instances import (
    BASIC_TEXT_SR,
    COMPRESSED,
    DeflatedExplicitVRLittleEndian,
    data_set_bytes,
    make_data_set,
    make_image,
    part10,
)
from tests.doors import make_receiver

ORIGIN = Origin("IMPORT", "test")
SMALL = ReceiveLimits(max_instance_bytes=10_000_000)


@pytest.fixture
def receiver(database, files_root):
    return make_receiver(database, files_root, SMALL)


@pytest.fixture
def stored_file(database, files_root):
    def read(sop_instance_uid):
        with database.reading() as tx:
            return (files_root / find_instance(tx, sop_instance_uid).path).read_bytes()

    return read


@pytest.fixture
def count(database):
    def count_rows(table):
        with database.reading() as tx:
            return tx.scalar(select(func.count()).select_from(table))

    return count_rows


def chunks(file, size=1000):
    return (file[start : start + size] for start in range(0, len(file), size))


def meta_of(dataset, **changes):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.get("sop_class", dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = changes.get("sop_instance", dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = UID(changes.get("syntax", dataset.file_meta.TransferSyntaxUID))
    return meta


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        *COMPRESSED,
    ],
    ids=lambda syntax: syntax.name,
)
def test_keeps_every_byte_of_the_data_set_whatever_its_transfer_syntax(receiver, stored_file, syntax):
    image = make_image(frames=2, syntax=syntax)
    if syntax == ExplicitVRBigEndian:
        image["PixelData"].VR = "OW"
    file = part10(image)

    received = receiver.receive_part10(chunks(file), ORIGIN)

    kept = stored_file(image.SOPInstanceUID)
    assert received.result is IndexResult.NEW
    assert data_set_bytes(kept) == data_set_bytes(file)
    assert dcmread(BytesIO(kept)).file_meta.TransferSyntaxUID == syntax


def test_the_same_data_set_by_dimse_and_as_a_file_is_one_content(receiver, count):
    image = make_image()
    file = part10(image)
    by_file = receiver.receive_part10(chunks(file), ORIGIN)
    by_dimse = receiver.receive_data_set(BytesIO(data_set_bytes(file)), meta_of(image), Origin("DIMSE", "X"))

    assert (by_file.result, by_dimse.result) == (IndexResult.NEW, IndexResult.DUPLICATE)
    assert count(Instance) == 1
    assert count(Conflict) == 0


def test_a_program_in_the_preamble_is_not_kept(receiver, stored_file):
    image = make_image()
    file = b"MZ\x90\x00".ljust(128, b"\xcc") + part10(image)[128:]

    receiver.receive_part10(chunks(file), ORIGIN)

    kept = stored_file(image.SOPInstanceUID)
    assert kept[:132] == bytes(128) + b"DICM"
    assert data_set_bytes(kept) == data_set_bytes(file)


def test_rows_hold_what_the_search_needs(receiver, database):
    image = make_image(frames=3, Modality="US", SeriesDescription="Long axis")
    receiver.receive_part10(chunks(part10(image)), Origin("DIMSE", "MODALITY1"))

    with database.reading() as tx:
        study = tx.get(Study, str(image.StudyInstanceUID))
        series = tx.get(Series, str(image.SeriesInstanceUID))
        instance = find_instance(tx, image.SOPInstanceUID)
    assert (study.patient_name, study.patient_id) == ("Müller^Ännchen", "MRN-1")
    assert (series.modality, series.series_description, series.is_own_result) == ("US", "Long axis", False)
    assert (instance.rows, instance.columns, instance.number_of_frames) == (8, 6, 3)
    assert (instance.origin_kind, instance.origin_detail) == ("DIMSE", "MODALITY1")


def test_other_content_under_a_known_uid_is_refused_and_kept_aside(receiver, count, stored_file):
    image = make_image()
    first = part10(image)
    receiver.receive_part10(chunks(first), ORIGIN)
    image.PixelData = bytes(len(image.PixelData))

    with pytest.raises(ConflictingInstance) as refusal:
        receiver.receive_part10(chunks(part10(image)), ORIGIN)

    assert (refusal.value.dimse_status, refusal.value.http_status) == (0x0111, 409)
    assert refusal.value.stow_failure_reason == 273
    assert count(Conflict) == 1
    assert data_set_bytes(stored_file(image.SOPInstanceUID)) == data_set_bytes(first)


@pytest.mark.parametrize("sop_class", [BASIC_TEXT_SR, "1.2.840.10008.5.1.4.1.1.66.7", "1.3.12.2.1107.5.9.1"])
def test_takes_objects_without_pixels_and_unknown_or_private_classes(receiver, stored_file, sop_class):
    dataset = make_data_set(sop_class)
    file = part10(dataset)
    receiver.receive_part10(chunks(file), ORIGIN)
    assert data_set_bytes(stored_file(dataset.SOPInstanceUID)) == data_set_bytes(file)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_refuses_an_object_without_one_of_its_uids(receiver, count, keyword):
    image = make_image()
    meta = meta_of(image)
    delattr(image, keyword)
    with pytest.raises(UidMismatch) as refusal:
        receiver.receive_data_set(encoded(image), meta, ORIGIN)
    assert refusal.value.dimse_status == 0xA900
    assert count(Instance) == 0


def encoded(dataset):
    buffer = BytesIO()
    bare = Dataset()
    bare.update(dataset)
    bare.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def test_refuses_a_data_set_that_is_not_the_one_announced(receiver):
    image = make_image()
    data_set = data_set_bytes(part10(image))
    with pytest.raises(UidMismatch):
        receiver.receive_data_set(data_set, meta_of(image, sop_instance=generate_uid()), ORIGIN)
    with pytest.raises(UidMismatch):
        receiver.receive_data_set(data_set, meta_of(image), ORIGIN, ExpectedUids(sop_class_uid=BASIC_TEXT_SR))
    expected = ExpectedUids(study_instance_uid="1.2.3")
    with pytest.raises(StudyMismatch) as refusal:
        receiver.receive_data_set(data_set, meta_of(image), ORIGIN, expected)
    assert refusal.value.stow_failure_reason == 43265


@pytest.mark.parametrize("uid", ["1.2.../../etc/passwd", "1." + "2" * 70, "not-a-uid", "1.2.3 4"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.filterwarnings("ignore:The value length")
def test_refuses_what_is_no_uid(receiver, files_root, uid):
    image = make_image(StudyInstanceUID=uid)
    with pytest.raises(IllegalUid) as refusal:
        receiver.receive_data_set(encoded(image), meta_of(image), ORIGIN)
    assert refusal.value.dimse_status == 0x0117
    assert left_behind(files_root) == []


def left_behind(files_root):
    return [name for _folder, _folders, names in os.walk(files_root) for name in names]


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", "1.2.3.4", "1.2.840.10008.5.1.4.1.1.2"])
def test_refuses_a_transfer_syntax_that_is_not_the_standards(receiver, syntax):
    image = make_image()
    with pytest.raises(TransferSyntaxNotSupported) as refusal:
        receiver.receive_data_set(encoded(image), meta_of(image, syntax=syntax), ORIGIN)
    assert (refusal.value.dimse_status, refusal.value.stow_failure_reason) == (0x0122, 49442)


def test_a_file_cut_off_anywhere_is_refused_and_leaves_nothing(receiver, files_root, count):
    file = part10(make_image())
    for length in (0, 100, 131, 140, 200, len(file) // 2, len(file) - 60, len(file) - 1):
        with pytest.raises((Unparseable, UidMismatch)):
            receiver.receive_part10(chunks(file[:length]), ORIGIN)
    assert left_behind(files_root) == []
    assert count(Study) == 0


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_compressed_pixels_cut_off_are_refused(receiver, syntax):
    file = part10(make_image(frames=3, syntax=syntax))
    for cut in (1, 8, 30):
        with pytest.raises(Unparseable, match="truncated"):
            receiver.receive_part10(chunks(file[:-cut]), ORIGIN)


def test_deflated_data_cut_off_or_damaged_is_refused(receiver):
    file = part10(make_image(syntax=DeflatedExplicitVRLittleEndian))
    with pytest.raises(Unparseable):
        receiver.receive_part10(chunks(file[:-20]), ORIGIN)
    with pytest.raises(Unparseable):
        receiver.receive_part10(chunks(file[:-40] + bytes(range(40))), ORIGIN)


def test_a_deflated_bomb_is_refused_without_the_memory_it_asks_for(database, files_root):
    image = make_image(syntax=DeflatedExplicitVRLittleEndian)
    head = data_set_bytes(part10(with_plain_meta(make_image())))
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = bomb.compress(head) + bomb.compress(bytes(64 * 1024 * 1024)) + bomb.flush()
    limits = ReceiveLimits(10_000_000, HeaderLimits(max_inflated_bytes=32 * 1024 * 1024))
    with pytest.raises((InstanceTooLarge, Unparseable)):
        make_receiver(database, files_root, limits).receive_data_set(deflated, meta_of(image), ORIGIN)
    assert len(deflated) < 200_000


def with_plain_meta(dataset):
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


@pytest.mark.parametrize(("depth", "is_taken"), [(64, True), (65, False)])
def test_sequences_may_nest_64_deep(receiver, depth, is_taken):
    image = make_image()
    data_set = encoded_elements(image, nested_bytes(depth))
    if is_taken:
        receiver.receive_data_set(data_set, meta_of(image), ORIGIN)
    else:
        with pytest.raises(Unparseable, match="nested"):
            receiver.receive_data_set(data_set, meta_of(image), ORIGIN)


def nested_bytes(depth):
    """(0040,A730) in items of undefined length, `depth` deep, written by hand: pydicom cannot."""
    open_sequence = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    open_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    close_item = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    close_sequence = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return (open_sequence + open_item) * depth + (close_item + close_sequence) * depth


def encoded_elements(image, more):
    """The image's data set with `more` bytes of elements in front of the pixels."""
    whole = encoded(image)
    pixels = whole.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    return whole[:pixels] + more + whole[pixels:]


def test_a_hundred_thousand_levels_end_in_a_refusal_not_in_a_crash(receiver):
    image = make_image()
    with pytest.raises(Unparseable):
        receiver.receive_data_set(encoded_elements(image, nested_bytes(100_000)), meta_of(image), ORIGIN)


def test_a_million_empty_elements_are_refused(receiver):
    image = make_image()
    element = struct.pack("<HH2sH", 0x0051, 0x1001, b"LO", 0)
    with pytest.raises(Unparseable, match="elements"):
        receiver.receive_data_set(encoded_elements(image, element * 1_000_000), meta_of(image), ORIGIN)


@pytest.mark.parametrize(
    "element",
    [
        struct.pack("<HH2sHI", 0x0051, 0x1001, b"OB", 0, 0xFFFFFFFE),  # longer than the file
        struct.pack("<HH2sHI", 0x0051, 0x1001, b"OB", 0, 0xFFFFFFFF),  # undefined, and no sequence
        struct.pack("<HH2sH", 0x0051, 0x1001, b"Z?", 0),  # no such VR
        struct.pack("<HH2sHI", 0x0051, 0x1001, b"SQ", 0, 8) + bytes(8),  # no item where one must be
    ],
    ids=["too long", "undefined length", "unknown VR", "no item"],
)
def test_broken_structure_is_refused(receiver, element):
    image = make_image()
    with pytest.raises(Unparseable):
        receiver.receive_data_set(encoded_elements(image, element), meta_of(image), ORIGIN)


def test_a_wrong_transfer_syntax_is_refused(receiver):
    image = make_image()
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        with pytest.raises((Unparseable, UidMismatch)):
            receiver.receive_data_set(encoded(image), meta_of(image, syntax=syntax), ORIGIN)


def test_large_values_that_are_not_pixels_are_taken(receiver, stored_file):
    document = make_data_set("1.2.840.10008.5.1.4.1.1.104.1", EncapsulatedDocument=os.urandom(3_000_000))
    file = part10(document)
    receiver.receive_part10(chunks(file, 65536), ORIGIN)
    assert data_set_bytes(stored_file(document.SOPInstanceUID)) == data_set_bytes(file)


def test_an_instance_beyond_the_limit_is_refused(database, files_root):
    receiver = make_receiver(database, files_root, ReceiveLimits(max_instance_bytes=2000))
    with pytest.raises(InstanceTooLarge) as refusal:
        receiver.receive_part10(chunks(part10(make_image(rows=64, columns=64))), ORIGIN)
    assert refusal.value.http_status == 413
    assert left_behind(files_root) == []


def test_the_disk_reserve_is_kept(database, files_root):
    receiver = make_receiver(database, files_root, hard_bytes=2**62)
    with pytest.raises(StorageExhausted) as refusal:
        receiver.receive_part10(chunks(part10(make_image())), ORIGIN)
    assert (refusal.value.dimse_status, refusal.value.http_status) == (0xA700, 507)
    assert refusal.value.is_retryable


def test_a_failed_fsync_refuses_everything_until_a_restart(database, files_root, monkeypatch):
    receiver, image = make_receiver(database, files_root), make_image()
    monkeypatch.setattr(os, "fsync", refuse_fsync)
    for _again in range(2):
        with pytest.raises(StorageExhausted) as refusal:
            receiver.receive_part10(chunks(part10(image)), ORIGIN)
    monkeypatch.undo()
    with pytest.raises(StorageExhausted, match="started again"):
        receiver.receive_part10(chunks(part10(make_image())), ORIGIN)
    assert refusal.value.dimse_status == 0xA700
    assert [problem.reason for problem in readiness.problems(files_root.parent)] == ["fsync"]
    with database.reading() as tx:
        assert find_instance(tx, image.SOPInstanceUID) is None


def refuse_fsync(_descriptor):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_the_meta_information_is_what_pydicom_would_write():
    uids = ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", "1.2.840.10008.1.2.1")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = uids
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    written = DicomBytesIO(bytes(128) + b"DICM")
    written.seek(132)
    write_file_meta_info(written, meta)
    assert encode_meta(Announced(*uids, ORIGIN)) == written.getvalue()


@settings(max_examples=300)
@given(
    strategies.dictionaries(
        strategies.sampled_from(KEYWORDS[1:]),  # pydicom warns of unknown character sets
        strategies.text(strategies.characters(max_codepoint=127, exclude_characters="\0"), max_size=20),
    )
)
def test_what_is_read_plainly_is_what_pydicom_reads(texts):
    values, encoded = {}, b""
    for keyword, text in texts.items():
        tag, vr = tag_for_keyword(keyword), dictionary_VR(keyword)
        value = text.encode("ascii")
        value += b" " * (len(value) % 2)
        if vr == "US":
            value = value[:2].ljust(2, b"\1")
        values[tag] = (vr.encode(), value)
    for tag in sorted(values):
        vr, value = values[tag]
        encoded += struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    plain = read_plain(values, {"TransferSyntaxUID": "1.2.840.10008.1.2.1"})
    assume(plain is not None)
    dataset = read_dataset(BytesIO(encoded), is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    assert record_or_reason(plain) == record_or_reason(dataset)


def record_or_reason(elements):
    try:
        return record_from_dataset(elements, StoredFile("objects/x", "0" * 64, 1), ORIGIN)
    except InstanceUnidentified as error:
        return str(error)


def test_a_disk_that_cannot_be_written_is_a_retryable_refusal(database, tmp_path):
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    with pytest.raises((StorageExhausted, IndexUnavailable)) as refusal:
        make_receiver(database, blocked, SMALL).receive_part10(chunks(part10(make_image())), ORIGIN)
    assert refusal.value.dimse_status == 0xA700


def test_without_the_tables_nothing_is_acknowledged(tmp_path, files_root):
    from storage.database import Database

    empty = Database(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with pytest.raises(IndexUnavailable):
        make_receiver(empty, files_root, SMALL).receive_part10(chunks(part10(make_image())), ORIGIN)
    empty.close()


def test_own_results_are_marked_and_a_repeat_is_the_same(receiver, database, stored_file):
    image = make_image()
    receiver.receive_part10(chunks(part10(image)), ORIGIN)
    result = make_data_set(BASIC_TEXT_SR, StudyInstanceUID=image.StudyInstanceUID, Modality="SR")
    with database.transaction() as tx:
        first = receiver.receive_own_results(tx, [result], "job1")
    with database.transaction() as tx:
        second = receiver.receive_own_results(tx, [result], "job1")
    with database.reading() as tx:
        row = find_instance(tx, result.SOPInstanceUID)
        study = tx.get(Study, str(image.StudyInstanceUID))
        assert tx.get(Series, row.series_instance_uid).is_own_result
    assert first == second == [result.SOPInstanceUID]
    assert (row.origin_kind, row.origin_detail, study.version) == ("OWN RESULT", "job1", 1)
    assert dcmread(BytesIO(stored_file(result.SOPInstanceUID))).PatientName == "Müller^Ännchen"


def test_own_results_vanish_with_the_callers_transaction(receiver, database, count):
    image = make_image()

    def job():
        with database.transaction() as tx:
            receiver.receive_own_results(tx, [image], "job1")
            raise RuntimeError("the job lost its lease")

    with pytest.raises(RuntimeError):
        job()
    assert count(Instance) == 0


def test_own_results_that_differ_are_an_error(receiver, database):
    image = make_image()
    with database.transaction() as tx:
        receiver.receive_own_results(tx, [image], "job1")
    image.PixelData = bytes(len(image.PixelData))
    with pytest.raises(ConflictingInstance), database.transaction() as tx:
        receiver.receive_own_results(tx, [image], "job1")


def test_an_own_result_that_comes_back_is_the_same_instance(receiver, database):
    result = make_data_set(BASIC_TEXT_SR, Modality="SR")
    with database.transaction() as tx:
        receiver.receive_own_results(tx, [result], "job1")
    returned = receiver.receive_data_set(data_set_bytes(part10(result)), meta_of(result), ORIGIN)
    assert returned.result is IndexResult.DUPLICATE


def test_a_result_that_was_there_before_its_job_is_the_jobs_own(receiver, database):
    """As after a rebuilt index, or when a PACS sends back what a lost database had stored."""
    result = make_data_set(BASIC_TEXT_SR, Modality="SR")
    first = receiver.receive_data_set(data_set_bytes(part10(result)), meta_of(result), ORIGIN)
    assert first.result is IndexResult.NEW
    with database.transaction() as tx:
        receiver.receive_own_results(tx, [result], "job1")
    with database.reading() as tx:
        row = find_instance(tx, result.SOPInstanceUID)
        assert (row.origin_kind, row.origin_detail) == ("OWN RESULT", "job1")


def leaves(kind):
    below = kind.__subclasses__()
    return [kind] if not below else [leaf for child in below for leaf in leaves(child)]


@pytest.mark.parametrize("leaf", leaves(NodeError), ids=lambda leaf: leaf.__name__)
def test_every_error_says_what_peers_are_told_and_what_to_do(leaf):
    assert 0 <= leaf.dimse_status <= 0xFFFF
    assert 400 <= leaf.http_status < 600
    assert isinstance(leaf.stow_failure_reason, int)
    assert isinstance(leaf.is_retryable, bool)
    assert leaf.advice.endswith(".")
    assert f"+-- {leaf.__name__}" in errors.__doc__
    assert f"0x{leaf.dimse_status:04X}  {leaf.http_status}" in errors.__doc__


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_files_are_kept_bit_for_bit_or_refused_with_a_reason(receiver, shared_data, stored_file):
    taken, refused = 0, []
    for path in real_files(shared_data / "data" / "dicom"):
        file = path.read_bytes()
        try:
            received = receiver.receive_part10(chunks(file, 65536), ORIGIN)
        except NodeError as error:
            refused.append((path.name, type(error).__name__))
            continue
        taken += received.result is IndexResult.NEW
        assert data_set_bytes(stored_file(received.sop_instance_uid)) == data_set_bytes(file)
    assert taken >= 40
    assert ("MR_truncated.dcm", "Unparseable") in refused
    assert ("rtplan_truncated.dcm", "Unparseable") in refused


def real_files(folder):
    """Every fourth file, and those that are truncated."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv")
    return files[::4] + [path for path in files if "truncated" in path.name and path not in files[::4]]
