"""The key frame as a PNG with the outlined region, for people without a DICOM viewer."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.frames import Frame
from dicom_node.regions import outlines

BANNER: Final = "AI result, research use only"
SHORT_SIDE_PX: Final = 480  # small frames are enlarged until their shorter side has at least so many pixels
BANNER_PX: Final = 26
CONTOUR: Final = (255, 214, 10)


def save_key_picture(path: Path, frame: Frame, mask: NDArray[np.bool_] | None) -> None:
    """Write `frame` in its true proportions, the outlines of `mask` (H, W), and a banner."""
    height, width = frame.size
    rows, columns = frame.spacing_mm or (1.0, 1.0)
    base = min(float(rows), float(columns))
    scale = max(SHORT_SIDE_PX / min(height * float(rows) / base, width * float(columns) / base), 1.0)
    across, down = scale * float(columns) / base, scale * float(rows) / base  # picture pixels per frame pixel
    size = (max(round(width * across), 1), max(round(height * down), 1))
    shown = Image.fromarray(frame.image).resize(size, Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (size[0], size[1] + BANNER_PX))
    picture.paste(shown, (0, 0))
    draw = ImageDraw.Draw(picture)
    for line in [] if mask is None or not mask.any() else outlines(mask):
        draw.line(
            [(float(x) * across, float(y) * down) for x, y in line], fill=CONTOUR, width=2, joint="curve"
        )
    draw.text((6, size[1] + 4), BANNER, fill=CONTOUR, font=ImageFont.load_default(15))
    picture.save(path, format="PNG")
