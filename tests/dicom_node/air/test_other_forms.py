from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicom_node.__main__ import main
from dicom_node.air.gate import check, check_together
from dicom_node.air.other_forms import OTHER_FORM_RULES
from dicom_node.analysis import Result
from dicom_node.forms.form import Form
from tests import builders, formed

Spoil = Callable[[Dataset], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A result in every form, on a stack."""
    return formed.formed(tmp_path_factory.mktemp("forms"), formed.SOURCES["stack"]())


def without(keyword: str) -> Spoil:
    return lambda dataset: delattr(dataset, keyword)


def set_to(keyword: str, value: object) -> Spoil:
    return lambda dataset: setattr(dataset, keyword, value)


def annotation(state: Dataset) -> Dataset:
    found: Dataset = state.GraphicAnnotationSequence[1]
    return found


def open_line(state: Dataset) -> None:
    graphic = annotation(state).GraphicObjectSequence[0]
    graphic.GraphicData = graphic.GraphicData[:-2]
    graphic.NumberOfGraphicPoints -= 1


def lose_images(selection: Dataset) -> None:
    selection.ContentSequence = [item for item in selection.ContentSequence if item.ValueType != "IMAGE"]


def lose_words(selection: Dataset) -> None:
    for item in selection.ContentSequence:
        if item.ValueType == "TEXT":
            item.TextValue = "words"


SPOILED: list[tuple[str, Form, Spoil]] = [
    ("identity", Form.SC, without("PatientID")),
    ("dates and time zone", Form.GSPS, without("TimezoneOffsetFromUTC")),
    ("contributing equipment", Form.KOS, without("ContributingEquipmentSequence")),
    ("label", Form.PDF, set_to("Modality", "SR")),
    ("label", Form.SC, set_to("SeriesDescription", "AI key images")),
    ("segments", Form.SEG_LABELMAP, lambda d: d.SegmentSequence.reverse()),
    ("frames", Form.SEG_FRACTIONAL, lambda d: setattr(d, "PixelData", d.PixelData[:-2])),
    ("copy", Form.SC, set_to("ImageType", ["ORIGINAL", "PRIMARY"])),
    ("copy", Form.SC, without("BurnedInAnnotation")),
    ("copy", Form.SC, set_to("DerivationDescription", "A copy")),
    ("pixels", Form.SC, lambda d: setattr(d, "PixelData", d.PixelData[:-2])),
    ("pixels", Form.SC, without("PageNumberVector")),
    ("pixels", Form.SC, lambda d: d.SourceImageSequence.pop()),
    ("annotations", Form.GSPS, lambda d: d.ReferencedSeriesSequence[0].ReferencedImageSequence.pop(1)),
    ("annotations", Form.GSPS, lambda d: setattr(annotation(d), "GraphicLayer", "OTHER")),
    ("annotations", Form.GSPS, lambda d: delattr(annotation(d), "GraphicObjectSequence")),
    ("annotations", Form.GSPS, open_line),
    ("presentation", Form.GSPS, without("DisplayedAreaSelectionSequence")),
    ("presentation", Form.GSPS, without("PresentationLUTShape")),
    ("presentation", Form.GSPS, lambda d: delattr(annotation(d), "TextObjectSequence")),
    ("selection", Form.KOS, lambda d: setattr(d.ConceptNameCodeSequence[0], "CodeValue", "113001")),
    ("selection", Form.KOS, without("ContentTemplateSequence")),
    ("selection", Form.KOS, lose_images),
    ("evidence", Form.KOS, without("CurrentRequestedProcedureEvidenceSequence")),
    ("text", Form.KOS, lose_words),
    ("document", Form.PDF, set_to("EncapsulatedDocument", b"no PDF")),
    ("document", Form.PDF, set_to("MIMETypeOfEncapsulatedDocument", "text/plain")),
    ("document", Form.PDF, set_to("EncapsulatedDocumentLength", 10)),
    ("document", Form.PDF, set_to("DocumentTitle", "Report")),
    ("document", Form.PDF, without("SourceInstanceSequence")),
]


@pytest.mark.parametrize(("rule", "form", "spoil"), SPOILED)
def test_a_spoiled_form_breaks_its_rule(made: Result, rule: str, form: Form, spoil: Spoil) -> None:
    dataset = deepcopy(formed.one(made, form))
    assert check(dataset) == []
    spoil(dataset)
    assert rule in {broken.rule for broken in check(dataset)}


def test_every_rule_of_the_forms_is_shown_to_find_something() -> None:
    assert {rule.name for rule in OTHER_FORM_RULES} <= {rule for rule, _, _ in SPOILED}


@pytest.mark.parametrize("form", [Form.SC, Form.GSPS, Form.KOS, Form.PDF])
def test_a_reference_to_an_image_that_is_not_there_is_found(tmp_path: Path, form: Form) -> None:
    sources = formed.SOURCES["ultrasound"]()
    results = [formed.one(formed.formed(tmp_path, sources), form)]
    assert check_together(results, sources) == []
    sources[0].SOPInstanceUID = "1.2.3.4.5"
    assert {broken.rule for broken in check_together(results, sources)} == {"references resolve"}


def test_the_command_checks_every_form_that_we_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = formed.SOURCES["ultrasound"]()
    result = formed.formed(tmp_path / "in", sources)
    paths = builders.write_datasets(tmp_path / "out", [*result.datasets, *sources])
    assert main(["check", *map(str, paths)]) == 0
    said = capsys.readouterr().out
    assert f"{len(result.datasets)} results with 1 images: keeps every rule" in said
    picture = formed.one(result, Form.SC)
    picture.Manufacturer = "Somebody"  # a picture that others captured is an image, and no result
    del picture.BurnedInAnnotation
    path = tmp_path / "foreign.dcm"
    picture.save_as(path, enforce_file_format=True)
    assert main(["check", str(path)]) == 1
    assert "BurnedIn" not in capsys.readouterr().out
