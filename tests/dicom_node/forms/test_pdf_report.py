import io
import subprocess
from dataclasses import replace
from pathlib import Path

import pypdf
import pytest
from pydicom.dataset import Dataset

from dicom_node.analysis import analyse
from dicom_node.forms.form import Form
from dicom_node.reading import AnalysisRequest
from inference.contract import Image, Prediction, Prompt
from tests import builders, formed

PDF_ONLY = [frozenset({Form.PDF})]


def page_of(made: Dataset) -> pypdf.PageObject:
    document = bytes(made.EncapsulatedDocument)[: made.EncapsulatedDocumentLength]
    (page,) = pypdf.PdfReader(io.BytesIO(document)).pages
    return page


def words_of(made: Dataset) -> str:
    return " ".join(page_of(made).extract_text().split())


def test_one_page_says_what_was_found_with_what_and_its_limits(tmp_path: Path) -> None:
    made = formed.one(formed.formed(tmp_path, formed.SOURCES["ultrasound"](), PDF_ONLY), Form.PDF)
    text = words_of(made)
    for words in (
        "AI result, research use only",
        "Diagnosis: benign (confidence 0.88).",
        "Long axis: ",
        " mm2",
        "Firstly, this is a breast ultrasound image",
        f"Question: {formed.QUERY}",
        "Model: stub 0.0.1, package 5b5b5b5b",
        "reviewed by nobody",
        "Research use only. Not a medical device.",
    ):
        assert words in text
    (picture,) = page_of(made).images
    assert min(picture.image.size) > 400
    assert made.DocumentTitle == "AI result, research use only"


def test_dcmtk_takes_the_document_out(tmp_path: Path) -> None:
    made = formed.one(formed.formed(tmp_path / "in", formed.SOURCES["stack"](), PDF_ONLY), Form.PDF)
    path = tmp_path / "report.dcm"
    path.write_bytes(builders.part10(made))
    done = subprocess.run(
        ["dcm2pdf", str(path), str(tmp_path / "report.pdf")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert pypdf.PdfReader(tmp_path / "report.pdf").metadata["/Title"] == "AI result, research use only"


def test_the_page_names_no_patient(tmp_path: Path) -> None:
    sources = [builders.make_ultrasound(formed.ellipse()) for _ in range(2)]
    sources[1].PatientName, sources[1].PatientID = "Other^Name", "OTHER"
    first, second = (
        formed.one(formed.formed(tmp_path / str(number), [source], PDF_ONLY), Form.PDF)
        for number, source in enumerate(sources)
    )
    assert first.PatientName != second.PatientName
    assert first.EncapsulatedDocument == second.EncapsulatedDocument


def test_fonts_are_embedded(tmp_path: Path) -> None:
    made = formed.one(formed.formed(tmp_path, formed.SOURCES["ultrasound"](), PDF_ONLY), Form.PDF)
    fonts = page_of(made)["/Resources"]["/Font"]
    used = [font.get_object() for font in fonts.values()]
    assert [f for f in used if f["/Subtype"] == "/TrueType" and "/FontFile2" in f["/FontDescriptor"]]


@pytest.mark.parametrize("kind", ["uncalibrated", "nothing found"])
def test_what_is_missing_is_said(tmp_path: Path, kind: str) -> None:
    text = words_of(formed.one(formed.formed(tmp_path, formed.SOURCES[kind](), PDF_ONLY), Form.PDF))
    is_nothing = kind == "nothing found"
    assert ("does not mean that the images are normal" in text) == is_nothing
    assert ("sizes are in pixels" in text) == (not is_nothing)
    assert ("Area" in text) == (not is_nothing)


class Rambling(builders.MaskPredictor):
    """An answer that fits on no page."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        return replace(super().predict(image, prompt), reasoning="wörd \x00\n漢字 " * 3000)


def test_what_does_not_fit_is_cut_and_said_so(tmp_path: Path) -> None:
    series = builders.as_loaded(tmp_path, formed.SOURCES["ultrasound"]())
    result = analyse(series, Rambling(), AnalysisRequest(formed.QUERY), profiles=PDF_ONLY)
    text = words_of(formed.one(result, Form.PDF))
    assert "The rest stands in the structured report" in text
    assert text.endswith("Research use only. Not a medical device.")
    assert "wörd" in text
