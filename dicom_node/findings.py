"""7 FINDINGS. What an analysis found, before it is a report: region, diagnosis, measurements, conclusion."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.frames import Frame
from dicom_node.regions import Measures
from dicom_node.ventricle import Conclusion, VentricleVolumes


@dataclass(frozen=True, eq=False)
class Region:
    """What was outlined and how large it is."""

    mask: NDArray[np.bool_]  # (H, W) of the key frame
    measures: Measures
    volume_ml: float | None  # None where the frames are no stack


@dataclass(frozen=True)
class Ended:
    """An analysis that ended without a result; never to be read as a normal one."""

    words: str  # e.g. "Not analysed"
    reason: str  # a sentence without patient attributes


@dataclass(frozen=True, eq=False)
class Findings:
    """What the report says."""

    target: str | None
    body_part: str
    diagnosis: str | None
    confidence: float | None  # 0..1
    text: str
    reasoning: str
    key: Frame
    region: Region | None  # on the key frame
    remarks: tuple[str, ...]  # sentences a reader must know, e.g. what was left out
    ventricle: VentricleVolumes | None = None  # of a short-axis stack of the heart
    conclusion: Conclusion | None = None  # what follows from a measurement; never the model's own words
    ended: Ended | None = None
