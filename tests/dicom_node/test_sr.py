from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

from dicom_node import codes
from dicom_node.analysis import Result, analyse
from dicom_node.reading import AnalysisRequest
from inference.contract import Image, Prediction, Prompt
from tests import builders

SIZE = (60, 81)
QUERY = "Outline the breast lesion in this ultrasound image. Is it benign or malignant?"
# Codes that pydicom's dictionary does not hold; checked by hand against SNOMED CT and PS3.16.
NOT_IN_PYDICOM = {
    "439401001",
    "72704001",
    "125605004",
    "113091000",
    "363680008",
    "C0034375",
    "{pixels}",
    "mL",
}


def result_of(folder: Path, datasets: list[Dataset], **answer: object) -> Result:
    series = builders.as_loaded(folder, datasets)
    return analyse(series, builders.MaskPredictor(**answer), AnalysisRequest(QUERY))


def items(dataset: Dataset, meaning: str) -> list[Dataset]:
    """Content items with this concept name, at any depth."""
    found = []
    for item in dataset.get("ContentSequence", []):
        names = item.get("ConceptNameCodeSequence")
        if names and names[0].CodeMeaning == meaning:
            found.append(item)
        found += items(item, meaning)
    return found


def number(dataset: Dataset, meaning: str) -> tuple[float, str]:
    (item,) = items(dataset, meaning)
    value = item.MeasuredValueSequence[0]
    return float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue


def test_report_of_an_ultrasound_lesion(tmp_path: Path) -> None:
    mask = builders.make_ellipse(SIZE, (30, 40), (12, 18))
    result = result_of(tmp_path / "in", [builders.make_ultrasound(mask)])
    report = result.report
    assert builders.standard_errors(tmp_path, report) == []
    area = mask.sum() * 0.2 * 0.1
    assert number(report, "Area") == (pytest.approx(area, rel=1e-3), "mm2")
    assert number(report, "Long axis") == (pytest.approx(5.0, abs=0.1), "mm")
    assert number(report, "Short axis") == (pytest.approx(3.7, abs=0.2), "mm")
    assert number(report, "Certainty of Impression") == (87.5, "%")
    (diagnosis,) = items(report, "Diagnosis")
    assert diagnosis.ConceptCodeSequence[0].CodeMeaning == "Benign"
    text = builders.report_text(tmp_path, report)
    assert "Diagnosis: benign (confidence 0.88)." in text
    assert "Firstly, this is a breast ultrasound image" in text
    assert "Research use only. Not a medical device." in text
    assert f"query: {QUERY}" in text
    assert f"package sha256: {'5b' * 32}" in text


def test_region_is_a_closed_outline_on_the_key_frame(tmp_path: Path) -> None:
    masks = [builders.make_ellipse(SIZE, (30, 40), (4 + 3 * n, 6 + 3 * n)) for n in (0, 2, 1)]
    clip = builders.make_multiframe(masks)
    report = result_of(tmp_path, [clip]).report
    (region,) = items(report, "Image Region")
    points = np.array(region.GraphicData, dtype=float).reshape(-1, 2)
    assert region.GraphicType == "POLYLINE"
    assert (points[0] == points[-1]).all()
    x, y = points[:, 0], points[:, 1]
    enclosed = abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2
    assert enclosed == pytest.approx(masks[1].sum(), rel=0.02)
    source = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert source.ReferencedSOPInstanceUID == clip.SOPInstanceUID
    assert source.ReferencedFrameNumber == 2


def test_numbers_name_the_segmentation_they_come_from(tmp_path: Path) -> None:
    masks = [builders.make_ellipse(SIZE, (30, 40), (4 + 3 * n, 6 + 3 * n)) for n in (0, 2, 1)]
    result = result_of(tmp_path, builders.make_stack(masks))
    assert len(result.segmentations) == 1
    for meaning, frames in (("Area", 2), ("Volume", None)):
        (item,) = items(result.report, meaning)
        source = item.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == result.segmentations[0].SOPInstanceUID
        assert source.get("ReferencedFrameNumber") == frames
    assert number(result.report, "Volume")[1] == "cm3"


