"""7 CHECK, its words: what a rule is, and which classes results are written as."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset

from dicom_node.forms.form import SOP_CLASSES, Form

LABELMAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEG_CLASSES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", LABELMAP})
SR_CLASSES: Final = frozenset({f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34)})
OTHER_FORMS: Final = {  # SOP Class -> kind; such an object is ours to check where we made it
    uid: kind
    for form, kind in ((Form.SC, "SC"), (Form.GSPS, "PR"), (Form.KOS, "KO"), (Form.PDF, "DOC"))
    for uid in SOP_CLASSES[form]
}
MODALITY_OF: Final = {"SEG": "SEG", "SR": "SR", "SC": "OT", "PR": "PR", "KO": "KO", "DOC": "DOC"}  # by kind
EVERY_KIND: Final = frozenset(MODALITY_OF)


@dataclass(frozen=True)
class Rule:
    """What must hold for an object of these kinds; `check` says in words what does not."""

    name: str
    source: str
    kinds: AbstractSet[str]
    check: Callable[[Dataset], Iterable[str]]


def kind_of(dataset: Dataset) -> str | None:
    """What kind of result an object is, by its class; None when results are not written as such."""
    uid = str(dataset.get("SOPClassUID", ""))
    return "SEG" if uid in SEG_CLASSES else "SR" if uid in SR_CLASSES else OTHER_FORMS.get(uid)


def present(dataset: Dataset, *keywords: str) -> Iterator[str]:
    """Name each of the attributes that is missing or empty."""
    for keyword in keywords:
        if dataset.get(keyword) in (None, "", []):
            yield f"{keyword} is missing or empty"
