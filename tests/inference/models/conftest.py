"""The original libraries, without the parts of them that are not installed here."""

from collections.abc import Iterator
from typing import Any

import pytest

from inference.export.originals import segment_anything


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """`segment_anything.modeling`, which imports torchvision for four names that it does not use here."""
    with segment_anything() as modeling:
        yield modeling
