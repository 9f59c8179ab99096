"""What runs in a limited child for the web server: a stored frame into plain samples, or into a picture.

Stored pixels come from outside, and decoders are native code: none of this runs in a process of the node.
"""

import re
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node.display import Display, Stored, apply_window, to_display
from dicom_node.errors import DecodeFailed
from dicom_node.frames import frame_attributes

JPEG: Final = "image/jpeg"
PNG: Final = "image/png"
GIF: Final = "image/gif"
FORMATS: Final = {JPEG: "JPEG", PNG: "PNG", GIF: "GIF"}
MAX_SAMPLES: Final = 400_000_000  # of one frame; the child's memory bounds it as well
TEXT_GAP: Final = 4  # pixels


@dataclass(frozen=True)
class PictureOptions:
    """How a picture is to look."""

    media_type: str
    quality: int = 90  # of a JPEG, 1 to 100
    size: tuple[int, int] | None = None  # (width, height) to fit into, pixels
    region: tuple[float, float, float, float] | None = None  # x, y, width, height of the source, pixels
    window: tuple[float, float, str] | None = None  # centre, width, function
    is_inverted: bool = False
    lines: tuple[str, ...] = ()  # annotation, top to bottom

    def as_plain(self) -> dict[str, Any]:
        """Plain values, for the way to the child."""
        return asdict(self)


def decode_frame(path: str, index: int) -> bytes:
    """Return frame `index` (from 0) as native samples, little endian, 1-bit ones packed.

    Source: PS3.5 8.1.1 (the lowest bit first), A.2 (Explicit VR Little Endian).
    """
    header = dcmread(path, stop_before_pixels=True, specific_tags=["BitsAllocated"])
    array = pixel_array(Path(path), index=index, raw=True)
    if header.get("BitsAllocated") == 1:
        return np.packbits(array.reshape(-1).astype(np.uint8), bitorder="little").tobytes()
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def draw_frame(path: str, index: int, options: dict[str, Any]) -> bytes:
    """Return frame `index` (from 0) as an encoded picture."""
    wanted = PictureOptions(**{**options, "lines": tuple(options["lines"])})
    stored, header = _read(path, index)
    attributes = frame_attributes(header, index)
    if wanted.window is not None:
        _set_window(attributes, *wanted.window)
    picture = Image.fromarray(_display(stored, attributes))
    if wanted.is_inverted:
        picture = Image.eval(picture, lambda value: 255 - value)
    return _encode(_annotated(_placed(picture, wanted), wanted.lines), wanted)


def _read(path: str, index: int) -> tuple[Stored, Dataset]:
    header = dcmread(path, stop_before_pixels=True)
    samples = int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
    if not 0 < samples <= MAX_SAMPLES:
        raise DecodeFailed("the header says a frame size that is not served")
    if header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        whole = dcmread(path).pixel_array
        return (whole[index] if int(header.get("NumberOfFrames") or 1) > 1 else whole), header
    return pixel_array(Path(path), index=index), header


def _display(stored: Stored, attributes: Dataset) -> Display:
    if attributes.get("BitsAllocated") == 1 or attributes.get("Modality") == "SEG":
        top = max(int(np.asarray(stored).max(initial=0)), 1)
        return apply_window(stored, (top / 2, float(top)), "LINEAR_EXACT")
    if np.asarray(stored).dtype.kind == "f":
        low, high = float(np.nanmin(stored)), float(np.nanmax(stored))
        return apply_window(np.nan_to_num(stored), ((low + high) / 2, max(high - low, 1e-6)), "LINEAR_EXACT")
    return to_display(stored, attributes)


def _set_window(attributes: Dataset, centre: float, width: float, function: str) -> None:
    attributes.WindowCenter, attributes.WindowWidth, attributes.VOILUTFunction = centre, width, function
    if "VOILUTSequence" in attributes:
        del attributes.VOILUTSequence


def _placed(picture: Image.Image, wanted: PictureOptions) -> Image.Image:
    """Cut out and fit. Source: PS3.18 8.3.5.1.3 (the aspect ratio is kept)."""
    if wanted.region is not None:
        x, y, width, height = wanted.region
        right, bottom = min(x + width, picture.width), min(y + height, picture.height)
        if right - x < 1 or bottom - y < 1:
            raise DecodeFailed("the viewport's region lies outside of the image")
        picture = picture.crop((round(x), round(y), max(round(right), 1), max(round(bottom), 1)))
    if wanted.size is not None:
        scale = min(wanted.size[0] / picture.width, wanted.size[1] / picture.height)
        side = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        picture = picture.resize(side, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return picture


def _annotated(picture: Image.Image, lines: tuple[str, ...]) -> Image.Image:
    if not lines:
        return picture
    drawn = picture.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for number, line in enumerate(lines):
        text = re.sub(r"[^\x20-\x7e\xa0-\xff]", "?", line)[:200]  # what Pillow's own font has
        pen.text((TEXT_GAP, TEXT_GAP + number * 14), text, fill=(255, 255, 0))
    return drawn


def _encode(picture: Image.Image, wanted: PictureOptions) -> bytes:
    buffer = BytesIO()
    if wanted.media_type == JPEG:
        picture.save(buffer, "JPEG", quality=wanted.quality)
    else:
        picture.save(buffer, FORMATS[wanted.media_type])
    return buffer.getvalue()
