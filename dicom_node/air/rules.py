"""7 CHECK, its words: what a rule is, and which classes results are written as."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset

LABELMAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEG_CLASSES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", LABELMAP})
SR_CLASSES: Final = frozenset({f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34)})


@dataclass(frozen=True)
class Rule:
    """What must hold for an object of these kinds; `check` says in words what does not."""

    name: str
    source: str
    kinds: AbstractSet[str]
    check: Callable[[Dataset], Iterable[str]]


def present(dataset: Dataset, *keywords: str) -> Iterator[str]:
    """Name each of the attributes that is missing or empty."""
    for keyword in keywords:
        if dataset.get(keyword) in (None, "", []):
            yield f"{keyword} is missing or empty"
