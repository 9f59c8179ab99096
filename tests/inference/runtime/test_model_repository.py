"""A model package is read only when every byte of it is the one it was made with."""

import re
import shutil
from pathlib import Path

import pytest

from inference.errors import InferenceError, ModelNotFound, PackageInvalid, PackageTampered
from inference.runtime import list_models, open_predictor
from inference.runtime.model_repository import MAX_MANIFEST_BYTES, open_package
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package

FILES = [
    "image_encoder.onnx",
    "language_prefill.onnx",
    "language_step.onnx",
    "mask_decoder.onnx",
    "tokenizer.json",
]


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(repository: Path, old: str, new: str) -> None:
    path = repository / "tiny" / "model.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_package_tells_who_it_is(repository: Path) -> None:
    package = open_package(repository, "tiny")
    assert (package.manifest.model.name, package.manifest.model.version) == ("tiny", "0.0.1")
    assert package.manifest.input.std == (0.229, 0.224, 0.225)
    assert set(package.manifest.files) == set(FILES)
    assert re.fullmatch("[0-9a-f]{64}", package.digest)


def test_the_same_package_elsewhere_has_the_same_digest(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "tiny", tmp_path / "other" / "tiny")
    assert open_package(repository, "tiny").digest == open_package(tmp_path / "other", "tiny").digest


def test_another_manifest_is_another_digest(repository: Path) -> None:
    before = open_package(repository, "tiny").digest
    edit_manifest(repository, "top_k = 36", "top_k = 35")
    assert open_package(repository, "tiny").digest != before


@pytest.mark.parametrize("file_name", FILES)
def test_one_flipped_bit_is_refused_and_the_file_named(settings: InferenceSettings, file_name: str) -> None:
    flip_one_bit(settings.model_repository / "tiny" / file_name)
    with pytest.raises(PackageTampered, match=re.escape(file_name)) as refusal:
        open_predictor("tiny", settings)
    assert "restore the package" in str(refusal.value)


@pytest.mark.parametrize("file_name", FILES)
def test_a_missing_file_is_refused_and_named(settings: InferenceSettings, file_name: str) -> None:
    (settings.model_repository / "tiny" / file_name).unlink()
    with pytest.raises(PackageTampered, match=re.escape(file_name)):
        open_predictor("tiny", settings)


def test_a_file_exchanged_after_the_check_is_refused_when_read(repository: Path) -> None:
    package = open_package(repository, "tiny")
    flip_one_bit(repository / "tiny" / "mask_decoder.onnx")
    with pytest.raises(PackageTampered, match=r"mask_decoder\.onnx"):
        package.read("mask_decoder.onnx")


def test_a_file_without_a_digest_is_never_read(repository: Path) -> None:
    (repository / "tiny" / "extra.onnx").write_bytes(b"unchecked")
    with pytest.raises(PackageInvalid, match=r"no sha256 for extra\.onnx"):
        open_package(repository, "tiny").read("extra.onnx")


@pytest.mark.parametrize("name", ["nowhere", "../repository/tiny", "/etc", "", "Tiny", "tiny/", "a" * 500])
def test_a_name_that_is_no_model_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(ModelNotFound):
        open_package(repository, name)


def test_not_found_says_what_is_there(repository: Path) -> None:
    with pytest.raises(ModelNotFound, match="Models there: tiny"):
        open_package(repository, "sim4seg-xxl")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("side = 256", "side = 'wide'", "input.side"),
        ("side = 256", "", "input.side"),
        ("top_k = 36", "top_k = 257", "only 256 cells"),
        ("std = [0.229", "std = [0.0", "must be positive"),
        ("mean = [0.485", "mean = [nan", "input.mean"),
        ("max_new_tokens = 200", "max_new_tokens = 1000000", "text.max_new_tokens"),
        ('"mask_decoder.onnx" = "', '"../mask_decoder.onnx" = "', "files"),
        ('"mask_decoder.onnx" = "', '"mask_decoder.onnx" = "x', "files"),
        ('name = "tiny"', 'name = "huge"', "rename its folder"),
        ("[model]", "[model", "not TOML"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(repository: Path, old: str, new: str, complaint: str) -> None:
    edit_manifest(repository, old, new)
    with pytest.raises(PackageInvalid, match=re.escape(complaint)):
        open_package(repository, "tiny")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"#" * (MAX_MANIFEST_BYTES + 1)])
def test_a_file_that_is_no_manifest_is_refused(repository: Path, content: bytes) -> None:
    (repository / "tiny" / "model.toml").write_bytes(content)
    with pytest.raises(PackageInvalid, match=r"model\.toml"):
        open_package(repository, "tiny")


def test_an_unknown_family_says_which_are_known(settings: InferenceSettings) -> None:
    edit_manifest(settings.model_repository, 'family = "sim4seg"', 'family = "sim5seg"')
    with pytest.raises(PackageInvalid, match="this version runs sim4seg"):
        open_predictor("tiny", settings)


def test_a_graph_without_a_digest_is_named(settings: InferenceSettings) -> None:
    folder = settings.model_repository / "tiny"
    (folder / "mask_decoder.onnx").unlink()
    tiny_package.write_manifest(folder)
    with pytest.raises(PackageInvalid, match=r"no sha256 for mask_decoder\.onnx"):
        open_predictor("tiny", settings)


def test_models_are_listed_with_their_problem(settings: InferenceSettings) -> None:
    broken = settings.model_repository / "broken"
    shutil.copytree(settings.model_repository / "tiny", broken)
    (broken / "tokenizer.json").write_text("{}")
    (settings.model_repository / "empty").mkdir()
    bad, good = list_models(settings)
    assert (good.name, good.version, good.family, good.problem) == ("tiny", "0.0.1", "sim4seg", None)
    assert bad.name == "broken"
    assert bad.problem is not None
    assert "rename its folder" in bad.problem


def test_a_repository_that_is_not_there_has_no_models(tmp_path: Path) -> None:
    settings = InferenceSettings(model_repository=tmp_path / "nowhere")
    assert list_models(settings) == []
    with pytest.raises(InferenceError, match="Models there: none"):
        open_predictor("tiny", settings)
