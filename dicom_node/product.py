"""What this program calls itself in the objects that it makes; how it knows them again."""

from typing import Final

MANUFACTURER: Final = "sim4seg-node"
RESULT_MODALITIES: Final = frozenset({"SEG", "SR", "OT", "PR", "KO", "DOC"})  # of the forms of a result


def is_own_result(modality: str, manufacturer: str) -> bool:
    """Say whether an object with these attributes is a result of this program."""
    return modality in RESULT_MODALITIES and manufacturer == MANUFACTURER
