"""Whose images these are and which result counts: late, rejected, corrected, foreign and partial ones."""

import random
from copy import deepcopy
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select

from dicom_node.errors import ConflictingInstance
from dicom_node.notes import IdentityRules
from dicom_node.pipeline import Services, run_job
from storage.database import Database
from storage.deliveries import DeliveryState
from storage.index import (
    find_instance,
    find_study,
    instances_of_study,
)
from storage.studies import request_completion
from storage.tables import Conflict, Delivery, Instance
from tests import builders
from tests.ward import (
    KEY_OBJECT,
    PACS,
    TITLES,
    VIEWER,
    Ward,
    coded,
    corrected,
    derived,
    rejection_note,
    stack,
    uids,
)


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    return Ward(database, tmp_path)


# ---- late images


def test_late_images_give_a_result_that_names_and_replaces_the_old_one(ward: Ward) -> None:
    images = stack()
    ward.receive(*images[:3])
    ward.work()
    first = ward.results(images[0])
    ward.receive(images[3])
    ward.work()
    second = ward.results(images[0])
    assert first.keys() == second.keys() == {"SEG", "SR"}
    assert ward.study(images[0]).version == 2
    replaced = ward.results(images[0], retired_as="SUPERSEDED")
    assert {row.sop_instance_uid for row in replaced.values()} == {
        row.sop_instance_uid for row in first.values()
    }
    report = ward.read(second["SR"])
    (predecessor,) = report.PredecessorDocumentsSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in predecessor.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert first["SR"].sop_instance_uid in named
    assert "PredecessorDocumentsSequence" not in ward.read(replaced["SR"])
    jobs = ward.jobs()
    assert jobs[1].supersedes == jobs[0].job_id


def test_only_the_current_result_is_found_and_the_old_one_is_given_by_its_uid(ward: Ward) -> None:
    images = stack()
    ward.receive(*images[:3])
    ward.work()
    old = ward.results(images[0])["SEG"]
    ward.receive(images[3])
    ward.work()
    new = ward.results(images[0])["SEG"]
    found = ward.found(images[0])
    assert new.sop_instance_uid in found
    assert old.sop_instance_uid not in found
    assert ward.found(images[0], SOPInstanceUID=old.sop_instance_uid) == {old.sop_instance_uid}
    with ward.database.reading() as tx:
        assert find_instance(tx, old.sop_instance_uid) is not None
        listed = {row.sop_instance_uid for row in instances_of_study(tx, str(images[0].StudyInstanceUID))}
    assert new.sop_instance_uid in listed
    assert old.sop_instance_uid not in listed
    assert ward.read(old).SOPInstanceUID == old.sop_instance_uid


def test_a_series_without_change_keeps_its_result(ward: Ward) -> None:
    one = stack(2)
    other = stack(2, one[0].StudyInstanceUID)
    ward.receive(*one, *other)
    ward.work()
    before = {row.sop_instance_uid for row in _all_results(ward, one[0])}
    late = deepcopy(other[1])
    late.SOPInstanceUID = late.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    late.ImagePositionPatient = ["0", "0", "160"]
    ward.receive(late)
    ward.work()
    after = {row.sop_instance_uid for row in _all_results(ward, one[0])}
    assert len(after) == 4
    assert len(before & after) == 2


def _all_results(ward: Ward, dataset: Dataset) -> list[Instance]:
    with ward.database.reading() as tx:
        rows = instances_of_study(tx, str(dataset.StudyInstanceUID))
        return [row for row in rows if row.origin_kind == "OWN RESULT"]


def test_the_same_images_again_change_nothing(ward: Ward) -> None:
    images = stack()
    ward.receive(*images)
    ward.work()
    before = ward.results(images[0])
    ward.receive(*images)
    ward.work()
    assert ward.study(images[0]).version == 1
    assert {row.sop_instance_uid for row in ward.results(images[0]).values()} == {
        row.sop_instance_uid for row in before.values()
    }
    assert len(ward.jobs()) == 1


def test_an_old_job_that_ends_after_a_newer_one_is_not_stored(ward: Ward) -> None:
    images = stack()
    ward.receive(*images[:3])
    ward.complete()
    slow = ward.claim()
    assert slow is not None
    ward.receive(images[3])
    ward.work()
    newest = ward.results(images[0])
    run_job(slow, ward.services)  # it has its answer already
    assert {row.sop_instance_uid for row in ward.results(images[0]).values()} == {
        row.sop_instance_uid for row in newest.values()
    }


