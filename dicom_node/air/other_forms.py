"""7 CHECK of the forms beside SEG and SR: key image pictures, presentation states, key objects, PDF pages."""

from collections.abc import Iterator
from typing import Final

from pydicom.dataset import Dataset

from dicom_node.air.rules import Rule, present

KEY_OBJECT_TEMPLATE: Final = "2010"
OF_INTEREST: Final = "113000"


def _says_it_is_a_copy(dataset: Dataset) -> Iterator[str]:
    if list(dataset.get("ImageType") or [])[:2] != ["DERIVED", "SECONDARY"]:
        yield "Image Type is not DERIVED, SECONDARY"
    if dataset.get("BurnedInAnnotation") not in {"YES", "NO"}:
        yield "Burned In Annotation is neither YES nor NO"
    if "research use only" not in str(dataset.get("DerivationDescription", "")).lower():
        yield "Derivation Description does not say that it is for research use only"
    yield from present(dataset, "ConversionType")


def _has_all_pixels(dataset: Dataset) -> Iterator[str]:
    if (dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.BitsAllocated) != (3, "RGB", 8):
        yield "the picture is not RGB of 8 bits"
    frames = int(dataset.get("NumberOfFrames") or 1)
    size = frames * int(dataset.Rows) * int(dataset.Columns) * 3
    if len(dataset.PixelData) != size + size % 2:
        yield f"Pixel Data has {len(dataset.PixelData)} bytes, not {size + size % 2}"
    if frames != len(dataset.SourceImageSequence):
        yield f"{frames} frames were made from {len(dataset.SourceImageSequence)} source images"
    if frames > 1 and len(dataset.get("PageNumberVector") or []) != frames:
        yield "Page Number Vector does not count the frames"


def _draws_on_its_images(dataset: Dataset) -> Iterator[str]:
    listed = {
        str(image.ReferencedSOPInstanceUID)
        for series in dataset.ReferencedSeriesSequence
        for image in series.ReferencedImageSequence
    }
    layers = {str(layer.GraphicLayer) for layer in dataset.GraphicLayerSequence}
    for number, annotation in enumerate(dataset.GraphicAnnotationSequence, start=1):
        images = {str(image.ReferencedSOPInstanceUID) for image in annotation.ReferencedImageSequence}
        if not images <= listed:
            yield f"annotation {number} is on an image that is not referenced"
        if str(annotation.GraphicLayer) not in layers:
            yield f"annotation {number} is on a layer that does not exist"
        yield from _draws_closed_lines(annotation, number)


def _draws_closed_lines(annotation: Dataset, number: int) -> Iterator[str]:
    lines = list(annotation.get("GraphicObjectSequence") or [])
    if not lines:
        yield f"annotation {number} draws nothing"
    for line in lines:
        data = list(line.GraphicData)
        if len(data) != 2 * int(line.NumberOfGraphicPoints) or data[:2] != data[-2:]:
            yield f"annotation {number} draws a line that is not closed"


def _can_be_shown(dataset: Dataset) -> Iterator[str]:
    yield from present(
        dataset, "ContentLabel", "PresentationCreationDate", "PresentationCreationTime",
        "DisplayedAreaSelectionSequence",
    )  # fmt: skip
    if not dataset.get("PresentationLUTShape") and not dataset.get("ICCProfile"):
        yield "neither grey levels nor colours are defined"
    for number, annotation in enumerate(dataset.GraphicAnnotationSequence, start=1):
        texts = [str(text.UnformattedTextValue) for text in annotation.get("TextObjectSequence") or []]
        if not any("research use only" in text.lower() for text in texts):
            yield f"annotation {number} does not say that it is for research use only"


def _selects_images(dataset: Dataset) -> Iterator[str]:
    templates = [str(each.TemplateIdentifier) for each in dataset.get("ContentTemplateSequence") or []]
    if templates != [KEY_OBJECT_TEMPLATE]:
        yield "the template is not TID 2010"
    if str(dataset.ConceptNameCodeSequence[0].CodeValue) != OF_INTEREST:
        yield "the title is not Of Interest"
    if not any(item.ValueType == "IMAGE" for item in dataset.ContentSequence):
        yield "no image is selected"


def _holds_a_pdf(dataset: Dataset) -> Iterator[str]:
    yield from present(dataset, "DocumentTitle", "ConceptNameCodeSequence", "SourceInstanceSequence")
    if dataset.get("MIMETypeOfEncapsulatedDocument") != "application/pdf":
        yield "the document is not called a PDF"
    if not bytes(dataset.EncapsulatedDocument).startswith(b"%PDF-"):
        yield "the document is no PDF"
    length = int(dataset.get("EncapsulatedDocumentLength") or 0)
    if len(dataset.EncapsulatedDocument) != length + length % 2:
        yield "Encapsulated Document Length is not the document's"
    if "research use only" not in str(dataset.get("DocumentTitle", "")).lower():
        yield "Document Title does not say that it is for research use only"


OTHER_FORM_RULES: Final[tuple[Rule, ...]] = (
    Rule("copy", "PS3.3 C.7.6.1, C.8.6", {"SC"}, _says_it_is_a_copy),
    Rule("pixels", "PS3.3 C.7.6.3, C.8.6.3", {"SC"}, _has_all_pixels),
    Rule("annotations", "PS3.3 C.10.5, C.11.11", {"PR"}, _draws_on_its_images),
    Rule("presentation", "PS3.3 A.33, C.10.4, C.11.10", {"PR"}, _can_be_shown),
    Rule("selection", "PS3.16 TID 2010", {"KO"}, _selects_images),
    Rule("document", "PS3.3 A.45.1, C.24.2", {"DOC"}, _holds_a_pdf),
)
