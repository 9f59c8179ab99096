"""The key frame as a PNG with the outlined region, for people without a DICOM viewer."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.frames import Frame
from dicom_node.regions import outlines

BANNER: Final = "AI result, research use only"
NOTHING_OUTLINED: Final = "Nothing outlined; that does not mean normal."
SHORT_SIDE_PX: Final = 480  # small frames are enlarged until their shorter side has at least so many pixels
LONG_SIDE_PX: Final = 8192  # and never enlarged beyond this, however odd its proportions are
BANNER_PX: Final = 26  # at least; of large pictures the BANNER_SHARE-th part of the shorter side
BANNER_SHARE: Final = 20
CONTOUR: Final = (255, 214, 10)
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def save_key_picture(path: Path, frame: Frame, mask: NDArray[np.bool_] | None) -> None:
    """Write the picture of `draw_key_picture` as a PNG."""
    draw_key_picture(frame, mask).save(path, format="PNG")


def draw_key_picture(frame: Frame, mask: NDArray[np.bool_] | None) -> Image.Image:
    """`frame` in its true proportions, the outlines of `mask` (H, W), and a banner below."""
    across, down = picture_scale(frame)
    size = (max(round(frame.size[1] * across), 1), max(round(frame.size[0] * down), 1))
    banner_px = max(BANNER_PX, min(size) // BANNER_SHARE)
    shown = Image.fromarray(frame.image).resize(size, Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (size[0], size[1] + banner_px))
    picture.paste(shown, (0, 0))
    draw = ImageDraw.Draw(picture)
    is_outlined = mask is not None and bool(mask.any())
    for line in outlines(mask) if mask is not None and is_outlined else []:
        points = [(float(x) * across, float(y) * down) for x, y in line]
        draw.line(points, fill=CONTOUR, width=max(2, banner_px // 13), joint="curve")
    words, font = _banner(is_outlined=is_outlined, size=(size[0], banner_px))
    draw.text((6, size[1] + banner_px // 6), words, fill=CONTOUR, font=font)
    return picture


def picture_scale(frame: Frame) -> tuple[float, float]:
    """Picture pixels for one pixel of the frame, across and down; distances are as in the patient."""
    height, width = frame.size
    rows, columns = frame.spacing_mm or (1.0, 1.0)
    base = min(float(rows), float(columns))
    sides = height * float(rows) / base, width * float(columns) / base
    scale = min(max(SHORT_SIDE_PX / min(sides), 1.0), LONG_SIDE_PX / max(sides))
    return scale * float(columns) / base, scale * float(rows) / base


def _banner(*, is_outlined: bool, size: tuple[int, int]) -> tuple[str, Font]:
    """Words that fit into `size` (width, height), and their font."""
    words = BANNER if is_outlined else f"{BANNER}. {NOTHING_OUTLINED}"
    height = size[1] * 15 / BANNER_PX
    width = ImageFont.load_default(height).getlength(words)
    return words, ImageFont.load_default(height * min(1.0, (size[0] - 12) / width))