# ---- partial studies


def test_a_partial_study_says_so(ward: Ward) -> None:
    images = stack(2)
    ward.receive(*images)
    with ward.database.transaction() as tx:
        request_completion(tx, str(images[0].StudyInstanceUID), "STOW-RS request", missing=3)
    ward.work()
    report = ward.results(images[0])["SR"]
    assert "2/5" in ward.read(report).to_json()
    assert '"inputs": "2/5"' in (ward.jobs()[0].summary or "")
    assert ward.study(images[0]).expected_instances == 5


def test_the_rest_of_a_partial_study_takes_the_remark_away(ward: Ward) -> None:
    images = stack(3)
    ward.receive(*images[:2])
    with ward.database.transaction() as tx:
        request_completion(tx, str(images[0].StudyInstanceUID), "STOW-RS request", missing=1)
    ward.work()
    ward.receive(images[2])
    ward.work()
    assert "2/3" not in ward.read(ward.results(images[0])["SR"]).to_json()
    assert "2/3" in ward.read(ward.results(images[0], retired_as="SUPERSEDED")["SR"]).to_json()


def test_a_partial_study_can_be_held(ward: Ward) -> None:
    held = {**ward.settings.model_dump()["completion"], "hold_incomplete": True}
    ward.settings = ward.settings.model_copy(
        update={"completion": type(ward.settings.completion).model_validate(held)}
    )
    images = stack(3)
    ward.receive(*images[:2])
    with ward.database.transaction() as tx:
        request_completion(tx, str(images[0].StudyInstanceUID), "STOW-RS request", missing=1)
    ward.work()
    assert ward.jobs() == []
    assert ward.study(images[0]).outcome == "held: 2 of 3 instances have come"
    ward.receive(images[2])
    ward.work()
    assert ward.results(images[0]).keys() == {"SEG", "SR"}


# ---- order


def test_order_is_by_geometry_whatever_number_and_arrival_say(ward: Ward) -> None:
    images = builders.make_stack([builders.make_ellipse((40, 48), (20, 24), (r, r)) for r in (4, 6, 8, 10)])
    del images[2]  # a gap
    for number, dataset in enumerate(images):
        dataset.InstanceNumber = [7, 7, 1][number]
    ward.receive(*images)
    ward.work()
    first = ward.read(ward.results(images[0])["SEG"])
    shuffled = deepcopy(images)
    random.Random(5).shuffle(shuffled)
    study, series = generate_uid(), generate_uid()
    for dataset in shuffled:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ward.receive(*shuffled)
    ward.work()
    second = ward.read(ward.results(shuffled[0])["SEG"])
    assert (first.pixel_array == second.pixel_array).all()
    positions = [
        [
            str(frame.PlanePositionSequence[0].ImagePositionPatient)
            for frame in each.PerFrameFunctionalGroupsSequence
        ]
        for each in (first, second)
    ]
    assert positions[0] == positions[1]


def test_two_series_that_come_interleaved_are_not_mixed(ward: Ward) -> None:
    one = stack(3)
    other = stack(3, one[0].StudyInstanceUID)
    for dataset in other:
        dataset.FrameOfReferenceUID = one[0].FrameOfReferenceUID
    mixed = [dataset for pair in zip(one, other, strict=True) for dataset in pair]
    ward.receive(*mixed)
    ward.work()
    sources = set()
    for row in _all_results(ward, one[0]):
        segmentation = ward.read(row)
        if segmentation.Modality == "SEG":
            (series,) = segmentation.ReferencedSeriesSequence
            named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
            assert named in (uids(*one), uids(*other))
            sources.add(series.SeriesInstanceUID)
    assert sources == {one[0].SeriesInstanceUID, other[0].SeriesInstanceUID}


# ---- rejection notes


@pytest.mark.parametrize("code", TITLES)
def test_a_rejected_image_is_hidden_and_the_result_made_anew(ward: Ward, code: str) -> None:
    images = stack()
    ward.receive(*images)
    ward.work()
    old = ward.results(images[0])
    note = rejection_note(code, images[1])
    ward.receive(note, origin=PACS)
    assert ward.results(images[0]) == {}  # withdrawn at once, not when the new one is there
    assert uids(images[1]) & ward.found(images[0]) == set()
    with ward.database.reading() as tx:
        assert find_instance(tx, str(images[1].SOPInstanceUID)) is None
        deliveries = tx.scalars(select(Delivery)).all()
    assert {each.state for each in deliveries} == {DeliveryState.WITHDRAWN}
    ward.work()
    new = ward.results(images[0])
    assert new.keys() == {"SEG", "SR"}
    report = ward.read(new["SR"])
    assert str(images[1].SOPInstanceUID) not in report.to_json()
    assert old["SR"].sop_instance_uid in report.PredecessorDocumentsSequence[0].to_json()
    assert ward.results(images[0], retired_as="WITHDRAWN").keys() == {"SEG", "SR"}


