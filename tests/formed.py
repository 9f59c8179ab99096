"""Results in every form, for the tests of the forms: kinds of sources, profiles, and what dciodvfy lacks."""

from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.analysis import Result, analyse
from dicom_node.forms.form import Form, Made, Profile
from dicom_node.frames import SourceSeries
from dicom_node.reading import AnalysisRequest
from inference.contract import Image, Prediction, Prompt
from tests import builders

SIZE = (60, 81)
QUERY = "Please segment the breast lesion and tell me whether it is benign or malignant."
EVERYTHING: Profile = frozenset(Form) - {Form.SEG_LABELMAP, Form.SEG_FRACTIONAL}
PROFILES: tuple[Profile, ...] = (
    EVERYTHING,
    frozenset({Form.SEG_LABELMAP, Form.SR}),
    frozenset({Form.SEG_FRACTIONAL, Form.SR}),
    frozenset({Form.SR, Form.PDF}),
)
# dciodvfy of 2022 does not know the Label Map Segmentation (PS3.3 A.51, 2024d). It is checked as an older
# Segmentation, and this is what differs: type, background, and no segment of each frame's own.
WAIVED = (
    "Unrecognized enumerated value = <LABELMAP>",
    "SegmentNumber not monotonically increasing",
    "SegmentNumber(0062,0004)[1]> - Value is zero",
    "SegmentIdentificationSequence(0062,000a)> - Missing attribute",
)
# In a report it takes the unknown class for one without frames.
WAIVED_IN_REPORT = "Shall not be present for Referenced SOP Class that is not multi-frame"
OLDER_CLASS = UID("1.2.840.10008.5.1.4.1.1.66.4")


def ellipse(radius: int = 9) -> NDArray[np.bool_]:
    return builders.make_ellipse(SIZE, (30, 40), (radius, radius + 6))


class Central(builders.MaskPredictor):
    """Outlines the same ellipse in everything."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        return replace(super().predict(image, prompt), mask=ellipse(), has_region=True)


def colour() -> list[Dataset]:
    details = builders.SeriesDetails(modality="ES", body_part="COLON", patient=builders.PATIENT)
    return builders.build_series([builders.make_colour_image(ellipse())], details)


def radiograph() -> list[Dataset]:
    details = builders.SeriesDetails("DX", body_part="HAND", patient=builders.PATIENT, spacing_mm=(0.1, 0.1))
    return builders.build_series([builders.make_grey_image(ellipse())], details)


SOURCES: dict[str, Callable[[], list[Dataset]]] = {
    "ultrasound": lambda: [builders.make_ultrasound(ellipse())],
    "uncalibrated": lambda: [builders.make_ultrasound(ellipse(), None)],
    "stack": lambda: builders.make_stack([ellipse(4 + number) for number in range(12)]),
    "clip": lambda: [builders.make_multiframe([ellipse(5), ellipse(9), ellipse(7)])],
    "enhanced": lambda: [builders.make_enhanced(builders.make_stack([ellipse(5), ellipse(9)]))],
    "colour": colour,
    "radiograph": radiograph,
    "nothing found": lambda: [builders.make_ultrasound(np.zeros(SIZE, bool))],
}


def result_on(series: SourceSeries, profiles: Collection[Profile] = PROFILES) -> Result:
    """A result in every form that `profiles` ask for."""
    is_grey = series.frames[0].display.ndim == 2
    predictor = builders.MaskPredictor() if is_grey else Central()
    return analyse(series, predictor, AnalysisRequest(QUERY), profiles=profiles)


def formed(folder: Path, sources: list[Dataset], profiles: Collection[Profile] = PROFILES) -> Result:
    """As `result_on`, from data sets."""
    return result_on(builders.as_loaded(folder, sources), profiles)


def one(result: Result, form: Form) -> Dataset:
    """The one object of this form."""
    (found,) = [made.dataset for made in result.objects if made.form is form]
    return found


def errors_of(folder: Path, made: Made) -> list[str]:
    """What dciodvfy calls an error, but for what it cannot know of a label map."""
    if made.form is Form.SEG_LABELMAP:
        older = deepcopy(made.dataset)
        older.SOPClassUID = older.file_meta.MediaStorageSOPClassUID = OLDER_CLASS
        return without(WAIVED, builders.standard_errors(folder, older))
    errors = builders.standard_errors(folder, made.dataset)
    return without((WAIVED_IN_REPORT,), errors) if made.beside == {Form.SEG_LABELMAP} else errors


def without(waived: Collection[str], errors: list[str]) -> list[str]:
    return [error for error in errors if not any(words in error for words in waived)]
