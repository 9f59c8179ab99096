import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.air.gate import check_references, check_together
from dicom_node.forms.form import Form, Made, Recipient, contradiction, segmentation_of
from dicom_node.forms.making import NEED_OUTLINE
from dicom_node.outcomes import ResultBroken, require_sound
from tests import builders, formed

KINDS = list(formed.SOURCES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_keeps_every_rule_and_the_standard(tmp_path: Path, kind: str) -> None:
    sources = formed.SOURCES[kind]()
    result = formed.formed(tmp_path / "in", sources)
    assert check_together(result.datasets, sources) == []
    assert [error for made in result.objects for error in formed.errors_of(tmp_path, made)] == []
    forms = {made.form for made in result.objects}
    wanted = set(Form) if kind != "nothing found" else {Form.SR, Form.SC, Form.PDF}
    assert forms == wanted


def test_an_error_of_dciodvfy_would_be_seen(tmp_path: Path) -> None:
    result = formed.formed(tmp_path / "in", formed.SOURCES["ultrasound"]())
    for made in result.objects:
        del made.dataset.PatientName
        assert formed.errors_of(tmp_path, made), made.form


@pytest.mark.parametrize("kind", ["ultrasound", "stack", "clip", "nothing found"])
def test_each_destination_can_resolve_what_it_gets(tmp_path: Path, kind: str) -> None:
    sources = formed.SOURCES[kind]()
    result = formed.formed(tmp_path, sources)
    for profile in formed.PROFILES:
        got = [made for made in result.objects if made.is_for(profile)]
        assert check_references([made.dataset for made in got], sources) == []
        assert [made.form for made in got].count(Form.SR) == 1
        missing = profile - {made.form for made in got}
        assert missing == (
            profile & {segmentation_of(profile), *NEED_OUTLINE} if kind == KINDS[-1] else set()
        )


def references_of(report: Dataset) -> set[str]:
    uids = {str(e.value) for e in report.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    return uids - {str(report.SOPInstanceUID)}


def test_the_report_of_a_destination_refers_to_the_seg_of_that_destination(tmp_path: Path) -> None:
    sources = formed.SOURCES["stack"]()
    result = formed.formed(tmp_path, sources)
    images = {str(source.SOPInstanceUID) for source in sources}
    for profile in formed.PROFILES:
        segmentation = {
            str(made.dataset.SOPInstanceUID)
            for made in result.objects
            if made.form is segmentation_of(profile)
        }
        (report,) = [m.dataset for m in result.objects if m.form is Form.SR and m.is_for(profile)]
        assert references_of(report) - images == segmentation
        (group,) = highdicom.sr.Comprehensive3DSR.from_dataset(
            report
        ).content.get_planar_roi_measurement_groups()
        assert [m.name.meaning for m in group.get_measurements()][:2] == ["Area", "Long axis"]


def test_a_report_that_refers_to_another_s_seg_is_not_sent(tmp_path: Path) -> None:
    sources = formed.SOURCES["ultrasound"]()
    result = formed.formed(tmp_path, sources)
    wrong = [Made(made.form, made.dataset) for made in result.objects]  # every SR for everybody
    recipients = [Recipient("pacs", formed.PROFILES[1])]
    require_sound(result.objects, sources, recipients)
    with pytest.raises(ResultBroken, match="references resolve"):
        require_sound(wrong, sources, recipients)


@pytest.mark.parametrize("kind", ["ultrasound", "stack", "colour"])
def test_the_same_again_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    sources = formed.SOURCES[kind]()
    series = builders.as_loaded(tmp_path, sources)
    first, second = (formed.result_on(series) for _ in range(2))
    assert [builders.part10(d) for d in first.datasets] == [builders.part10(d) for d in second.datasets]


def test_who_else_wants_what_changes_nothing(tmp_path: Path) -> None:
    """Neither SEG and SR, nor any other form, hangs on what other destinations ask for."""
    series = builders.as_loaded(tmp_path, formed.SOURCES["ultrasound"]())
    everything = {made.dataset.SOPInstanceUID: made for made in formed.result_on(series).objects}
    assert len(everything) == 11
    for profiles in ((), *((profile,) for profile in formed.PROFILES)):
        for made in formed.result_on(series, profiles).objects:
            same = everything[made.dataset.SOPInstanceUID]
            assert builders.part10(made.dataset) == builders.part10(same.dataset)
            assert (made.form, made.beside) == (same.form, same.beside)


def test_without_destinations_there_are_seg_and_sr(tmp_path: Path) -> None:
    result = formed.formed(tmp_path, formed.SOURCES["ultrasound"](), ())
    assert [made.form for made in result.objects] == [Form.SEG, Form.SR]
    assert list(result.summary["sop_instance_uids"]) == ["seg", "sr"]  # type: ignore[call-overload]


def test_every_object_has_its_own_series_and_says_when_and_who(tmp_path: Path) -> None:
    result = formed.formed(tmp_path, formed.SOURCES["stack"]())
    assert len({str(dataset.SeriesInstanceUID) for dataset in result.datasets}) == len(result.datasets)
    assert len({dataset.SeriesDescription for dataset in result.datasets}) == len(result.datasets)
    assert len({dataset.ContentTime for dataset in result.datasets}) == 1
    assert {dataset.PatientID for dataset in result.datasets} == {"SYNTH-1"}


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ((Form.SEG, Form.SR), None),
        (tuple(formed.EVERYTHING), None),
        ((Form.SC,), None),
        ((Form.SEG, Form.SEG_LABELMAP), "name one of SEG, SEG_LABELMAP, SEG_FRACTIONAL"),
        ((Form.SR, Form.SC, Form.SR), "the form SR stands there twice"),
    ],
)
def test_contradictory_forms_are_named(forms: tuple[Form, ...], words: str | None) -> None:
    said = contradiction(forms)
    assert said is None if words is None else said is not None and words in said


