from pathlib import Path

import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.forms.form import Form
from dicom_node.frames import SourceSeries
from dicom_node.mask_stack import MaskStack
from dicom_node.provenance import ModelIdentity, Provenance
from dicom_node.seg import SegmentationRequest, build_segmentation
from tests import builders

SIZE = (25, 37)  # odd: rows x columns is no multiple of 8, so frames are not byte aligned
MODEL = ModelIdentity("stub", "0.0.1", "5b" * 32)
Masks = list[NDArray[np.bool_]]


def growing(count: int) -> Masks:
    return [builders.make_ellipse(SIZE, (11 + n, 16), (3 + n, 5 + n)) for n in range(count)]


def provenance(series: SourceSeries) -> Provenance:
    first = series.datasets[0]
    return Provenance(first.StudyInstanceUID, first.SeriesInstanceUID, series.digests, MODEL, "Outline it.")


def segmentation(series: SourceSeries, masks: Masks, target: str | None = "breast lesion") -> Dataset:
    request = SegmentationRequest((target,), "BREAST", provenance(series))
    return build_segmentation(series, [MaskStack.of(masks)], request)


def by_source(dataset: Dataset, folder: Path) -> dict[tuple[str, int | None], NDArray[np.bool_]]:
    """What highdicom reads back: source instance and frame -> mask."""
    path = folder / "seg.dcm"
    path.write_bytes(builders.part10(dataset))
    read = highdicom.seg.segread(path)
    masks = {}
    for number, group in enumerate(read.PerFrameFunctionalGroupsSequence):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = (str(source.ReferencedSOPInstanceUID), source.get("ReferencedFrameNumber"))
        pixels = read.pixel_array if read.NumberOfFrames > 1 else read.pixel_array[np.newaxis]
        masks[key] = pixels[number].astype(bool)
    return masks


def expected(series: SourceSeries, masks: Masks) -> dict[tuple[str, int | None], NDArray[np.bool_]]:
    pairs = zip(series.frames, masks, strict=True)
    return {
        (str(frame.source.SOPInstanceUID), frame.frame_number): mask for frame, mask in pairs if mask.any()
    }


def assert_round_trip(series: SourceSeries, masks: Masks, folder: Path) -> Dataset:
    dataset = segmentation(series, masks)
    got, wanted = by_source(dataset, folder), expected(series, masks)
    assert got.keys() == wanted.keys()
    assert all((got[key] == wanted[key]).all() for key in wanted)
    assert builders.standard_errors(folder, dataset) == []
    return dataset


