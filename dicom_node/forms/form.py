"""The forms of a result, and who gets which object."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydicom.dataset import Dataset


class Form(StrEnum):
    """A form of a result that a destination may ask for."""

    SEG = "SEG"  # Segmentation, BINARY
    SEG_LABELMAP = "SEG_LABELMAP"  # Label Map Segmentation
    SEG_FRACTIONAL = "SEG_FRACTIONAL"  # Segmentation, FRACTIONAL
    SR = "SR"  # Comprehensive 3D SR
    SC = "SC"  # Secondary Capture of the key images
    GSPS = "GSPS"  # Softcopy Presentation State with the contours on the key images
    KOS = "KOS"  # Key Object Selection that names the key images
    PDF = "PDF"  # Encapsulated PDF of one page


SOP_CLASSES: Final[dict[Form, tuple[str, ...]]] = {  # in which each form is written
    Form.SEG: ("1.2.840.10008.5.1.4.1.1.66.4",),
    Form.SEG_LABELMAP: ("1.2.840.10008.5.1.4.1.1.66.7",),
    Form.SEG_FRACTIONAL: ("1.2.840.10008.5.1.4.1.1.66.4",),
    Form.SR: ("1.2.840.10008.5.1.4.1.1.88.34",),
    Form.SC: ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.4"),  # one frame, several
    Form.GSPS: ("1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.11.2"),  # grey, colour
    Form.KOS: ("1.2.840.10008.5.1.4.1.1.88.59",),
    Form.PDF: ("1.2.840.10008.5.1.4.1.1.104.1",),
}
Profile = frozenset[Form]  # what one destination gets

SEG_FORMS: Final = (Form.SEG, Form.SEG_LABELMAP, Form.SEG_FRACTIONAL)
DEFAULT_FORMS: Final = (Form.SEG, Form.SR)
EVERYBODY: Final = frozenset({None, *SEG_FORMS})


def segmentation_of(profile: Profile) -> Form | None:
    """The form of SEG in `profile`; None where it holds none."""
    return next((form for form in SEG_FORMS if form in profile), None)


def contradiction(forms: Iterable[Form]) -> str | None:
    """Why these cannot be the forms of one destination, in words; None when they can."""
    named = list(forms)
    twice = next((form for form in named if named.count(form) > 1), None)
    if twice is not None:
        return f"the form {twice} stands there twice"
    if sum(form in SEG_FORMS for form in named) > 1:
        return f"name one of {', '.join(SEG_FORMS)}; a destination gets the mask in one form"
    return None


@dataclass(frozen=True)
class Recipient:
    """A destination by its name, and what it gets."""

    name: str
    forms: Profile = frozenset(DEFAULT_FORMS)
    hears_of_unmatched: bool = False  # whether it is told of studies that no rule matches


@dataclass(frozen=True, eq=False)
class Made:
    """One object of a result, and for whom it is."""

    form: Form
    dataset: Dataset
    beside: frozenset[Form | None] = EVERYBODY  # for those who get this SEG form (None: no SEG at all)

    def is_for(self, profile: Profile) -> bool:
        """Whether a destination with this profile gets it."""
        return self.form in profile and segmentation_of(profile) in self.beside
