"""Derived objects: which they are, and which other instances they name; a rejection note hides what it names.

Source: PS3.3 A.35.4 (Key Object Selection), PS3.16 CID 7011 (rejection codes), IHE RAD TF-2 4.66 (IOCM).
"""

from dataclasses import dataclass
from typing import Final

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"
REJECTION_CODES: Final = frozenset(
    {
        "113001",  # rejected for quality reasons
        "113037",  # rejected for patient safety reasons
        "113038",  # incorrect modality worklist entry
        "113039",  # data retention policy expired
    }
)
DERIVED_MODALITIES: Final = frozenset(
    {"SEG", "SR", "PR", "KO", "DOC", "REG", "FID", "RWV", "PLAN", "RTSTRUCT", "RTPLAN"}
)
_DERIVED_FAMILIES: Final = (
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports, key objects
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.66.4.",  # segmentation
    "1.2.840.10008.5.1.4.1.1.66.7.",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.66.1.",  # spatial registration
    "1.2.840.10008.5.1.4.1.1.66.2.",  # fiducials
    "1.2.840.10008.5.1.4.1.1.66.3.",  # deformable spatial registration
    "1.2.840.10008.5.1.4.1.1.67.",  # real world value mapping
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481.3.",  # radiotherapy structures
    "1.2.840.10008.5.1.4.1.1.481.5.",  # radiotherapy plan
)


@dataclass(frozen=True)
class Named:
    """An instance that a derived object names."""

    study_instance_uid: str  # "" where the object does not say it
    sop_instance_uid: str


@dataclass(frozen=True)
class DerivedNote:
    """What a derived object says of others; with a code, it rejects them."""

    names: tuple[Named, ...]
    rejection_code: str | None = None


def is_derived(sop_class_uid: str, modality: str) -> bool:
    """Whether the object was made from images rather than being one: it never asks for an analysis."""
    return f"{sop_class_uid}.".startswith(_DERIVED_FAMILIES) or modality.strip().upper() in DERIVED_MODALITIES
