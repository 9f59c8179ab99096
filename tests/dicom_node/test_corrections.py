"""Edited results that come back: matched with ours, compared, counted, and sent in place of ours."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from sqlalchemy import select, update

from dicom_node.answers import Kind, Verdict, meaning_of
from dicom_node.corrections import judge_corrections
from dicom_node.dimse.scu import send_instances
from dicom_node.forms.form import Form, Recipient
from dicom_node.limited import MIB, LimitedPool, Limits
from dicom_node.settings_network import PeerSettings
from dicom_node.web.operations import _latest_overlay
from storage.corrections import SEGMENTATIONS, Count, correction_counts, overlay_series
from storage.database import Database
from storage.tables import Correction, Delivery, Instance
from tests.dicom_node.edited import (
    BINARY,
    LABEL_MAP,
    PERSON,
    Masks,
    binary_of,
    edited_report,
    masks_of,
    predecessor,
    saved_by_ohif,
    segment,
)
from tests.ward import PACS, VIEWER, Ward, rejection_note, stack


@pytest.fixture(scope="module")
def children() -> Iterator[LimitedPool]:
    limits = Limits(1024 * MIB, 30.0, 60.0)
    with LimitedPool(1, limits=limits) as pool:
        yield pool


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    return Ward(database, tmp_path)


class Case:
    """A study with a result of ours, and what people send about it."""

    def __init__(self, ward: Ward, children: LimitedPool) -> None:
        self.ward, self._children = ward, children
        self.images = stack(3)
        ward.receive(*self.images)
        ward.work()
        found = ward.results(self.images[0])
        self.seg, self.report = (ward.read(found[kind]) for kind in ("SEG", "SR"))
        self.masks = masks_of(self.seg)

    def came(self, dataset: Dataset, origin: object = VIEWER) -> Correction | None:
        """Receive it, compare it, and give what is written down of it."""
        self.ward.receive(dataset, origin=origin)
        judge_corrections(self.ward.database, self.ward.services.files, self._children)
        with self.ward.database.reading() as tx:
            asked = select(Correction).where(Correction.sop_instance_uid == str(dataset.SOPInstanceUID))
            return tx.scalars(asked).first()

    def deliveries(self) -> dict[str, str]:
        """State by SOP Instance UID."""
        with self.ward.database.reading() as tx:
            rows = tx.execute(select(Delivery.sop_instance_uid, Delivery.state)).all()
        return dict(map(tuple, rows))

    def shown(self) -> str | None:
        """The series that the viewer's link turns on."""
        with self.ward.database.reading() as tx:
            return overlay_series(tx, tx.get_one(Instance, str(self.seg.SOPInstanceUID)))

    def smaller(self) -> Masks:
        """Ours without the left half of each mask."""
        changed = {uid: mask.copy() for uid, mask in self.masks.items()}
        for mask in changed.values():
            mask[:, : mask.shape[1] // 2] = False
        return changed


@pytest.fixture
def case(ward: Ward, children: LimitedPool) -> Case:
    return Case(ward, children)


def dice_of(ours: Masks, theirs: Masks) -> float:
    shared = sum(int((ours[uid] & theirs[uid]).sum()) for uid in ours)
    return 2 * shared / sum(int(mask.sum()) for part in (ours, theirs) for mask in part.values())


@pytest.mark.parametrize("is_update", [True, False])
def test_a_label_map_that_ohif_saved_is_a_modification(case: Case, is_update: bool) -> None:
    theirs = case.smaller()
    edited = saved_by_ohif(case.seg, theirs, is_update=is_update)
    found = case.came(edited)
    assert found is not None
    assert (found.verdict, found.matched_by) == ("MODIFIED", "REFERENCE" if is_update else "CONTENT")
    assert found.result_uid == str(case.seg.SOPInstanceUID)
    label = case.seg.SegmentSequence[0].SegmentLabel
    assert found.dice == f'{{"{label}": {round(dice_of(case.masks, theirs), 6)}}}'
    assert 0.3 < dice_of(case.masks, theirs) < 0.9
    assert (found.sender, found.made_by) == ("viewer", PERSON)
    assert case.shown() == str(edited.SeriesInstanceUID)
    assert case.deliveries() == {
        str(case.seg.SOPInstanceUID): "WITHDRAWN",
        str(case.report.SOPInstanceUID): "QUEUED",
        str(edited.SOPInstanceUID): "QUEUED",
    }


def test_the_same_again_is_accepted_whatever_its_form(case: Case) -> None:
    before = case.deliveries()
    saved = [saved_by_ohif(case.seg, case.masks), binary_of(case.seg, case.masks)]
    for dataset in saved:
        found = case.came(dataset, PACS)
        assert found is not None
        assert (found.verdict, found.sender) == ("ACCEPTED", "PACS")
        assert found.dice is not None
        assert found.dice.endswith(": 1.0}")
    assert case.deliveries() == before
    assert case.shown() == str(case.seg.SeriesInstanceUID)


def test_an_empty_segment_is_a_rejection(case: Case) -> None:
    empty = {uid: np.zeros_like(mask) for uid, mask in case.masks.items()}
    found = case.came(saved_by_ohif(case.seg, empty))
    assert found is not None
    assert (found.verdict, found.dice) == (
        "REJECTED",
        f'{{"{case.seg.SegmentSequence[0].SegmentLabel}": 0.0}}',
    )
    assert case.deliveries()[str(case.seg.SOPInstanceUID)] == "WITHDRAWN"
    assert len(case.deliveries()) == 2
    assert case.shown() is None


def test_a_rejection_note_is_a_rejection(case: Case) -> None:
    note = rejection_note("113001", case.seg, case.report)
    found = case.came(note)
    assert found is not None
    assert (found.verdict, found.result_uid) == ("REJECTED", str(case.seg.SOPInstanceUID))
    with case.ward.database.reading() as tx:
        assert correction_counts(tx) == [Count("stub", "0.0.1", "REJECTED", 1)]


def test_a_second_edit_takes_the_place_of_the_first(case: Case) -> None:
    first = saved_by_ohif(case.seg, case.smaller(), is_update=True)
    case.came(first)
    with case.ward.database.transaction() as tx:
        tx.execute(update(Delivery).where(Delivery.state == "QUEUED").values(state="DELIVERED"))
    second = saved_by_ohif(case.seg, case.masks | dict(list(case.smaller().items())[:1]), is_update=True)
    case.came(second)
    found = case.deliveries()
    assert found[str(first.SOPInstanceUID)] == "DELIVERED"
    assert found[str(second.SOPInstanceUID)] == "QUEUED"


def test_an_edit_is_no_image(case: Case) -> None:
    before = case.ward.study(case.images[0])
    case.came(saved_by_ohif(case.seg, case.smaller()))
    case.came(edited_report(case.report))
    after = case.ward.study(case.images[0])
    assert (after.version, after.completed_at) == (before.version, before.completed_at)
    case.ward.work()
    assert len(case.ward.jobs()) == 1
    more = stack(1, study=str(case.images[0].StudyInstanceUID))
    case.ward.receive(*more)  # what opens the study runs the new series, and no edited object
    case.ward.settings = case.ward.settings.model_copy(
        update={"routes": (case.ward.settings.routes[0].model_copy(update={"modality": ()}),)}
    )
    case.ward.work()
    assert {job.series_instance_uid for job in case.ward.jobs()} == {
        str(each[0].SeriesInstanceUID) for each in (case.images, more)
    }


def test_a_report_is_compared_by_what_it_says(case: Case) -> None:
    accepted = case.came(edited_report(case.report))
    text = next(item.TextValue for item in walk(case.report) if item.get("TextValue"))
    changed = edited_report(case.report, [(text, "A person says something else.")])
    modified = case.came(changed)
    assert accepted is not None
    assert modified is not None
    assert (accepted.verdict, modified.verdict) == ("ACCEPTED", "MODIFIED")
    assert (modified.result_uid, modified.made_by) == (str(case.report.SOPInstanceUID), PERSON)
    assert case.deliveries() == {
        str(case.seg.SOPInstanceUID): "QUEUED",
        str(case.report.SOPInstanceUID): "WITHDRAWN",
        str(changed.SOPInstanceUID): "QUEUED",
    }


def walk(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or ():
        yield child
        yield from walk(child)


@pytest.mark.parametrize("what", ["other label", "other series", "other study", "own report"])
def test_what_is_about_nothing_of_ours_is_let_go(case: Case, what: str) -> None:
    if what == "own report":
        dataset = edited_report(case.report)
        dataset.ContentSequence = []
    else:
        label = "aorta" if what == "other label" else None
        dataset = saved_by_ohif(case.seg, case.masks, label=label)
    if what == "other series":
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    if what == "other study":
        dataset.StudyInstanceUID = generate_uid()
    before = case.deliveries()
    assert case.came(dataset) is None
    assert case.deliveries() == before


def test_the_named_result_counts_whatever_the_segment_is_called(case: Case) -> None:
    edited = saved_by_ohif(case.seg, case.masks, label="aorta", is_update=True)
    edited.SegmentSequence.append(segment(2, "something"))
    found = case.came(edited)
    assert found is not None
    assert (found.verdict, found.matched_by) == ("MODIFIED", "REFERENCE")
    one_only = case.came(saved_by_ohif(case.seg, case.masks, label="aorta", is_update=True))
    assert one_only is not None
    assert one_only.verdict == "ACCEPTED"


def test_a_result_that_is_kept_here_is_not_sent_by_its_correction(case: Case) -> None:
    with case.ward.database.transaction() as tx:
        tx.execute(update(Delivery).values(state="WITHDRAWN"))
    edited = saved_by_ohif(case.seg, case.smaller())
    found = case.came(edited)
    assert found is not None
    assert found.verdict == "MODIFIED"
    assert str(edited.SOPInstanceUID) not in case.deliveries()


def test_frames_of_another_size_and_broken_pixels(case: Case) -> None:
    edited = saved_by_ohif(case.seg, case.masks, is_update=True)
    edited.Rows = edited.Rows * 2
    found = case.came(edited)
    assert found is not None
    assert (found.verdict, found.dice) == ("MODIFIED", "{}")
    broken = saved_by_ohif(case.seg, case.masks, is_update=True)
    broken.PixelData = encapsulate([b"\xff" * 64] * len(case.masks))
    assert case.came(broken) is None
    with case.ward.database.reading() as tx:
        assert tx.get(Instance, str(broken.SOPInstanceUID)) is not None  # kept, but nothing is said of it


def test_positions_tell_frames_apart_where_no_source_is_named(case: Case) -> None:
    edited = saved_by_ohif(case.seg, case.masks)
    place = {str(image.SOPInstanceUID): image.ImagePositionPatient for image in case.images}
    for item, uid in zip(edited.PerFrameFunctionalGroupsSequence, reversed(list(case.masks)), strict=True):
        del item.DerivationImageSequence
        plane = Dataset()
        plane.ImagePositionPatient = place[uid]
        item.PlanePositionSequence = [plane]
    found = case.came(edited)
    assert found is not None
    assert found.verdict == "ACCEPTED"


def test_the_same_object_twice_counts_once(case: Case) -> None:
    edited = saved_by_ohif(case.seg, case.smaller())
    case.came(edited)
    case.came(edited)
    with case.ward.database.reading() as tx:
        assert [each.count for each in correction_counts(tx)] == [1]


def test_no_name_of_a_person_is_logged(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    case.came(saved_by_ohif(case.seg, case.smaller()))
    assert "correction" in caplog.text
    assert "Rosa" not in caplog.text + "".join(str(vars(record)) for record in caplog.records)


def test_a_reference_by_predecessor_is_read(case: Case) -> None:
    changed = edited_report(case.report)
    changed.ContentSequence = changed.ContentSequence[:1]
    changed.PredecessorDocumentsSequence = [predecessor(case.report)]
    found = case.came(changed)
    assert found is not None
    assert (found.verdict, found.matched_by) == ("MODIFIED", "REFERENCE")


def test_the_link_shows_the_binary_form_or_what_a_person_made_of_any_form(
    ward: Ward, children: LimitedPool
) -> None:
    wanted = frozenset({Form.SEG_LABELMAP, Form.SR})
    ward.services = replace(ward.services, destinations=(Recipient("PACS"), Recipient("other", wanted)))
    case = Case(ward, children)
    study = str(case.images[0].StudyInstanceUID)
    with ward.database.reading() as tx:
        rows = tx.scalars(select(Instance).where(Instance.origin_kind == "OWN RESULT")).all()
        forms = {row.sop_class_uid: row for row in rows if row.sop_class_uid in SEGMENTATIONS}
        assert len(forms) == 2
        assert _latest_overlay(tx, study) == forms[BINARY].series_instance_uid
    edited = saved_by_ohif(ward.read(forms[LABEL_MAP]), case.smaller(), is_update=False)
    edited.PredecessorDocumentsSequence = [predecessor(ward.read(forms[LABEL_MAP]))]
    found = case.came(edited)
    assert found is not None
    assert found.result_uid == forms[LABEL_MAP].sop_instance_uid
    with ward.database.reading() as tx:
        assert _latest_overlay(tx, study) == str(edited.SeriesInstanceUID)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_corrected_rle_object_is_sent_uncompressed_where_rle_is_not_taken(
    case: Case, tmp_path: Path, free_port: Callable[[], int], syntax: str
) -> None:
    edited = saved_by_ohif(case.seg, case.smaller())
    path = tmp_path / "edited.dcm"
    edited.save_as(path, enforce_file_format=True)
    arrived: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        event.dataset.file_meta = event.file_meta
        arrived.append(event.dataset)
        return 0x0000

    pacs, peer = AE("PACS"), PeerSettings(name="p", ae_title="PACS", host="127.0.0.1", port=free_port())
    pacs.add_supported_context(edited.SOPClassUID, [syntax])
    server = pacs.start_server((peer.host, peer.port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        (status,) = send_instances([path], peer, "SIM4SEG")
    finally:
        server.shutdown()
    (got,) = arrived
    assert status.status == 0x0000
    assert got.file_meta.TransferSyntaxUID == syntax
    assert got.SOPInstanceUID == edited.SOPInstanceUID
    assert np.array_equal(got.pixel_array, edited.pixel_array)


def test_where_no_copy_can_be_made_the_delivery_says_so(
    case: Case, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    edited = saved_by_ohif(case.seg, case.smaller())
    edited.PixelData = encapsulate([bytes(70)] * edited.NumberOfFrames)
    path = tmp_path / "edited.dcm"
    edited.save_as(path, enforce_file_format=True)
    pacs, peer = AE("PACS"), PeerSettings(name="p", ae_title="PACS", host="127.0.0.1", port=free_port())
    pacs.add_supported_context(edited.SOPClassUID, [ExplicitVRLittleEndian])
    server = pacs.start_server((peer.host, peer.port), block=False)
    try:
        (status,) = send_instances([path], peer, "SIM4SEG")
    finally:
        server.shutdown()
    assert status.answer.kind is Kind.NO_CONTEXT
    assert "does not accept this SOP class in this transfer syntax" in status.detail
    assert "no copy" in status.detail
    assert meaning_of(status.answer).verdict is Verdict.HOPELESS
