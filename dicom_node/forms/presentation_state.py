"""GSPS: the contours as graphics on the key images, for a PACS that shows presentation states but no SEG.

Grey images get a Grayscale Softcopy Presentation State with their own modality and VOI transformations;
colour images, which that class excludes, get a Color Softcopy Presentation State.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

from PIL import ImageCms
from pydicom.dataset import Dataset

from dicom_node import codes
from dicom_node.forms.content import Content, KeyImage, key_images, like_the_key
from dicom_node.forms.envelope import Label, by_series, new_object, reference, references
from dicom_node.forms.form import SOP_CLASSES, Form
from dicom_node.frames import IMAGER_PIXEL_SPACING, frame_attributes
from dicom_node.picture import BANNER
from dicom_node.provenance import RESEARCH_USE
from dicom_node.regions import Points, outlines

GREY, COLOUR = SOP_CLASSES[Form.GSPS]
SERIES_NUMBER: Final = 9004
DESCRIPTION: Final = "AI contours (research use only)"
LAYER: Final = "AI_RESULT"
LAYER_GREY: Final = 0xFFFF
LAYER_LAB: Final = (
    57166,
    33782,
    54888,
)  # the colour of the pictures' contour, CIELab in 16 bits: PS3.3 C.10.7.1.1
MODALITY_LUT: Final = ("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence")
VOI_LUT: Final = (
    "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence",
)  # fmt: skip
SRGB_DATE: Final = bytes.fromhex("07d000010001000000000000")  # of the profile: 1 January 2000


def build_presentation_state(content: Content) -> Dataset:
    """Every outline of the key images as a closed polyline. Source: PS3.3 A.33.1, A.33.2, C.10.5, C.11.10."""
    images = like_the_key(content, key_images(content), _modality_lut)
    is_colour = images[0].frame.display.ndim == 3
    label = Label(Form.GSPS, COLOUR if is_colour else GREY, "PR", SERIES_NUMBER, DESCRIPTION)
    dataset = new_object(content, label)
    _set_identity(dataset, codes.target_of(content.findings.target).label)
    dataset.ReferencedSeriesSequence = [_series(uid, part) for uid, part in by_series(images).items()]
    dataset.DisplayedAreaSelectionSequence = [_whole_area(images[0])]
    dataset.GraphicAnnotationSequence = [_annotation(image) for image in images]
    dataset.GraphicLayerSequence = [_layer()]
    if is_colour:
        dataset.ICCProfile = _srgb()
    else:
        _set_grey_levels(dataset, images)
    return dataset


def _modality_lut(image: KeyImage) -> Dataset:
    """A presentation state has one modality transformation for all its images."""
    return _picked(image, MODALITY_LUT)


def _set_identity(dataset: Dataset, target: str) -> None:
    dataset.ContentLabel = LAYER
    dataset.ContentDescription = f"{target[:23]}. {RESEARCH_USE}"[:64]
    dataset.ContentCreatorName = None
    dataset.PresentationCreationDate = dataset.ContentDate
    dataset.PresentationCreationTime = dataset.ContentTime


def _series(series_instance_uid: str, images: Sequence[KeyImage]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = series_instance_uid
    item.ReferencedImageSequence = references(images)
    return item


def _whole_area(image: KeyImage) -> Dataset:
    """All frames of a series have one size. Pixels are counted from 1 here. Source: PS3.3 C.10.4."""
    area = Dataset()
    rows, columns = image.frame.size
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [columns, rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    attributes = frame_attributes(image.frame.source, (image.frame.frame_number or 1) - 1)
    spacing = attributes.get("PixelSpacing") or attributes.get("ImagerPixelSpacing")
    if spacing and image.frame.spacing_origin in {"Pixel Spacing", IMAGER_PIXEL_SPACING}:
        area.PresentationPixelSpacing = list(spacing)
    else:
        area.PresentationPixelAspectRatio = list(attributes.get("PixelAspectRatio") or [1, 1])
    return area


def _annotation(image: KeyImage) -> Dataset:
    """Points are (column, row) from the corner of the first pixel, as in an SR. Source: PS3.3 C.10.5."""
    annotation = Dataset()
    annotation.ReferencedImageSequence = [reference([image.frame])]
    annotation.GraphicLayer = LAYER
    annotation.TextObjectSequence = [_words()]
    annotation.GraphicObjectSequence = [_polyline(points) for points in outlines(image.mask)]
    return annotation


def _polyline(points: Points) -> Dataset:
    graphic = Dataset()
    flat = [float(number) for number in points.reshape(-1)]
    graphic.GraphicAnnotationUnits, graphic.GraphicDimensions = "PIXEL", 2
    graphic.NumberOfGraphicPoints, graphic.GraphicData = len(flat) // 2, flat
    graphic.GraphicType, graphic.GraphicFilled = "POLYLINE", "N"
    return graphic


def _words() -> Dataset:
    """What stands in the lower left corner of the displayed area."""
    text = Dataset()
    text.BoundingBoxAnnotationUnits = "DISPLAY"
    text.UnformattedTextValue = BANNER
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = [0.02, 0.94], [0.6, 0.99]
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    return text


def _layer() -> Dataset:
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder = LAYER, 1
    layer.GraphicLayerRecommendedDisplayGrayscaleValue = LAYER_GREY
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(LAYER_LAB)
    layer.GraphicLayerDescription = DESCRIPTION
    return layer


def _set_grey_levels(dataset: Dataset, images: Sequence[KeyImage]) -> None:
    """The images' own transformations, so that they look as without the presentation state."""
    dataset.update(_modality_lut(images[0]))
    if "RescaleSlope" in dataset and not dataset.get("RescaleType"):
        dataset.RescaleType = "US"  # unspecified
    windows = [_picked(image, VOI_LUT) for image in images]
    if all(windows):
        is_one = all(window == windows[0] for window in windows)
        dataset.SoftcopyVOILUTSequence = (
            [windows[0]] if is_one else [_of(image, w) for image, w in zip(images, windows, strict=True)]
        )
    is_inverse = images[0].frame.source.get("PhotometricInterpretation") == "MONOCHROME1"
    dataset.PresentationLUTShape = "INVERSE" if is_inverse else "IDENTITY"


def _of(image: KeyImage, window: Dataset) -> Dataset:
    window.ReferencedImageSequence = [reference([image.frame])]
    return window


def _picked(image: KeyImage, keywords: Sequence[str]) -> Dataset:
    """The frame's own attributes of these names."""
    attributes = frame_attributes(image.frame.source, (image.frame.frame_number or 1) - 1)
    picked = Dataset()
    for keyword in keywords:
        if attributes.get(keyword) not in (None, "", []):
            picked[keyword] = attributes[keyword]
    return picked


@cache
def _srgb() -> bytes:
    """The sRGB profile, without the moment at which it was made."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + SRGB_DATE + profile[36:]