def test_every_reference_is_in_the_evidence(tmp_path: Path) -> None:
    masks = [builders.make_ellipse(SIZE, (30, 40), (5, 7))] * 3
    stack = builders.make_stack(masks)
    report = result_of(tmp_path, stack).report
    evidence = {
        str(instance.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert {str(source.SOPInstanceUID) for source in stack} < evidence
    content = Dataset()
    content.ContentSequence = report.ContentSequence
    named = {str(e.value) for e in content.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert named == evidence


def test_evidence_names_the_class_of_each_instance_even_a_retired_one(tmp_path: Path) -> None:
    source = builders.make_ultrasound()
    source.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6"  # Ultrasound Image Storage (Retired)
    result = result_of(tmp_path, [source])
    classes = {
        str(instance.ReferencedSOPClassUID)
        for study in result.report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert classes == {"1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.66.4"}
    (region,) = items(result.report, "Image Region")
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID == source.SOPClassUID


def test_highdicom_reads_the_measurement_group(tmp_path: Path) -> None:
    report = result_of(tmp_path / "in", [builders.make_ultrasound()]).report
    path = tmp_path / "sr.dcm"
    path.write_bytes(builders.part10(report))
    read = highdicom.sr.srread(path)
    (group,) = read.content.get_planar_roi_measurement_groups()
    assert group.finding_type == codes.TARGETS["breast lesion"].kind
    assert group.tracking_uid.startswith("2.25.")
    assert [m.name.meaning for m in group.get_measurements()][:1] == ["Area"]


def test_without_calibration_sizes_are_pixels_and_say_so(tmp_path: Path) -> None:
    mask = builders.make_ellipse(SIZE, (30, 40), (12, 18))
    result = result_of(tmp_path / "in", [builders.make_ultrasound(mask, spacing_mm=None)])
    assert number(result.report, "Area") == (float(mask.sum()), "{pixels}")
    assert result.summary["area_px"] == mask.sum()
    assert "area_mm2" not in result.summary
    assert "not calibrated" in builders.report_text(tmp_path, result.report)
    assert builders.standard_errors(tmp_path, result.report) == []


def test_without_a_region_the_report_is_all_there_is(tmp_path: Path) -> None:
    """OHIF 3.13 stops at a measurement group that has no coordinates, so there must be none."""
    empty = np.zeros(SIZE, bool)
    result = result_of(tmp_path / "in", [builders.make_ultrasound(empty)], diagnosis="no fracture")
    assert result.segmentations == ()
    assert result.outcome == "RESULT"
    assert items(result.report, "Imaging Measurements") == []
    (finding,) = items(result.report, "Fracture of bone")
    assert finding.ConceptCodeSequence[0].CodeMeaning == "Absent"
    assert number(result.report, "Certainty of Impression") == (87.5, "%")
    text = builders.report_text(tmp_path, result.report)
    assert "No region was outlined." in text
    assert "Algorithm Name" in text
    assert builders.standard_errors(tmp_path, result.report) == []
    path = tmp_path / "sr.dcm"
    path.write_bytes(builders.part10(result.report))
    assert highdicom.sr.srread(path).content is not None


def test_without_region_and_diagnosis_there_is_no_finding(tmp_path: Path) -> None:
    empty = np.zeros(SIZE, bool)
    result = result_of(tmp_path / "in", [builders.make_ultrasound(empty)], diagnosis=None)
    assert result.outcome == "NO FINDING"
    assert "No diagnosis is made." in builders.report_text(tmp_path, result.report)
    assert builders.standard_errors(tmp_path, result.report) == []


class Speck(builders.MaskPredictor):
    """Says that it outlines something, and draws three pixels."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        mask = np.zeros(image.pixels.shape[:2], bool)
        mask[5, 5:8] = True
        return replace(super().predict(image, prompt), mask=mask, has_region=True)


def test_words_about_a_region_that_was_not_drawn_are_called_so(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path / "in", [builders.make_ultrasound()])
    result = analyse(series, Speck(), AnalysisRequest(QUERY))
    assert result.segmentations == ()
    text = " ".join(builders.report_text(tmp_path, result.report).split())
    assert "No region was outlined." in text
    assert "do not rely on what it says of it" in text
    none = result_of(tmp_path / "none", [builders.make_ultrasound(np.zeros(SIZE, bool))])
    assert "do not rely" not in builders.report_text(tmp_path, none.report)


def test_bytes_are_the_same_again(tmp_path: Path) -> None:
    source = builders.make_ultrasound()
    first = result_of(tmp_path / "a", [source]).report
    second = result_of(tmp_path / "b", [source]).report
    assert builders.part10(first) == builders.part10(second)


class Rambling(builders.MaskPredictor):
    """An answer that no report should hold as it is."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        text = "word\x00 \n" * 3000
        return replace(
            super().predict(image, prompt), text=text, reasoning="", is_well_formed=False, diagnosis=None
        )


def test_text_is_bounded_and_printable(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path / "in", [builders.make_ultrasound()])
    report = analyse(series, Rambling(), AnalysisRequest(QUERY)).report
    texts = [item.TextValue for item in items(report, "Finding") if "TextValue" in item]
    assert len(texts) == 1
    assert len(texts[0]) <= 4000
    assert "\x00" not in texts[0]
    assert builders.standard_errors(tmp_path, report) == []
    assert "answer is incomplete" in builders.report_text(tmp_path, report)


def every_code(value: object) -> set[Code]:
    if isinstance(value, Code):
        return {value}
    if isinstance(value, dict):
        return set().union(*(every_code(each) for each in value.values()))
    if isinstance(value, codes.Target | codes.CodedDiagnosis):
        return set().union(*(every_code(each) for each in vars(value).values()))
    return set()


def test_codes_are_well_formed_and_agree_with_pydicom() -> None:
    known: dict[tuple[str, str], set[str]] = {}
    for scheme in ("DCM", "SCT", "UCUM", "LN"):
        for entry in concepts[scheme].values():
            for value, (meaning, _) in entry.items():
                plain = meaning.split(" (")[0]  # SNOMED CT's semantic tag is no part of the name
                known.setdefault((scheme, value), set()).update({meaning, plain})
    found = set().union(*(every_code(value) for value in vars(codes).values()))
    assert len(found) > 60
    for code in found:
        assert len(code.value) <= 16
        assert 0 < len(code.meaning) <= 64
        assert code.scheme_designator in {"SCT", "DCM", "UCUM", "UMLS", "LN"}
        if code.scheme_designator == "SCT":
            assert verhoeff(code.value), code
        meanings = known.get((code.scheme_designator, code.value))
        assert (meanings is None) == (code.value in NOT_IN_PYDICOM), code
        assert meanings is None or code.meaning in meanings, (code, meanings)


def verhoeff(number: str) -> bool:
    """Whether the check digit of a SNOMED CT identifier is right. Source: SNOMED CT, SCTID check digit."""
    rotation = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    check = 0
    for place, character in enumerate(reversed(number)):
        digit = int(character)
        for _ in range(place % 8):
            digit = rotation[digit]
        check = dihedral(check, digit)
    return check == 0


def dihedral(a: int, b: int) -> int:
    """The product in the dihedral group of order 10."""
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5


def test_every_target_and_diagnosis_of_the_model_has_a_code() -> None:
    from inference import prompts

    assert set(prompts.DIAGNOSES) == set(codes.DIAGNOSES)
    assert {target for target in prompts.TARGETS.values() if target} <= set(codes.TARGETS)
