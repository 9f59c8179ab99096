"""Matching as DICOM defines it: exact, wildcards, ranges, lists, names; order, pages, counts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, update

from storage.database import Database, upgrade
from storage.errors import SearchRefused
from storage.search import (
    SearchQuery,
    count_instances,
    count_series,
    count_studies,
    search_instances,
    search_series,
    search_studies,
)
from storage.tables import Instance
from tests.storage.builders import STUDY, Archive, make_dataset
from tests.storage.postgresql_server import create_database

INSTANCE = Instance.sop_instance_uid
STUDIES = {
    "1.1": {
        "PatientName": "Doe^Jane",
        "PatientID": "P1",
        "StudyDate": "20240101",
        "StudyTime": "101500",
        "AccessionNumber": "A_1",
        "StudyDescription": "100% chest",
        "ReferringPhysicianName": "House^Gregory",
    },
    "1.2": {
        "PatientName": "MÜLLER-LÜDENSCHEIDT^Jörg^^Dr",
        "PatientID": "p1",
        "StudyDate": "20240201",
        "StudyTime": "1030",
        "AccessionNumber": "AX1",
        "Modality": "MR",
    },
    "1.3": {
        "PatientName": "Yamada^Tarou=山田^太郎",
        "PatientID": "P22",
        "StudyDate": "20240201",
        "StudyTime": "235959.5",
        "Modality": "US",
    },
    "1.4": {"PatientID": "P[2]*", "Modality": "CT"},
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Four studies; 1.1 has a second series with two more instances. Nobody changes them."""
    folder = tmp_path_factory.mktemp("search")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/node.sqlite"
    else:
        url = create_database(request.getfixturevalue("postgresql"), "search")
    upgrade(url)
    archive = Archive(Database(url), folder / "files")
    fill(archive)
    yield archive
    archive.db.close()


def fill(archive: Archive) -> None:
    for study, attributes in STUDIES.items():
        ds = make_dataset(study=study, SeriesNumber=1, InstanceNumber=1, **attributes)
        if "=" in attributes.get("PatientName", ""):
            ds.SpecificCharacterSet = "ISO_IR 192"
        archive.receive(ds)
    report = {"Modality": "SR", "SeriesNumber": 2, "SeriesDescription": "Report"}
    for sop in ("1", "2"):
        archive.receive(make_dataset(sop, study="1.1", series="2", InstanceNumber=int(sop), **report))


def found(archive: Archive, *, fuzzy: bool = False, **filters: str) -> list[str]:
    with archive.db.reading() as tx:
        matches = search_studies(tx, SearchQuery(filters, fuzzy))
    return [match.study.study_instance_uid for match in matches]


NEWEST_FIRST = ["1.3", "1.2", "1.1", "1.4"]


def test_without_filters_everything_matches_newest_first_unknown_date_last(filled: Archive):
    assert found(filled) == NEWEST_FIRST


def test_studies_of_the_same_time_come_in_the_order_of_arrival_newest_first(archive: Archive):
    for number in ("7", "5", "6"):
        archive.receive(make_dataset(study=f"1.{number}"))
    assert found(archive) == ["1.6", "1.5", "1.7"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"PatientID": "P1"}, ["1.1"]),
        ({"PatientID": "p1"}, ["1.2"]),
        ({"PatientID": " P1 "}, ["1.1"]),
        ({"PatientID": "P"}, []),
        ({"PatientID": ""}, NEWEST_FIRST),
        ({"PatientID": "*"}, NEWEST_FIRST),
        ({"PatientID": "P*"}, ["1.3", "1.1", "1.4"]),
        ({"PatientID": "P?"}, ["1.1"]),
        ({"PatientID": "P??"}, ["1.3"]),
        ({"PatientID": "*2*"}, ["1.3", "1.4"]),
        ({"PatientID": "P[2]*"}, ["1.4"]),
        ({"AccessionNumber": "A_*"}, ["1.1"]),
        ({"AccessionNumber": "A?1"}, ["1.2", "1.1"]),
        ({"StudyDescription": "100% *"}, ["1.1"]),
        ({"StudyDescription": "1%*"}, []),
        ({"StudyDescription": "*/*"}, []),
        ({"PatientID": "P1\\p1"}, ["1.2", "1.1"]),
        ({"PatientID": "P?\\nobody"}, ["1.1"]),
        ({"StudyDescription": "' OR 1=1 --"}, []),
        ({"NoSuchKeyword": "x"}, NEWEST_FIRST),
        ({"SeriesDescription": "Report"}, NEWEST_FIRST),
        ({"PatientID": "P1", "AccessionNumber": "A_1"}, ["1.1"]),
        ({"PatientID": "P1", "AccessionNumber": "AX1"}, []),
    ],
)
def test_text_is_matched_with_case_and_wildcards(
    filled: Archive, filters: dict[str, str], expected: list[str]
):
    assert found(filled, **filters) == expected


