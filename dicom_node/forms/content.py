"""What every form of a result is made from, and which frames of the source are its key images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.findings import Findings
from dicom_node.frames import Frame, SourceSeries
from dicom_node.mask_stack import MaskStack
from dicom_node.provenance import Provenance

MAX_KEY_IMAGES: Final = 8  # what a person looks at, and what an RGB copy of may weigh


@dataclass(frozen=True, eq=False)
class Content:
    """A result before it takes a form."""

    series: SourceSeries
    masks: MaskStack  # one (H, W) per frame of the series
    findings: Findings
    provenance: Provenance

    @property
    def is_outlined(self) -> bool:
        """Whether anything was outlined."""
        return bool(self.masks.marked)


@dataclass(frozen=True, eq=False)
class KeyImage:
    """A frame that shows what was found."""

    frame: Frame
    mask: NDArray[np.bool_]  # (H, W); all False where nothing was outlined


def key_images(content: Content) -> tuple[KeyImage, ...]:
    """The key frame and others with an outline, evenly chosen, in the order of the series.

    Without any outline it is the key frame alone.
    """
    frames = content.series.frames
    key = frames.index(content.findings.key)
    marked = content.masks.marked
    chosen = _spread(marked, key) if key in marked else [key]
    return tuple(KeyImage(frames[index], content.masks[index]) for index in chosen)


def like_the_key(
    content: Content, images: Sequence[KeyImage], trait: Callable[[KeyImage], object]
) -> list[KeyImage]:
    """Those of `images` that have the trait of the key frame, which is among them."""
    wanted = next(trait(image) for image in images if image.frame is content.findings.key)
    return [image for image in images if trait(image) == wanted]


def _spread(marked: list[int], key: int) -> list[int]:
    """At most MAX_KEY_IMAGES of the ascending `marked`, as far apart as they can be; `key` is among them."""
    places = np.linspace(0, len(marked) - 1, min(len(marked), MAX_KEY_IMAGES)).round().astype(int)
    chosen = sorted({marked[place] for place in places})
    if key not in chosen:
        chosen.remove(min(chosen, key=lambda index: abs(index - key)))
    return sorted({*chosen, key})