def test_when_everything_is_rejected_the_result_is_withdrawn(ward: Ward) -> None:
    images = stack()
    ward.receive(*images)
    ward.work()
    ward.receive(rejection_note("113037", *images))
    ward.work()
    assert ward.results(images[0]) == {}
    assert len(ward.jobs()) == 1
    assert "rejected" in (ward.study(images[0]).outcome or "")
    assert ward.found(images[0], Modality="MR") == set()


def test_a_note_that_comes_first_hides_what_comes_after(ward: Ward) -> None:
    images = stack(3)
    ward.receive(rejection_note("113038", images[0]))
    ward.receive(*images)
    ward.work()
    assert ward.found(images[0], Modality="MR") == uids(*images[1:])
    assert str(images[0].SOPInstanceUID) not in ward.read(ward.results(images[0])["SR"]).to_json()
    ward.receive(images[0])  # once more: it stays hidden
    assert ward.found(images[0], Modality="MR") == uids(*images[1:])


@pytest.mark.parametrize("kind", ["other title", "other scheme", "other study", "switched off"])
def test_what_is_no_rejection_of_this_image_hides_nothing(ward: Ward, kind: str) -> None:
    images = stack(2)
    ward.receive(*images)
    ward.work()
    note = rejection_note("113001", images[0])
    if kind == "other title":
        note.ConceptNameCodeSequence = [coded("113000")]
    if kind == "other scheme":
        note.ConceptNameCodeSequence = [coded("113001", "99TEST")]
    if kind == "other study":
        note = rejection_note("113001", images[0], study="1.2.3.4")
    if kind == "switched off":
        ward.receiver.identity = IdentityRules(follows_rejection_notes=False)
    ward.receive(note)
    assert ward.found(images[0], Modality="MR") == uids(*images)
    assert ward.results(images[0]).keys() == {"SEG", "SR"}
    assert ward.study(images[0]).version == 1


def test_a_job_that_runs_while_its_image_is_rejected_stores_nothing(ward: Ward) -> None:
    images = stack()
    ward.receive(*images)
    ward.complete()
    job = ward.claim()
    assert job is not None
    stub = builders.MaskPredictor()

    class Rejecting(builders.MaskPredictor):
        def predict(self, *arguments: object) -> object:  # type: ignore[override]
            if stub is not None and ward.found(images[0], Modality="MR") == uids(*images):
                ward.receive(rejection_note("113037", images[2]))
            return stub.predict(*arguments)  # type: ignore[arg-type]

    run_job(job, Services(**{**vars(ward.services), "open_predictor": lambda _name: Rejecting()}))
    assert ward.results(images[0]) == {}
    assert [(each.state, each.outcome) for each in ward.jobs()] == [("CANCELED", "OUTDATED")]
    ward.work()
    assert str(images[2].SOPInstanceUID) not in ward.read(ward.results(images[0])["SR"]).to_json()


def test_our_own_result_can_be_rejected(ward: Ward) -> None:
    images = stack(2)
    ward.receive(*images)
    ward.work()
    results = [ward.read(row) for row in ward.results(images[0]).values()]
    for result in results:
        ward.receive(rejection_note("113001", result))
    assert ward.results(images[0]) == {}
    assert ward.study(images[0]).version == 1  # nobody asked for another one
    with ward.database.reading() as tx:
        assert {each.state for each in tx.scalars(select(Delivery))} == {DeliveryState.WITHDRAWN}


# ---- corrected demographics


def conflicts(ward: Ward) -> list[Conflict]:
    with ward.database.reading() as tx:
        return list(tx.scalars(select(Conflict)))


def test_the_same_image_for_another_patient_is_set_aside(ward: Ward) -> None:
    images = stack(2)
    ward.receive(*images)
    with pytest.raises(ConflictingInstance):
        ward.receive(corrected(images)[0])
    assert ward.study(images[0]).patient_id == "SYNTH-1"
    assert len(conflicts(ward)) == 1