@pytest.mark.parametrize(
    ("value", "is_fuzzy", "expected"),
    [
        ("doe^jane", False, ["1.1"]),
        ("DOE^JANE^^", False, ["1.1"]),
        ("doe", False, []),
        ("doe*", False, ["1.1"]),
        ("*^j*", False, ["1.2", "1.1"]),
        ("müller-lüdenscheidt^JÖRG^^DR", False, ["1.2"]),
        ("*山田*", False, ["1.3"]),
        ("yamada^tarou=山田^太郎", False, ["1.3"]),
        ("jan do", True, ["1.1"]),
        ("Doe^Jane", True, ["1.1"]),
        ("DOE*", True, ["1.1"]),
        ("ane", True, []),
        ("lüd jörg", True, ["1.2"]),
        ("太", True, ["1.3"]),
        ("%", True, []),
        ("^", True, NEWEST_FIRST),
    ],
)
def test_names_are_matched_without_case(filled: Archive, value: str, is_fuzzy: bool, expected: list[str]):
    assert found(filled, fuzzy=is_fuzzy, PatientName=value) == expected


def test_fuzzy_matching_is_for_names_only(filled: Archive):
    assert found(filled, fuzzy=True, PatientID="P") == []
    assert found(filled, fuzzy=True, ReferringPhysicianName="greg") == ["1.1"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"StudyDate": "20240101"}, ["1.1"]),
        ({"StudyDate": "20240101-20240131"}, ["1.1"]),
        ({"StudyDate": "20240101-20240201"}, ["1.3", "1.2", "1.1"]),
        ({"StudyDate": "20240102-"}, ["1.3", "1.2"]),
        ({"StudyDate": "-20240131"}, ["1.1"]),
        ({"StudyDate": "20250101-20240101"}, []),
        ({"StudyTime": "1030"}, ["1.2"]),
        ({"StudyTime": "10"}, ["1.2", "1.1"]),
        ({"StudyTime": "10:15:00"}, ["1.1"]),
        ({"StudyTime": "1000-1015"}, ["1.1"]),
        ({"StudyTime": "1015-1030"}, ["1.2", "1.1"]),
        ({"StudyTime": "235959-"}, ["1.3"]),
        ({"StudyTime": "-235959"}, ["1.3", "1.2", "1.1"]),
        ({"StudyTime": "-101459.999999"}, []),
    ],
)
def test_dates_and_times_match_exactly_or_in_ranges_and_unknown_ones_never(
    filled: Archive, filters: dict[str, str], expected: list[str]
):
    assert found(filled, **filters) == expected


@pytest.mark.parametrize(
    ("filters", "sentence"),
    [
        ({"StudyDate": "2024"}, "StudyDate"),
        ({"StudyDate": "-"}, "range"),
        ({"StudyDate": "20240101-20240102-20240103"}, "range"),
        ({"StudyDate": "٢٠٢٤٠١٠١"}, "StudyDate"),
        ({"StudyTime": "1"}, "StudyTime"),
        ({"StudyTime": "noon"}, "StudyTime"),
        ({"PatientID": "x" * 257}, "too long"),
        ({"PatientID": "a\0b"}, "NUL"),
        ({"StudyInstanceUID": "1," * 33000}, "too long"),
    ],
)
def test_a_value_that_cannot_be_matched_is_refused_without_repeating_it(
    filled: Archive, filters: dict[str, str], sentence: str
):
    with pytest.raises(SearchRefused, match=sentence) as caught:
        found(filled, **filters)
    assert next(iter(filters.values())) not in str(caught.value).replace("a-b, a- or -b", "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.1", ["1.1"]),
        ("1.1\\1.3", ["1.3", "1.1"]),
        ("1.1,1.3,9.9", ["1.3", "1.1"]),
        ("9.9", []),
        ("1.*", []),
        (",".join(f"1.{number}" for number in range(1300)), NEWEST_FIRST),
    ],
)
def test_uids_match_one_or_a_list(filled: Archive, value: str, expected: list[str]):
    assert found(filled, StudyInstanceUID=value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("SR", ["1.1"]),
        ("MR,US", ["1.3", "1.2"]),
        ("MR\\SR", ["1.2", "1.1"]),
        ("*R", ["1.2", "1.1"]),
        ("ct", []),
        (",".join(["XA"] * 80), []),
    ],
)
def test_a_study_is_found_by_any_of_its_modalities(filled: Archive, value: str, expected: list[str]):
    assert found(filled, ModalitiesInStudy=value) == expected


