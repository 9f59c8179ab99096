"""7 MEASURE. Cavity of the left ventricle over slices and phases -> volumes, ejection fraction, conclusion.

The conclusion follows from the measurement by published cut-offs; it is not the model's and has no
confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from dicom_node import codes
from dicom_node.cine import CineGrid
from dicom_node.frames import Frame
from dicom_node.regions import disc_thickness_mm

MIN_SLICES: Final = 3  # discs of fewer slices say nothing about a ventricle
REDUCED_AT_MOST, MILDLY_REDUCED_AT_MOST = 40, 49  # percent, rounded. Source: ESC 2021, heart failure
SOURCES: Final = (
    "Cut-offs: reduced 40 % or less, mildly reduced 41 to 49 %, not reduced 50 % or more (ESC 2021 guideline "
    "on heart failure). ASE/EACVI 2015 takes 52 to 72 % (men) and 54 to 74 % (women) as normal."
)
DERIVED: Final = "Derived from the measurement, not said by the model; research use only."


@dataclass(frozen=True)
class VentricleVolumes:
    """Volumes of the cavity by summation of discs, one a phase."""

    volumes_ml: tuple[float, ...]
    grid: CineGrid
    end_diastole: int  # phase of the largest volume
    end_systole: int  # phase of the smallest
    why_no_fraction: str  # a sentence; "" when there is an ejection fraction

    @property
    def end_diastolic_ml(self) -> float:
        """The largest volume, in ml."""
        return self.volumes_ml[self.end_diastole]

    @property
    def end_systolic_ml(self) -> float:
        """The smallest volume, in ml."""
        return self.volumes_ml[self.end_systole]

    @property
    def stroke_ml(self) -> float:
        """What is ejected, in ml."""
        return self.end_diastolic_ml - self.end_systolic_ml

    @property
    def ejection_fraction(self) -> float | None:
        """In percent; None where the phases do not allow it."""
        return None if self.why_no_fraction else 100.0 * self.stroke_ml / self.end_diastolic_ml


@dataclass(frozen=True)
class Conclusion:
    """What follows from a measurement, as code and as text."""

    label: str
    text: str
    question: Code
    answer: Code


def measure_ventricle(
    frames: Sequence[Frame], masks: Sequence[NDArray[np.bool_]], grid: CineGrid
) -> VentricleVolumes:
    """Volume in every phase of `grid`; `masks` (H, W) are the cavity, one a frame."""
    thickness = disc_thickness_mm(np.array(grid.places_mm))
    area = np.array([[_area_mm2(frames[i], masks[i]) for i in members] for members in grid.frames])
    volumes = (area * thickness[:, np.newaxis]).sum(axis=0) / 1000.0
    largest, smallest = int(np.argmax(volumes)), int(np.argmin(volumes))
    why = _why_no_fraction(grid, float(volumes[largest]))
    return VentricleVolumes(tuple(float(each) for each in volumes), grid, largest, smallest, why)


def _area_mm2(frame: Frame, mask: NDArray[np.bool_]) -> float:
    rows, columns = frame.spacing_mm or (0.0, 0.0)
    return int(mask.sum()) * float(rows) * float(columns)


def _why_no_fraction(grid: CineGrid, largest_ml: float) -> str:
    if grid.remark:
        return f"No ejection fraction: {grid.remark[0].lower()}{grid.remark[1:]}"
    if grid.phases < 2:
        return "No ejection fraction: there is one phase of the heart beat only."
    if len(grid.places_mm) < MIN_SLICES:
        return f"No ejection fraction: there are fewer than {MIN_SLICES} slices."
    return "" if largest_ml > 0 else "No ejection fraction: no cavity was outlined."


def conclude(volumes: VentricleVolumes) -> Conclusion | None:
    """Whether the ejection fraction is reduced; None without one."""
    fraction = volumes.ejection_fraction
    if fraction is None:
        return None
    percent = int(fraction + 0.5)
    label, answer = _grade(percent)
    text = f"Left ventricular ejection fraction {percent} %: {label}. {SOURCES} {DERIVED}"
    return Conclusion(label, text, codes.REDUCED_VENTRICLE_FUNCTION, answer)


def _grade(percent: int) -> tuple[str, Code]:
    if percent <= REDUCED_AT_MOST:
        return "reduced", codes.PRESENT
    if percent <= MILDLY_REDUCED_AT_MOST:
        return "mildly reduced", codes.MILD
    return "not reduced", codes.ABSENT


def remarks_on(volumes: VentricleVolumes) -> list[str]:
    """What a reader of the numbers must know."""
    grid = volumes.grid
    gaps = np.diff(grid.places_mm)
    spacing = f"{gaps.min():.1f} mm"
    remarks = []
    if gaps.max() > 1.5 * gaps.min():
        spacing += f" to {gaps.max():.1f} mm"
        remarks.append("The slices are unevenly spaced: one may be missing; each disc reaches half way.")
    phases = f"{grid.phases} phases (by {grid.ordered_by})" if grid.phases > 1 else "one phase"
    remarks.append(
        f"Volume by summation of discs: {len(grid.places_mm)} slices {spacing} apart, {phases}; papillary "
        "muscles count as the model outlines them."
    )
    if volumes.why_no_fraction:
        remarks.append(volumes.why_no_fraction)
    return remarks