def test_the_same_image_in_another_study_is_set_aside(ward: Ward) -> None:
    images = stack(1)
    ward.receive(*images)
    other = deepcopy(images[0])
    other.StudyInstanceUID = generate_uid()
    with pytest.raises(ConflictingInstance):
        ward.receive(other)
    with ward.database.reading() as tx:
        assert find_study(tx, str(other.StudyInstanceUID)) is None


def test_a_new_image_for_another_patient_is_never_merged_into_the_study(ward: Ward) -> None:
    images = stack(3)
    ward.receive(*images[:2])
    (stranger,) = corrected([images[2]])
    with pytest.raises(ConflictingInstance, match="another patient"):
        ward.receive(stranger)
    study = ward.study(images[0])
    assert study.patient_id == "SYNTH-1"
    assert "set aside" in (study.identity_note or "")
    assert ward.found(images[0]) == uids(*images[:2])
    assert [each.reason for each in conflicts(ward)] == ["its study belongs to another patient"]


def test_a_correction_that_is_accepted_gives_results_for_the_right_patient(
    database: Database, tmp_path: Path
) -> None:
    ward = Ward(database, tmp_path, corrections_from=["PACS"])
    images = stack(3)
    ward.receive(*images)
    ward.work()
    old = ward.results(images[0])
    right = corrected(images)
    ward.receive(right[0], origin=PACS)
    assert ward.results(images[0]) == {}
    ward.work()
    assert "different patients" in (ward.study(images[0]).outcome or "")  # held: not yet all corrected
    assert ward.results(images[0]) == {}
    ward.receive(*right[1:], origin=PACS)
    ward.work()
    study = ward.study(images[0])
    assert (study.patient_id, study.patient_name) == ("RIGHT-1", "Right^Patient")
    new = ward.results(images[0])
    assert new.keys() == {"SEG", "SR"}
    for row in new.values():
        made = ward.read(row)
        assert (str(made.PatientID), str(made.PatientName)) == ("RIGHT-1", "Right^Patient")
    assert old["SR"].sop_instance_uid in ward.read(new["SR"]).to_json()
    with database.reading() as tx:
        found = find_instance(tx, str(images[0].SOPInstanceUID))
        assert found is not None
        assert ward.read(found).PatientID == "RIGHT-1"
    assert len(conflicts(ward)) == 3  # the first contents are kept
    ward.receive(*right, origin=PACS)  # once more: known
    assert len(conflicts(ward)) == 3
    with pytest.raises(ConflictingInstance):  # who may not correct cannot undo it
        ward.receive(images[0])


def test_a_correction_must_be_of_the_same_image(database: Database, tmp_path: Path) -> None:
    ward = Ward(database, tmp_path, corrections_from=["PACS"])
    images = stack(1)
    ward.receive(*images)
    (other,) = corrected(images)
    other.Rows = other.Rows // 2
    other.PixelData = other.PixelData[: len(other.PixelData) // 2]
    with pytest.raises(ConflictingInstance):
        ward.receive(other, origin=PACS)
    assert ward.study(images[0]).patient_id == "SYNTH-1"


# ---- what others derive


VIEWER_OBJECTS = [
    ("1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
    ("1.2.840.10008.5.1.4.1.1.66.7", "SEG"),
    ("1.2.840.10008.5.1.4.1.1.88.34", "SR"),
    ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
    (KEY_OBJECT, "KO"),
]


def test_what_a_viewer_stores_back_does_not_run_the_model_again(ward: Ward) -> None:
    images = stack(2)
    ward.receive(*images)
    ward.work()
    ours = ward.results(images[0])["SEG"]
    named = Dataset()
    named.ReferencedSOPClassUID = ours.sop_class_uid
    named.ReferencedSOPInstanceUID = ours.sop_instance_uid
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = ours.series_instance_uid, [named]
    for sop_class, modality in VIEWER_OBJECTS:
        edited = derived(images[0], sop_class, modality, ReferencedSeriesSequence=[series])
        ward.receive(edited, origin=VIEWER)
        ward.work()
        study = ward.study(images[0])
        assert study.version == 1
        assert study.completed_at is not None
        assert len(ward.jobs()) == 1
        with ward.database.reading() as tx:
            stored = find_instance(tx, str(edited.SOPInstanceUID))
        assert stored is not None
        assert (stored.refers_to, stored.origin_kind) == (ours.sop_instance_uid, "STOW-RS")
        assert ward.results(images[0]).keys() == {"SEG", "SR"}