def test_the_worst_patterns_are_answered(filled: Archive):
    assert found(filled, StudyDescription="*a" * 128) == []
    assert found(filled, fuzzy=True, PatientName="a " * 128) == []


def test_a_study_tells_its_modalities_and_counts(filled: Archive):
    with filled.db.reading() as tx:
        (match,) = search_studies(tx, SearchQuery({"StudyInstanceUID": "1.1"}))
    assert (match.modalities, match.number_of_series, match.number_of_instances) == (("CT", "SR"), 2, 3)


def test_a_page_of_the_newest_studies_is_read_in_order_not_sorted(migrated_sqlite: Path):
    db = Database(f"sqlite:///{migrated_sqlite}")
    statements: list[str] = []

    def explain(
        connection: Connection, _cursor: object, statement: str, parameters: object, *_: object
    ) -> None:
        if "LIMIT" in statement and not statement.startswith("EXPLAIN"):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            statements.extend(row.detail for row in plan)

    with db.reading() as tx:
        event.listen(tx.connection(), "before_cursor_execute", explain)
        search_studies(tx, SearchQuery({"StudyDate": "20240101-"}))
    db.close()
    assert any("ix_study_newest" in detail for detail in statements)
    assert not [detail for detail in statements if "TEMP B-TREE FOR ORDER BY" in detail]


def test_pages_do_not_overlap(filled: Archive):
    pages = []
    with filled.db.reading() as tx:
        for offset in range(0, 6, 2):
            matches = search_studies(tx, SearchQuery({}, limit=2, offset=offset))
            pages.append([match.study.study_instance_uid for match in matches])
    assert pages == [["1.3", "1.2"], ["1.1", "1.4"], []]


@pytest.mark.parametrize("page", [{"limit": -1}, {"limit": 10**9}, {"offset": -1}, {"offset": 10**12}])
def test_a_page_out_of_bounds_is_refused(filled: Archive, page: dict[str, int]):
    with filled.db.reading() as tx, pytest.raises(SearchRefused, match="limit"):
        search_studies(tx, SearchQuery({}, **page))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["1.3.1", "1.2.1", "1.1.1", "1.1.2", "1.4.1"]),
        ({"StudyInstanceUID": "1.1"}, ["1.1.1", "1.1.2"]),
        ({"StudyInstanceUID": "1.1", "Modality": "SR"}, ["1.1.2"]),
        ({"SeriesNumber": "2"}, ["1.1.2"]),
        ({"SeriesNumber": "99999999999"}, []),
        ({"SeriesDescription": "Rep*"}, ["1.1.2"]),
        ({"SeriesInstanceUID": "1.1.1,1.2.1"}, ["1.2.1", "1.1.1"]),
        ({"PatientID": "P22"}, ["1.3.1"]),
        ({"SOPInstanceUID": "1.1.1.1"}, ["1.3.1", "1.2.1", "1.1.1", "1.1.2", "1.4.1"]),
    ],
)
def test_series_match_by_their_own_and_their_studys_attributes(
    filled: Archive, filters: dict[str, str], expected: list[str]
):
    with filled.db.reading() as tx:
        matches = search_series(tx, SearchQuery(filters))
    assert [match.series.series_instance_uid for match in matches] == expected


