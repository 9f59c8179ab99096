"""A tiny model package, made once, and settings that point at it."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from inference.runtime import open_predictor
from inference.runtime.predictors import Sim4SegPredictor
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny_package.train_tokenizer()


@pytest.fixture(scope="session")
def pristine_repository(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model repository with the package `tiny`; not to be changed."""
    repository = tmp_path_factory.mktemp("repository")
    tiny_package.write_package(repository / "tiny", tokenizer)
    return repository


@pytest.fixture
def repository(pristine_repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(pristine_repository, tmp_path / "repository"))


@pytest.fixture
def settings(repository: Path) -> InferenceSettings:
    return InferenceSettings(model_repository=repository, threads=1)


@pytest.fixture(scope="session")
def predictor(pristine_repository: Path) -> Sim4SegPredictor:
    opened = open_predictor("tiny", InferenceSettings(model_repository=pristine_repository, threads=1))
    assert isinstance(opened, Sim4SegPredictor)
    return opened
