"""SC: the key images as they are shown, with the contour and "AI result, research use only" burnt in.

For a PACS that shows pictures only. Nothing about a patient is burnt in; what the modality had burnt in
stays, and Burned In Annotation says so.
"""

from typing import Final

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from dicom_node import codes
from dicom_node.forms.content import Content, KeyImage, key_images, like_the_key
from dicom_node.forms.envelope import Label, code_item, new_object, reference
from dicom_node.forms.form import SOP_CLASSES, Form
from dicom_node.picture import draw_key_picture, picture_scale
from dicom_node.provenance import RESEARCH_USE

SINGLE, TRUE_COLOUR = SOP_CLASSES[Form.SC]
SERIES_NUMBER: Final = 9003
PAGE_NUMBER_VECTOR: Final = 0x00182001
# Modalities whose images are free of text; the screens of others may show whose they are.
WITHOUT_TEXT: Final = frozenset({"CT", "MR", "CR", "DX"})
LOSSY: Final = (
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def build_secondary_capture(content: Content) -> Dataset:
    """One RGB frame for each key image; without an outline the picture says so itself.

    Source: PS3.3 A.8.1, A.8.5, C.8.6.
    """
    images = like_the_key(content, key_images(content), lambda image: picture_scale(image.frame))
    dataset = new_object(content, _label(len(images)))
    _set_pixels(dataset, [draw_key_picture(image.frame, image.mask) for image in images])
    _set_origin(dataset, images)
    return dataset


def _label(count: int) -> Label:
    sop_class = SINGLE if count == 1 else TRUE_COLOUR
    return Label(Form.SC, sop_class, "OT", SERIES_NUMBER, "AI key images (research use only)")


def _set_pixels(dataset: Dataset, pictures: list[Image.Image]) -> None:
    pixels = np.stack([np.asarray(picture, np.uint8) for picture in pictures])
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = pixels.shape[1:3]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    if len(pictures) > 1:
        dataset.NumberOfFrames = len(pictures)
        dataset.FrameIncrementPointer = PAGE_NUMBER_VECTOR
        dataset.PageNumberVector = list(range(1, len(pictures) + 1))


def _set_origin(dataset: Dataset, images: list[KeyImage]) -> None:
    """From which frames it was made, in their order, and that it is no original."""
    source = images[0].frame.source
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "WSD"
    dataset.PatientOrientation = None
    dataset.DerivationDescription = f"AI result burnt into a copy. {RESEARCH_USE}"
    dataset.SourceImageSequence = [_source_image(image) for image in images]
    dataset.BurnedInAnnotation = _burned_in(source)
    for keyword in LOSSY:
        if source.get(keyword):
            dataset[keyword] = source[keyword]


def _source_image(image: KeyImage) -> Dataset:
    item = reference([image.frame])
    item.PurposeOfReferenceCodeSequence = [code_item(codes.SOURCE_IMAGE)]
    return item


def _burned_in(source: Dataset) -> str:
    """YES where the copied image may show whose it is. Source: PS3.3 C.7.6.1 (0028,0301)."""
    said = str(source.get("BurnedInAnnotation") or "").strip().upper()
    if said in {"YES", "NO"}:
        return said
    return "NO" if source.get("Modality") in WITHOUT_TEXT else "YES"
