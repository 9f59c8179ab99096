"""The index: new, duplicate, conflict; finding what was entered."""

import pytest
from sqlalchemy import select

from storage.database import Database
from storage.errors import StorageError
from storage.index import (
    IndexResult,
    find_instance,
    find_study,
    index_instance,
    instances_of_series,
    instances_of_study,
    mark_complete,
    series_of_study,
)
from storage.tables import Conflict, Instance, Series, Study
from tests.storage.builders import STUDY, Archive, make_dataset


def conflicts(db: Database) -> list[Conflict]:
    with db.reading() as tx:
        return list(tx.scalars(select(Conflict).order_by(Conflict.id)))


def study_row(db: Database, uid: str = STUDY) -> Study:
    with db.reading() as tx:
        found = find_study(tx, uid)
    assert found is not None
    return found


def rows(db: Database, table: type[Study] | type[Series] | type[Instance]) -> int:
    with db.reading() as tx:
        return len(tx.scalars(select(table)).all())


def test_a_new_instance_is_found_with_its_series_and_study(archive: Archive):
    ds = make_dataset(PatientName="Doe^Jane", SeriesDescription="Lung", InstanceNumber=4)
    assert archive.receive(ds) is IndexResult.NEW
    with archive.db.reading() as tx:
        instance = find_instance(tx, ds.SOPInstanceUID)
        (series,) = series_of_study(tx, STUDY)
    assert instance is not None
    assert (instance.series_instance_uid, instance.study_instance_uid) == (f"{STUDY}.1", STUDY)
    assert (instance.origin_kind, instance.origin_detail) == ("DIMSE", "SENDER")
    assert (instance.instance_number, instance.path[:8]) == (4, "objects/")
    assert (series.series_description, series.is_own_result) == ("Lung", False)
    study = study_row(archive.db)
    assert (study.patient_name, study.patient_name_folded) == ("Doe^Jane", "doe^jane")
    assert (study.version, study.completed_at, study.outcome) == (1, None, None)
    assert study.created_at <= min(instance.received_at, study.last_received_at)


def test_what_nobody_sent_is_not_found(db: Database):
    with db.reading() as tx:
        assert find_instance(tx, "1.2.3") is None
        assert find_study(tx, "1.2.3") is None
        assert instances_of_study(tx, "1.2.3") == []
        assert instances_of_series(tx, "1.2.3") == []
        assert series_of_study(tx, "1.2.3") == []


def test_the_same_instance_again_changes_nothing(archive: Archive):
    archive.receive(make_dataset())
    before = study_row(archive.db)
    assert archive.receive(make_dataset()) is IndexResult.DUPLICATE
    after = study_row(archive.db)
    assert (after.last_received_at, after.version) == (before.last_received_at, 1)
    assert rows(archive.db, Instance) == 1
    assert conflicts(archive.db) == []


def test_a_duplicate_does_not_reopen_a_complete_study(archive: Archive):
    archive.receive(make_dataset())
    with archive.db.transaction() as tx:
        mark_complete(tx, STUDY, 1, {})
    assert archive.receive(make_dataset()) is IndexResult.DUPLICATE
    assert study_row(archive.db).completed_at is not None


def test_other_content_under_a_known_uid_is_quarantined(archive: Archive):
    archive.receive(make_dataset(), b"first")
    second = archive.record(make_dataset(PatientID="OTHER"), b"second")
    with archive.db.transaction() as tx:
        assert index_instance(tx, second) is IndexResult.CONFLICT
    with archive.db.reading() as tx:
        kept = find_instance(tx, second.sop_instance_uid)
    (conflict,) = conflicts(archive.db)
    assert kept is not None
    assert (conflict.first_sha256, conflict.second_sha256) == (kept.sha256, second.stored.sha256)
    assert (conflict.path, conflict.origin_detail) == (second.stored.path, "SENDER")
    assert study_row(archive.db).patient_id == ""
    assert (archive.files_root / conflict.path).read_bytes() == b"second"


def test_a_conflict_sent_again_is_counted_not_repeated(archive: Archive):
    archive.receive(make_dataset(), b"first")
    for _ in range(3):
        assert archive.receive(make_dataset(), b"second") is IndexResult.CONFLICT
    assert archive.receive(make_dataset(), b"third") is IndexResult.CONFLICT
    assert [conflict.times_received for conflict in conflicts(archive.db)] == [3, 1]
    assert archive.receive(make_dataset(), b"first") is IndexResult.DUPLICATE


def test_a_conflict_does_not_touch_the_quiet_period(archive: Archive):
    archive.receive(make_dataset(), b"first")
    before = study_row(archive.db).last_received_at
    archive.receive(make_dataset(), b"second")
    assert study_row(archive.db).last_received_at == before


def test_a_uid_that_comes_in_another_study_is_never_merged(archive: Archive):
    first = make_dataset()
    archive.receive(first)
    second = make_dataset(study="1.2.826.2", PatientID="OTHER")
    second.SOPInstanceUID = first.SOPInstanceUID
    assert archive.receive(second) is IndexResult.CONFLICT
    with archive.db.reading() as tx:
        assert find_study(tx, "1.2.826.2") is None
    assert rows(archive.db, Series) == 1