def test_a_series_tells_its_study_and_count(filled: Archive):
    with filled.db.reading() as tx:
        (match,) = search_series(tx, SearchQuery({"Modality": "SR"}))
    assert (match.study.patient_id, match.number_of_instances) == ("P1", 2)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"StudyInstanceUID": "1.1"}, ["1.1.1.1", "1.1.2.1", "1.1.2.2"]),
        ({"SeriesInstanceUID": "1.1.2", "InstanceNumber": "2"}, ["1.1.2.2"]),
        ({"SOPInstanceUID": "1.1.2.1\\1.3.1.1"}, ["1.3.1.1", "1.1.2.1"]),
        ({"SOPClassUID": "1.2.3"}, []),
        ({"Modality": "SR", "PatientID": "P1"}, ["1.1.2.1", "1.1.2.2"]),
        ({"Rows": "512"}, []),
    ],
)
def test_instances_match_by_attributes_of_every_level(
    filled: Archive, filters: dict[str, str], expected: list[str]
):
    with filled.db.reading() as tx:
        matches = search_instances(tx, SearchQuery(filters))
    assert [match.instance.sop_instance_uid for match in matches] == expected


def test_an_instance_tells_its_series_and_study(filled: Archive):
    with filled.db.reading() as tx:
        (match,) = search_instances(tx, SearchQuery({"SOPInstanceUID": "1.2.1.1"}))
    assert (match.series.modality, match.study.patient_id) == ("MR", "p1")


@pytest.mark.parametrize("value", ["two", "1.5", "1-2", ""])
def test_a_number_that_is_none_is_refused(filled: Archive, value: str):
    with filled.db.reading() as tx:
        if value == "":
            assert len(search_series(tx, SearchQuery({"SeriesNumber": value}))) == 5
            return
        with pytest.raises(SearchRefused, match="SeriesNumber"):
            search_series(tx, SearchQuery({"SeriesNumber": value}))


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20240101-20240201", "101500-103000", ["1.2", "1.1"]),
        ("20240101-20240201", "101501-", ["1.3", "1.2"]),
        ("20240201-", "2300-", ["1.3"]),
        ("-20240201", "-1030", ["1.2", "1.1"]),
        ("", "2300-", ["1.3"]),
        ("20240101-", "", ["1.3", "1.2", "1.1"]),
    ],
)
def test_study_date_and_time_as_one_range(filled: Archive, date: str, time: str, expected: list[str]):
    query = SearchQuery({"StudyDate": date, "StudyTime": time}, is_datetime_combined=True)
    with filled.db.reading() as tx:
        assert [match.study.study_instance_uid for match in search_studies(tx, query)] == expected


def test_what_is_counted_is_what_is_found_up_to_a_bound(filled: Archive):
    with filled.db.reading() as tx:
        assert count_studies(tx, SearchQuery({}, limit=1), 100) == len(STUDIES)
        assert count_studies(tx, SearchQuery({"PatientID": "P*"}), 2) == 2
        assert count_series(tx, SearchQuery({"StudyInstanceUID": "1.1"}), 100) == 2
        assert count_instances(tx, SearchQuery({"StudyInstanceUID": "1.1"}), 100) == 3


def test_what_was_rejected_is_not_found_and_what_was_replaced_only_by_its_uid(archive: Archive):
    for sop in ("1", "2", "3"):
        archive.receive(make_dataset(sop))
    with archive.db.transaction() as tx:
        tx.execute(update(Instance).where(INSTANCE.endswith(".2")).values(retired_as="REJECTED"))
        tx.execute(update(Instance).where(INSTANCE.endswith(".3")).values(retired_as="SUPERSEDED"))
    with archive.db.reading() as tx:
        (study,) = search_studies(tx, SearchQuery({}))
        assert (study.number_of_instances, study.modalities) == (1, ("CT",))
        assert len(search_instances(tx, SearchQuery({}))) == 1
        series = SearchQuery({"SeriesInstanceUID": f"{STUDY}.1"})
        assert [match.instance.sop_instance_uid[-1] for match in search_instances(tx, series)] == ["1", "3"]
        assert search_instances(tx, SearchQuery({"SOPInstanceUID": f"{STUDY}.1.2"})) == []
        assert search_series(tx, series)[0].number_of_instances == 2
    with archive.db.transaction() as tx:
        tx.execute(update(Instance).values(retired_as="REJECTED"))
    with archive.db.reading() as tx:
        assert search_studies(tx, SearchQuery({})) == []
        assert search_series(tx, SearchQuery({})) == []
