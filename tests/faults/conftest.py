"""Volumes that can lose their power, where the machine allows it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.volume import NoVolume, Volume, new_volume
from tests.faults.zygote import Zygote
from tests.storage.postgresql_server import memory_folder


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The parent of node processes, which has imported all they need; nothing it made outlives a test."""
    with Zygote() as parent:
        yield parent


@pytest.fixture
def volume() -> Iterator[Volume]:
    """A volume, not mounted yet; skips, and fails in CI, where losetup, mount or the cut do not work."""
    folder = Path(tempfile.mkdtemp(prefix="node-volume-", dir=memory_folder()))
    try:
        with new_volume(folder) as made:
            yield made
    except NoVolume as reason:
        pytest.skip(f"no power cut can be made here: {reason}")
    finally:
        shutil.rmtree(folder)
