import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.valuerep import VR

from dicom_node.__main__ import main
from dicom_node.air.gate import RULES, check, check_together
from dicom_node.air.other_forms import OTHER_FORM_RULES
from dicom_node.analysis import analyse
from dicom_node.context import Predecessor, ResultContext
from dicom_node.reading import AnalysisRequest
from tests import builders

SIZE = (60, 81)
CINE = [[builders.make_ellipse(SIZE, (30, 40), (radius, radius)) for radius in (14, 9)] for _ in range(3)]
SOURCES: dict[str, Callable[[], list[Dataset]]] = {
    "ultrasound": lambda: [builders.make_ultrasound()],
    "nothing found": lambda: [builders.make_ultrasound(np.zeros(SIZE, bool))],
    "clip": lambda: [builders.make_multiframe([CINE[0][0], CINE[0][1]])],
    "cine": lambda: [dataset for phases in builders.make_cine(CINE) for dataset in phases],
}
OTHER_UID = "1.2.3.4.5"


def results_of(folder: Path, sources: list[Dataset], **context: object) -> tuple[Dataset, ...]:
    series = builders.as_loaded(folder, sources)
    answer = analyse(
        series,
        builders.MaskPredictor(),
        AnalysisRequest("Outline it."),
        ResultContext(**context),  # type: ignore[arg-type]
    )
    return tuple(answer.datasets)


@pytest.mark.parametrize("kind", SOURCES)
def test_our_results_keep_every_rule(tmp_path: Path, kind: str) -> None:
    sources = SOURCES[kind]()
    assert check_together(results_of(tmp_path / "in", sources), sources) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Dataset], Dataset, Dataset]:
    """Images of a stack, and the SEG and SR on them."""
    sources = SOURCES["cine"]()
    segmentation, report = results_of(tmp_path_factory.mktemp("air"), sources)
    return sources, segmentation, report


def without(*keywords: str) -> Callable[[Dataset], None]:
    def spoil(dataset: Dataset) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return spoil


def group(report: Dataset) -> Dataset:
    found: Dataset = report.ContentSequence[-1].ContentSequence[0]
    return found


def drop(report: Dataset, *, name: str = "", value_type: str = "") -> None:
    items = group(report).ContentSequence
    kept = [
        item
        for item in items
        if item.ConceptNameCodeSequence[0].CodeValue != name and item.ValueType != value_type
    ]
    group(report).ContentSequence = kept


def measured(report: Dataset) -> Dataset:
    number: Dataset = next(item for item in group(report).ContentSequence if item.ValueType == "NUM")
    return number


def coordinates(report: Dataset) -> Dataset:
    found: Dataset = next(item for item in group(report).ContentSequence if item.ValueType == "SCOORD")
    return found


def first_frame(segmentation: Dataset) -> Dataset:
    found: Dataset = segmentation.PerFrameFunctionalGroupsSequence[0]
    return found


def set_long(dataset: Dataset) -> None:
    dataset.add_new("SeriesDescription", VR.LO, "")
    dataset["SeriesDescription"]._value = "research use only" + "x" * 64


def set_scheme(dataset: Dataset) -> None:
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator = "99MINE"


def rename(report: Dataset) -> None:
    report.ConceptNameCodeSequence[0].CodeValue = "121000"


def lose_text(report: Dataset) -> None:
    for item in group(report).ContentSequence:
        if item.ValueType == "TEXT":
            item.TextValue = "words"


def lose_algorithm(report: Dataset) -> None:
    drop(report, name="111001")


SPOILED: list[tuple[str, str, Callable[[Dataset], None]]] = [
    ("identity", "SEG", without("PatientID")),
    ("identity", "SR", without("SpecificCharacterSet")),
    ("dates and time zone", "SEG", without("TimezoneOffsetFromUTC")),
    ("dates and time zone", "SR", without("ContentTime")),
    ("contributing equipment", "SEG", without("ContributingEquipmentSequence")),
    ("contributing equipment", "SR", without("DeviceUID")),
    ("values fit", "SEG", set_long),
    ("codes", "SEG", set_scheme),
    ("label", "SR", lambda d: setattr(d, "SeriesDescription", "AI report")),
    ("one referenced series", "SEG", without("ReferencedSeriesSequence")),
    ("segments", "SEG", lambda d: setattr(d.SegmentSequence[0], "SegmentNumber", 2)),
    ("segments", "SEG", lambda d: delattr(d.SegmentSequence[0], "RecommendedDisplayCIELabValue")),
    ("frames", "SEG", lambda d: setattr(d, "NumberOfFrames", 5)),
    ("frames", "SEG", lambda d: setattr(d, "PixelData", d.PixelData[:-2])),
    ("derivation", "SEG", lambda d: delattr(first_frame(d), "DerivationImageSequence")),
    ("plane", "SEG", lambda d: delattr(first_frame(d), "PlanePositionSequence")),
    ("plane", "SEG", lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence")),
    ("template", "SR", rename),
    ("template", "SR", lambda d: delattr(d, "ContentTemplateSequence")),
    ("tracking of groups", "SR", lambda d: drop(d, name="112040")),
    ("groups are shown", "SR", lambda d: drop(d, value_type="SCOORD")),
    ("coordinates", "SR", lambda d: delattr(coordinates(d), "ContentSequence")),
    ("evidence", "SR", without("CurrentRequestedProcedureEvidenceSequence")),
    ("algorithm", "SR", lose_algorithm),
    (
        "units",
        "SR",
        lambda d: setattr(
            measured(d).MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0],
            "CodingSchemeDesignator",
            "SCT",
        ),
    ),
    ("text", "SR", lose_text),
]


