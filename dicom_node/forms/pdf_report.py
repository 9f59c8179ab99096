"""PDF: one page with the picture, what was found, the numbers, the model and its limits, for people.

The page names no patient: whose it is stands in the attributes around it, where corrections reach it.
"""

from io import BytesIO
from pathlib import Path
from typing import Final

import reportlab
from pydicom.dataset import Dataset
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from dicom_node import codes
from dicom_node.forms.content import Content, key_images
from dicom_node.forms.envelope import Label, code_item, new_object
from dicom_node.forms.form import SOP_CLASSES, Form
from dicom_node.picture import draw_key_picture
from dicom_node.product import MANUFACTURER
from dicom_node.provenance import RESEARCH_USE
from dicom_node.sr import NOT_NORMAL, impression
from dicom_node.sr_measurements import measurements_of

(ENCAPSULATED_PDF,) = SOP_CLASSES[Form.PDF]
SERIES_NUMBER: Final = 9006
TITLE: Final = "AI result, research use only"
PLAIN, BOLD = "Vera", "VeraBd"  # come with reportlab; embedded, so that every reader shows the same
MARGIN: Final = 50.0  # points
PICTURE_POINTS: Final = 300.0  # height and width that the picture fits into
PICTURE_PIXELS: Final = 1200
SIZES: Final = (9.0, 8.0, 7.0, 6.0)  # of the text, in points: the largest that fits
LIMITS: Final = "Limits: made by a program, reviewed by nobody; the confidence is no calibrated probability."
CUT_SHORT: Final = "... The rest stands in the structured report."

Paragraph = tuple[str, str]  # font and words


def build_pdf_report(content: Content) -> Dataset:
    """An Encapsulated PDF. Source: PS3.3 A.45.1, C.24."""
    label = Label(Form.PDF, ENCAPSULATED_PDF, "DOC", SERIES_NUMBER, "AI report page (research use only)")
    dataset = new_object(content, label)
    page = _page(content)
    dataset.ConversionType = "WSD"
    dataset.BurnedInAnnotation = "NO"
    dataset.AcquisitionDateTime = None
    dataset.DocumentTitle = TITLE
    dataset.ConceptNameCodeSequence = [code_item(codes.IMAGING_REPORT)]
    dataset.SourceInstanceSequence = _sources(content)
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
    dataset.EncapsulatedDocumentLength = len(page)
    return dataset


def _sources(content: Content) -> list[Dataset]:
    """The instances that were read."""
    items = []
    for source in content.series.datasets:
        item = Dataset()
        item.ReferencedSOPClassUID = source.SOPClassUID
        item.ReferencedSOPInstanceUID = source.SOPInstanceUID
        items.append(item)
    return items


def _page(content: Content) -> bytes:
    """The PDF file; without date or chance, so that the same result gives the same bytes."""
    for name in (PLAIN, BOLD):
        pdfmetrics.registerFont(TTFont(name, str(Path(reportlab.__file__).parent / "fonts" / f"{name}.ttf")))
    buffer = BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=1)
    canvas.setTitle(TITLE)
    canvas.setAuthor(MANUFACTURER)
    canvas.setCreator(MANUFACTURER)
    canvas.setSubject(RESEARCH_USE)
    below = _draw_head(canvas, content)
    _draw_text(canvas, _paragraphs(content), below)
    canvas.save()
    return buffer.getvalue()


def _draw_head(canvas: Canvas, content: Content) -> float:
    """Title and picture; gives the height at which there is room again, in points."""
    top = A4[1] - MARGIN
    canvas.setFont(BOLD, 16)
    canvas.drawString(MARGIN, top - 16, TITLE)
    key = content.findings.key
    image = next((each for each in key_images(content) if each.frame is key), None)
    picture = draw_key_picture(key, None if image is None else image.mask)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    scale = PICTURE_POINTS / max(picture.size)
    width, height = picture.width * scale, picture.height * scale
    canvas.drawImage(ImageReader(picture), MARGIN, top - 30 - height, width, height)
    return float(top - 30 - height - 12)


def _paragraphs(content: Content) -> list[Paragraph]:
    findings, model = content.findings, content.provenance.model
    said = [(BOLD, impression(findings))]
    if findings.conclusion is not None:
        said.append((BOLD, findings.conclusion.text))
    said += [(PLAIN, line) for line in _measured(content)]
    said += [(PLAIN, text) for text in (findings.reasoning or findings.text,) if text]
    said.append((PLAIN, f"Question: {content.provenance.query}"))
    said.append((PLAIN, f"Model: {model.name} {model.version}, package {model.digest[:16]}."))
    limits = findings.remarks if content.is_outlined else (*findings.remarks, NOT_NORMAL)
    said += [(PLAIN, sentence) for sentence in (*limits, LIMITS)]
    return [*said, (BOLD, RESEARCH_USE)]


def _measured(content: Content) -> list[str]:
    """The numbers of the report with their units."""
    findings = content.findings
    if findings.region is None:
        return []
    measured = measurements_of(findings, findings.region, content.series.frames, ())
    return [f"{each.name.meaning}: {each.value:g} {each.unit.value.strip('{}')}" for each in measured]


def _draw_text(canvas: Canvas, paragraphs: list[Paragraph], top: float) -> None:
    """Every paragraph in the largest size that fits on the page; what does not fit even then is cut."""
    for size in SIZES:
        lines = _lines(paragraphs, size)
        room = int((top - MARGIN) / (size * 1.35))
        if len(lines) <= room:
            break
    else:
        lines = [*lines[: room - 2], (PLAIN, CUT_SHORT), lines[-1]]
    for number, (font, words) in enumerate(lines):
        canvas.setFont(font, size)
        canvas.drawString(MARGIN, top - (number + 1) * size * 1.35, words)


def _lines(paragraphs: list[Paragraph], size: float) -> list[Paragraph]:
    width = A4[0] - 2 * MARGIN
    return [
        (font, line)
        for font, words in paragraphs
        for line in simpleSplit(_printable(words), font, size, width)
    ]


def _printable(words: str) -> str:
    return "".join(character if character.isprintable() else " " for character in words)