def test_a_series_that_comes_in_another_study_is_never_merged(archive: Archive):
    archive.receive(make_dataset("1"))
    second = make_dataset("2", study="1.2.826.2", PatientID="OTHER")
    second.SeriesInstanceUID = f"{STUDY}.1"
    assert archive.receive(second) is IndexResult.CONFLICT
    assert (rows(archive.db, Study), rows(archive.db, Instance)) == (1, 1)
    (conflict,) = conflicts(archive.db)
    assert conflict.reason == "its series belongs to another study"


def test_a_conflict_leaves_the_rest_of_the_transaction_alone(archive: Archive):
    archive.receive(make_dataset("1"), b"first")
    with archive.db.transaction() as tx:
        assert archive.enter(tx, make_dataset("2")) is IndexResult.NEW
        assert archive.enter(tx, make_dataset("1"), b"second") is IndexResult.CONFLICT
        assert archive.enter(tx, make_dataset("3")) is IndexResult.NEW
    assert rows(archive.db, Instance) == 3


def test_attributes_that_were_empty_are_filled_and_known_ones_stay(archive: Archive):
    archive.receive(make_dataset("1", PatientID="P1", StudyDescription=""))
    archive.receive(make_dataset("2", PatientID="", PatientName="Doe^Jane", StudyDescription="Chest"))
    archive.receive(make_dataset("3", PatientID="P2", PatientName="Roe^Jim"))
    study = study_row(archive.db)
    assert (study.patient_id, study.patient_name, study.study_description) == ("P1", "Doe^Jane", "Chest")
    assert study.patient_name_folded == "doe^jane"


def test_a_late_instance_reopens_the_study_under_the_next_version(archive: Archive):
    archive.receive(make_dataset("1"))
    with archive.db.transaction() as tx:
        assert mark_complete(tx, STUDY, 1, {"kind": "quiet period"})
    assert archive.receive(make_dataset("2")) is IndexResult.NEW
    study = study_row(archive.db)
    assert (study.version, study.completed_at, study.evidence, study.outcome) == (2, None, None, None)
    assert archive.receive(make_dataset("3")) is IndexResult.NEW
    assert study_row(archive.db).version == 2


def test_our_own_result_neither_reopens_a_study_nor_disturbs_its_quiet_period(archive: Archive):
    archive.receive(make_dataset("1"))
    with archive.db.transaction() as tx:
        mark_complete(tx, STUDY, 1, {})
    before = study_row(archive.db)
    result = make_dataset("1", series="2", Modality="SEG")
    assert archive.receive(result, is_own_result=True) is IndexResult.NEW
    after = study_row(archive.db)
    assert (after.version, after.completed_at) == (1, before.completed_at)
    assert after.last_received_at == before.last_received_at
    with archive.db.reading() as tx:
        assert [series.is_own_result for series in series_of_study(tx, STUDY)] == [False, True]


def test_instances_come_in_the_order_of_their_numbers_unnumbered_last(archive: Archive):
    for sop, number in (("1", None), ("2", 10), ("3", 2)):
        archive.receive(make_dataset(sop, InstanceNumber=number))
    archive.receive(make_dataset("1", series="0", InstanceNumber=99))
    with archive.db.reading() as tx:
        series = [instance.sop_instance_uid for instance in instances_of_series(tx, f"{STUDY}.1")]
        study = [instance.sop_instance_uid for instance in instances_of_study(tx, STUDY)]
    assert series == [f"{STUDY}.1.3", f"{STUDY}.1.2", f"{STUDY}.1.1"]
    assert study == [f"{STUDY}.0.1", *series]


def test_series_come_in_the_order_of_their_numbers_unnumbered_last(archive: Archive):
    for series, number in (("1", None), ("2", 10), ("3", 2)):
        archive.receive(make_dataset(series=series, SeriesNumber=number))
    with archive.db.reading() as tx:
        assert [row.series_number for row in series_of_study(tx, STUDY)] == [2, 10, None]


def test_rows_stay_usable_after_their_transaction(archive: Archive):
    with archive.db.transaction() as tx:
        archive.enter(tx, make_dataset(PatientID="P1"))
        study = find_study(tx, STUDY)
    assert study is not None
    assert study.patient_id == "P1"


def test_nothing_stays_of_a_transaction_that_fails(archive: Archive):
    def enter_and_fail() -> None:
        with archive.db.transaction() as tx:
            archive.enter(tx, make_dataset())
            raise StorageError

    with pytest.raises(StorageError):
        enter_and_fail()
    assert rows(archive.db, Study) == 0


def test_hostile_text_is_only_text(archive: Archive):
    hostile = "'; DROP TABLE study; --"
    archive.receive(make_dataset(PatientID=hostile, StudyDescription="<script>alert(1)</script>\r\nX: y"))
    assert study_row(archive.db).patient_id == hostile
