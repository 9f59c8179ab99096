"""The original libraries, without the parts of them that are not installed here."""

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """`segment_anything.modeling`, which imports torchvision for four names that it does not use here."""
    names = {
        "torchvision": {},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": None, "to_pil_image": None},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": None, "box_area": None},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, members in names.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        from segment_anything import modeling

        yield modeling
    for name in [name for name in sys.modules if name.startswith("segment_anything")]:
        del sys.modules[name]
