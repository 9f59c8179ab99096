"""What the index keeps of a data set, whatever the data set says."""

from io import BytesIO

import pydicom.config
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit

from storage.errors import InstanceUnidentified
from storage.part10 import StoredFile
from storage.records import InstanceRecord, Origin, record_from_dataset
from storage.text import clean_text, fold_name
from tests.storage.builders import ORIGIN, make_dataset

STORED = StoredFile("objects/x", "0" * 64, 7)


@pytest.fixture(autouse=True)
def _quiet_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    """As dicom_node.receive sets it: a warning would repeat the value, which may be a patient's."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


def record(ds: Dataset) -> InstanceRecord:
    return record_from_dataset(ds, STORED, ORIGIN)


def with_raw(keyword: str, vr: str, value: bytes) -> Dataset:
    """A data set as it is read: `value` is not looked at before somebody asks."""
    ds = make_dataset()
    tag = Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
    return ds


def test_every_level_is_read():
    ds = make_dataset(
        PatientID="P1",
        PatientName="Doe^Jane",
        PatientBirthDate="19700102",
        PatientSex="F",
        StudyDate="20240102",
        StudyTime="101112.5",
        AccessionNumber="A1",
        StudyDescription="Chest",
        StudyID="S1",
        ReferringPhysicianName="House^Gregory",
        SeriesNumber=3,
        SeriesDescription="Lung",
        BodyPartExamined="CHEST",
        SeriesDate="20240103",
        SeriesTime="10",
        Laterality="L",
        InstanceNumber=4,
        Rows=5,
        Columns=6,
        NumberOfFrames=7,
    )
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found = record(ds)
    assert list(vars(found.study).values()) == [
        "P1", "Doe^Jane", "19700102", "F", "20240102", "101112.5", "A1", "Chest", "S1", "House^Gregory",
    ]  # fmt: skip
    assert list(vars(found.series).values()) == ["CT", 3, "Lung", "CHEST", "20240103", "10", "L"]
    assert list(vars(found.image).values()) == [4, 5, 6, 7]
    assert found.transfer_syntax_uid == JPEGBaseline8Bit
    assert (found.stored, found.origin, found.is_own_result) == (STORED, ORIGIN, False)


def test_an_almost_empty_data_set_gives_empty_values():
    ds = make_dataset()
    del ds.Modality
    del ds.file_meta
    found = record(ds)
    assert set(vars(found.study).values()) == {""}
    assert set(vars(found.series).values()) == {"", None}
    assert set(vars(found.image).values()) == {None}
    assert found.transfer_syntax_uid == ""


@pytest.mark.parametrize(
    "keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID"]
)
@pytest.mark.parametrize(
    "value", [None, b"", b"1." + b"2" * 63, b"../../etc", b"1.2.x", b"1..2", b"1.2\\1.3"]
)
def test_an_instance_without_usable_uids_is_unidentified(keyword: str, value: bytes | None):
    ds = make_dataset() if value is None else with_raw(keyword, "UI", value)
    if value is None:
        delattr(ds, keyword)
    with pytest.raises(InstanceUnidentified, match=keyword):
        record(ds)


def test_padding_is_stripped_from_uids_and_text():
    ds = with_raw("SOPInstanceUID", "UI", b"1.2.3\0")
    ds.PatientID = " P1  "
    found = record(ds)
    assert (found.sop_instance_uid, found.study.patient_id) == ("1.2.3", "P1")


def test_text_is_bounded():
    found = record(with_raw("StudyDescription", "LO", b"x" * 65536))
    assert found.study.study_description == "x" * 256


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\0b ", "ab"),
        ("\udcff", "?"),
        (" x" * 200, ("x" + " x" * 127)),
        ("x  y", "x"),
    ],
)
def test_what_a_database_cannot_hold_is_dropped(value: str, expected: str):
    length = 2 if value == "x  y" else 256
    assert clean_text(value, length) == expected


@pytest.mark.parametrize(
    "value", [b"1", b"9999", b"2024-1-2", b"20240102-20240103", b"\xff\xfe", b"20240102\\20240103"]
)
def test_an_unusable_date_is_unknown(value: bytes):
    assert record(with_raw("StudyDate", "DA", value)).study.study_date == ""


def test_old_dates_and_times_lose_their_dividers():
    ds = with_raw("StudyDate", "DA", b"2024.01.02")
    ds.update(with_raw("StudyTime", "TM", b"10:11:12"))
    found = record(ds)
    assert (found.study.study_date, found.study.study_time) == ("20240102", "101112")


@pytest.mark.parametrize("value", [b"abc", b"1.5", b"99999999999", b"1\\2", b""])
def test_an_unusable_number_is_unknown(value: bytes):
    assert record(with_raw("InstanceNumber", "IS", value)).image.instance_number is None


@pytest.mark.parametrize("value", [b"\1", b"\1\2\3", b"\1\2\3\4"])
def test_rows_of_the_wrong_length_are_unknown(value: bytes):
    assert record(with_raw("Rows", "US", value)).image.rows is None


def test_several_values_are_kept_as_dicom_writes_them():
    assert (
        record(make_dataset(BodyPartExamined=["CHEST", "ABDOMEN"])).series.body_part_examined
        == "CHEST\\ABDOMEN"
    )


def test_the_laterality_of_the_image_stands_in_for_that_of_the_series():
    assert record(make_dataset(ImageLaterality="R")).series.laterality == "R"


@pytest.mark.parametrize(
    ("charset", "encoded", "expected"),
    [
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东".encode(), "Wang^XiaoDong=王^小东"),
        ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
    ],
)
def test_names_are_decoded_with_their_charset(charset: str, encoded: bytes, expected: str):
    plain = make_dataset(SpecificCharacterSet=charset, PatientName="NAME")
    buffer = BytesIO()
    plain.save_as(buffer, enforce_file_format=True)
    padded = encoded + b" " * (len(encoded) % 2)
    content = buffer.getvalue().replace(b"PN\x04\x00NAME", b"PN" + len(padded).to_bytes(2, "little") + padded)
    assert record(dcmread(BytesIO(content))).study.patient_name == expected


def test_a_long_origin_is_cut():
    found = record_from_dataset(make_dataset(), STORED, Origin("STOW-RS", "u" * 1000), True)
    assert len(found.origin.detail) == 256
    assert found.is_own_result


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Doe^Jane^^^", "doe^jane"),
        ("MÜLLER^Jörg", "müller^jörg"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("Wang^XiaoDong=王^小东=", "wang^xiaodong=王^小东"),
        ("A^^=^", "a"),
        ("", ""),
    ],
)
def test_folded_names_lose_case_and_empty_ends(value: str, expected: str):
    assert fold_name(value) == expected
