"""What the flow tests share: a model repository that worker processes can open, and a receiving PACS."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node.demo_pacs import DemoPacs, open_pacs
from tests.flow.nodes import REPOSITORY
from tests.inference.runtime.tiny_package import train_tokenizer, write_package

TRAINED = REPOSITORY / "inference" / "packages"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with a package of a few kilobytes under the name that the rules ask for."""
    repository = tmp_path_factory.mktemp("models")
    write_package(repository / "sim4seg-s", train_tokenizer())
    return repository


@pytest.fixture(scope="session")
def trained_models() -> Path:
    """The model repository of this repository."""
    assert (TRAINED / "sim4seg-s" / "model.toml").is_file(), "the trained model package is not here"
    return TRAINED


@pytest.fixture
def pacs_port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def pacs(tmp_path: Path, pacs_port: int) -> Iterator[DemoPacs]:
    """A PACS that takes everything."""
    with open_pacs(tmp_path / "pacs", pacs_port) as opened:
        yield opened