@pytest.mark.parametrize(("rule", "kind", "spoil"), SPOILED)
def test_a_spoiled_object_breaks_its_rule(
    made: tuple[list[Dataset], Dataset, Dataset], rule: str, kind: str, spoil: Callable[[Dataset], None]
) -> None:
    dataset = deepcopy(made[1] if kind == "SEG" else made[2])
    assert check(dataset) == []
    spoil(dataset)
    assert rule in {broken.rule for broken in check(dataset)}


def test_every_rule_is_shown_to_find_something() -> None:
    beside = {rule.name for rule in OTHER_FORM_RULES}  # test_other_forms.py
    assert {rule.name for rule in RULES} - beside == {rule for rule, _, _ in SPOILED}


def other_patient(results: list[Dataset], sources: list[Dataset]) -> None:
    del sources
    results[0].PatientID = "SOMEBODY-ELSE"


def other_image(results: list[Dataset], sources: list[Dataset]) -> None:
    del results
    sources[2].SOPInstanceUID = OTHER_UID


def shifted(results: list[Dataset], sources: list[Dataset]) -> None:
    del sources
    first_frame(results[0]).PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0.01]


def untracked(results: list[Dataset], sources: list[Dataset]) -> None:
    del sources
    results[0].SegmentSequence[0].TrackingUID = OTHER_UID


@pytest.mark.parametrize(
    ("rule", "spoil"),
    [
        ("same patient and study", other_patient),
        ("references resolve", other_image),
        ("geometry of the source", shifted),
        ("tracking", untracked),
    ],
)
def test_objects_that_do_not_belong_together(
    made: tuple[list[Dataset], Dataset, Dataset],
    rule: str,
    spoil: Callable[[list[Dataset], list[Dataset]], None],
) -> None:
    sources, *results = deepcopy(made)
    spoil(list(results), list(sources))  # type: ignore[arg-type]
    assert rule in {broken.rule for broken in check_together(list(results), list(sources))}  # type: ignore[arg-type]


def test_other_objects_are_no_results() -> None:
    assert [broken.rule for broken in check(builders.make_ultrasound())] == ["class"]


def test_what_a_result_replaces_is_named_and_changes_its_uids(tmp_path: Path) -> None:
    sources = SOURCES["ultrasound"]()
    first = results_of(tmp_path / "a", sources)
    replaced = tuple(
        Predecessor(each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPClassUID, each.SOPInstanceUID)
        for each in first
    )
    second = results_of(tmp_path / "b", sources, predecessors=replaced, inputs="12/40")
    assert check_together(second, sources) == []
    assert {each.SOPInstanceUID for each in first}.isdisjoint({each.SOPInstanceUID for each in second})
    (study,) = second[1].PredecessorDocumentsSequence
    named = {
        str(reference.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }
    assert named == {str(each.SOPInstanceUID) for each in first}
    for dataset in second:
        assert builders.standard_errors(tmp_path, dataset) == []
    text = builders.report_text(tmp_path, second[1])
    assert "This result replaces an earlier one of the same study." in text
    assert "Only 12/40 of the expected images had arrived." in text
    assert "PredecessorDocumentsSequence" not in first[1]


def test_the_command_says_which_rule_a_file_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = SOURCES["ultrasound"]()
    results = results_of(tmp_path / "in", sources)
    paths = builders.write_datasets(tmp_path / "out", [*results, *sources])
    assert main(["check", *map(str, paths)]) == 0
    assert "2 results with 1 images: keeps every rule" in capsys.readouterr().out
    (seg,) = [path for path in paths if dcmread(path).Modality == "SEG"]
    spoiled = dcmread(seg)
    del spoiled.TimezoneOffsetFromUTC
    spoiled.save_as(seg)
    assert main(["check", *map(str, paths)]) == 1
    assert f"{seg}: dates and time zone: TimezoneOffsetFromUTC is missing" in capsys.readouterr().out
    (tmp_path / "words.dcm").write_text("no DICOM")
    assert main(["check", str(tmp_path / "words.dcm")]) == 1
    assert "cannot be read as DICOM" in capsys.readouterr().out
    (image,) = (tmp_path / "in").iterdir()
    assert main(["check", str(image)]) == 1  # an image is no result


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, over the values of this very test
def test_what_a_modality_wrote_too_long_is_not_held_against_the_result(tmp_path: Path) -> None:
    source = builders.make_ultrasound()
    source["AccessionNumber"]._value = "A" * 20  # SH holds 16
    source.StudyInstanceUID = "1.2.840.007.1"  # leading zeros
    sources = [source]
    assert check_together(results_of(tmp_path, sources), sources) == []


@pytest.mark.parametrize(("given", "written"), [("-0330", "-0330"), ("+2561", None), ("", None)])
def test_the_time_zone_is_the_source_s_or_this_machine_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, written: str | None
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    source = builders.make_ultrasound()
    source.TimezoneOffsetFromUTC = given
    try:
        made = results_of(tmp_path, [source])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert {each.TimezoneOffsetFromUTC for each in made} == {written or "+0545"}