def test_ultrasound_image(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path / "in", [builders.make_ultrasound(growing(1)[0])])
    dataset = assert_round_trip(series, growing(1), tmp_path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == pytest.approx([0.2, 0.1])
    assert "SegmentDescription" not in dataset.SegmentSequence[0]
    assert dataset.FrameOfReferenceUID


@pytest.mark.parametrize("modality", ["ES", "XC", "DX", "CT"])
def test_every_kind_of_image(tmp_path: Path, modality: str) -> None:
    details = builders.SeriesDetails(modality=modality, body_part="HAND", patient=builders.PATIENT)
    images = [builders.make_colour_image(mask) for mask in growing(2)]
    series = builders.as_loaded(tmp_path / "in", builders.build_series(images, details))
    assert_round_trip(series, growing(2), tmp_path)


def test_without_calibration_the_spacing_is_called_a_placeholder(tmp_path: Path) -> None:
    """OHIF 3.13 throws when there are no Pixel Measures at all."""
    source = builders.make_ultrasound(growing(1)[0], spacing_mm=None)
    dataset = assert_round_trip(builders.as_loaded(tmp_path / "in", [source]), growing(1), tmp_path)
    assert dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [1.0, 1.0]
    assert "placeholder" in dataset.SegmentSequence[0].SegmentDescription


def test_clip_refers_to_its_frames(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path / "in", [builders.make_multiframe(growing(5))])
    masks = growing(5)
    masks[2] = np.zeros(SIZE, bool)
    dataset = assert_round_trip(series, masks, tmp_path)
    assert dataset.NumberOfFrames == 4
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1


@pytest.mark.parametrize(
    ("orientation", "spacing"),
    [
        (("1", "0", "0", "0", "1", "0"), ("0.7000", "0.7000")),
        (("0.8000", "0.6000", "0", "0", "0", "-1.0"), ("1.5000", "0.7500")),
        (("-1", "0", "0", "0", "1", "0"), ("0.50", "2.00")),
    ],
)
def test_stack_keeps_the_source_geometry_digit_by_digit(
    tmp_path: Path, orientation: tuple[str, ...], spacing: tuple[str, ...]
) -> None:
    masks = growing(6)
    stack = builders.make_stack(masks, orientation=orientation, spacing=spacing)
    series = builders.as_loaded(tmp_path / "in", stack[::-1])
    masks[0] = np.zeros(SIZE, bool)
    dataset = assert_round_trip(series, masks, tmp_path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert [str(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient] == list(orientation)
    assert [str(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing] == list(spacing)
    assert dataset.FrameOfReferenceUID == stack[0].FrameOfReferenceUID
    place = {str(source.SOPInstanceUID): source.ImagePositionPatient for source in stack}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        uid = str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        got = group.PlanePositionSequence[0].ImagePositionPatient
        assert [str(value) for value in got] == [str(value) for value in place[uid]]


def test_only_the_whole_series_is_referenced_and_nothing_else(tmp_path: Path) -> None:
    """OHIF takes the first referenced series, and drops a SEG whose instances are not named."""
    masks = growing(4)
    masks[1] = np.zeros(SIZE, bool)
    series = builders.as_loaded(tmp_path / "in", builders.make_stack(masks))
    dataset = segmentation(series, masks)
    (referenced,) = dataset.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.datasets[0].SeriesInstanceUID
    named = [str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence]
    assert named == [str(source.SOPInstanceUID) for source in series.datasets]
    known = {*named, str(dataset.SOPInstanceUID)}
    for element in dataset.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            assert str(element.value) in known


def test_segment_is_described_in_codes(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path / "in", [builders.make_ultrasound(growing(1)[0])])
    (segment,) = segmentation(series, growing(1)).SegmentSequence
    assert segment.SegmentNumber == 1
    assert segment.SegmentLabel == "breast lesion"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Breast"
    assert len(segment.RecommendedDisplayCIELabValue) == 3
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("stub", "0.0.1")
    assert MODEL.digest in algorithm.AlgorithmParameters


def test_it_says_research_use_and_which_equipment(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path / "in", [builders.make_ultrasound(growing(1)[0])])
    dataset = segmentation(series, growing(1), target="something new")
    assert "Research use only. Not a medical device." in dataset.ContentDescription
    assert dataset.SeriesDescription == "AI region (research use only)"
    models = [item.ManufacturerModelName for item in dataset.ContributingEquipmentSequence]
    assert "stub" in models
    assert dataset.PatientID == "SYNTH-1"
    assert dataset.StudyInstanceUID == series.datasets[0].StudyInstanceUID


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    stack = builders.make_stack(growing(3))
    first = builders.as_loaded(tmp_path / "a", stack)
    second = builders.as_loaded(tmp_path / "b", stack[::-1])
    assert builders.part10(segmentation(first, growing(3))) == builders.part10(
        segmentation(second, growing(3))
    )


def test_other_inputs_give_other_uids(tmp_path: Path) -> None:
    first = builders.as_loaded(tmp_path / "a", builders.make_stack(growing(3)))
    second = builders.as_loaded(tmp_path / "b", builders.make_stack(growing(2)))
    uids = {segmentation(s, growing(n)).SOPInstanceUID for s, n in ((first, 3), (second, 2))}
    assert len(uids) == 2
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_digits_that_no_decimal_string_holds_are_rounded(tmp_path: Path) -> None:
    source = builders.make_ultrasound(growing(1)[0], spacing_mm=(0.123456789012345678, 0.1 / 3))
    dataset = assert_round_trip(builders.as_loaded(tmp_path / "in", [source]), growing(1), tmp_path)
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert [float(value) for value in spacing] == pytest.approx([0.123456789012345678, 0.1 / 3])


def test_planes_that_are_not_parallel_still_give_a_seg(tmp_path: Path) -> None:
    stack = builders.make_stack(growing(2))
    stack[1].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    series = builders.as_loaded(tmp_path / "in", stack)
    masks = [builders.make_ellipse(SIZE, (12, 16), (4, 5))] * 2
    assert_round_trip(series, masks, tmp_path)


def test_names_in_other_alphabets_survive(tmp_path: Path) -> None:
    source = builders.make_ultrasound(growing(1)[0])
    source.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    source.PatientName = "Yamada^Tarou=山田^太郎"
    source.PatientSex, source.PatientBirthDate = "X", "19700101"
    series = builders.as_loaded(tmp_path / "in", [source])
    path = tmp_path / "seg.dcm"
    path.write_bytes(builders.part10(segmentation(series, growing(1))))
    read = highdicom.seg.segread(path)
    assert str(read.PatientName) == "Yamada^Tarou=山田^太郎"
    assert read.PatientSex == ""


@pytest.mark.parametrize("form", [Form.SEG, Form.SEG_LABELMAP, Form.SEG_FRACTIONAL])
def test_each_of_several_segments_has_its_mask(tmp_path: Path, form: Form) -> None:
    series = builders.as_loaded(tmp_path / "in", builders.make_stack(growing(3)))
    empty = np.zeros(SIZE, bool)
    first = [growing(1)[0], empty, growing(3)[2]]
    second = [empty, empty, builders.make_ellipse(SIZE, (20, 31), (2, 4))]
    request = SegmentationRequest(("breast lesion", "polyp"), "BREAST", provenance(series), form=form)
    dataset = build_segmentation(series, [MaskStack.of(first), MaskStack.of(second)], request)
    if form is not Form.SEG_LABELMAP:  # dciodvfy does not know it
        assert builders.standard_errors(tmp_path, dataset) == []
    path = tmp_path / "seg.dcm"
    path.write_bytes(builders.part10(dataset))
    read = highdicom.seg.segread(path)
    assert read.segment_numbers == [1, 2]
    assert len({read.get_segment_description(number).tracking_uid for number in (1, 2)}) == 2
    uids = [str(frame.source.SOPInstanceUID) for frame in series.frames]
    pixels = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    assert (pixels[..., 0].astype(bool) == np.stack(first)).all()
    assert (pixels[..., 1].astype(bool) == np.stack(second)).all()


def test_its_long_sequences_are_written_as_pydicom_would(tmp_path: Path) -> None:
    """They are bytes until somebody asks; asked for, changed and written again, they are the same bytes."""
    dataset = segmentation(builders.as_loaded(tmp_path / "in", builders.make_stack(growing(3))), growing(3))
    untouched = builders.part10(dataset)
    again = Dataset()
    again.file_meta = dataset.file_meta
    for element in dataset:  # reads every element
        again.add(element)
    again.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0].DimensionIndexValues = [1, 1]
    assert builders.part10(again) == untouched