# ---- the three forms of SEG


@pytest.mark.parametrize("kind", ["ultrasound", "stack", "clip", "enhanced"])
@pytest.mark.parametrize("form", [Form.SEG_LABELMAP, Form.SEG_FRACTIONAL])
def test_highdicom_reads_the_same_masks_from_every_seg(tmp_path: Path, kind: str, form: Form) -> None:
    result = formed.formed(tmp_path, formed.SOURCES[kind]())
    binary, other = (highdicom.seg.Segmentation.from_dataset(formed.one(result, f)) for f in (Form.SEG, form))
    assert other.segmentation_type.value == str(form).removeprefix("SEG_")
    volumes = [
        each.get_total_pixel_matrix() if each.is_tiled else each.pixel_array for each in (binary, other)
    ]
    assert volumes[0].any()
    full = 255 if form is Form.SEG_FRACTIONAL else 1
    assert np.array_equal(volumes[0] * full, volumes[1])
    sources = [each.get_source_image_uids() for each in (binary, other)]
    assert sources[0] == sources[1]


def test_the_background_of_a_label_map_comes_last(tmp_path: Path) -> None:
    """OHIF gives colours by place and labels by number."""
    segmentation = formed.one(formed.formed(tmp_path, formed.SOURCES["uncalibrated"]()), Form.SEG_LABELMAP)
    assert [item.SegmentNumber for item in segmentation.SegmentSequence] == [1, 0]
    assert "placeholder" in segmentation.SegmentSequence[0].SegmentDescription
    assert "SegmentDescription" not in segmentation.SegmentSequence[1]


def test_a_fractional_seg_knows_nothing_and_all_only(tmp_path: Path) -> None:
    segmentation = formed.one(formed.formed(tmp_path, formed.SOURCES["ultrasound"]()), Form.SEG_FRACTIONAL)
    assert segmentation.SegmentationFractionalType == "OCCUPANCY"
    assert set(segmentation.PixelData) == {0, segmentation.MaximumFractionalValue}


def test_dcmtk_dumps_every_form(tmp_path: Path) -> None:
    for made in formed.formed(tmp_path / "in", formed.SOURCES["clip"]()).objects:
        path = tmp_path / "object.dcm"
        path.write_bytes(builders.part10(made.dataset))
        dumped = subprocess.run(["dcmdump", str(path)], capture_output=True, text=True, check=False)
        assert dumped.returncode == 0
        assert "E:" not in dumped.stderr
