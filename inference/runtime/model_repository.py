"""Model packages on disk: model.toml, ONNX files, tokenizer; every sha256 is checked before loading."""

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from inference.errors import ModelNotFound, PackageInvalid, PackageTampered

MANIFEST = "model.toml"
MAX_MANIFEST_BYTES = 256 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # a folder of ours, never a path

Triple = tuple[float, float, float]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Section(BaseModel):
    # What a later package adds is ignored; what this version needs must be there and be right.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelSection(_Section):
    """[model]: who this is."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(min_length=1, max_length=64)
    family: str = Field(min_length=1, max_length=64)
    licence: str = Field("", max_length=4096)


class InputSection(_Section):
    """[input]: the square the image is fitted into, and its normalisation (values / 255, RGB)."""

    side: int = Field(ge=16, le=4096)
    mean: Triple
    std: Triple

    @model_validator(mode="after")
    def _check_std(self) -> "InputSection":
        if min(self.std) <= 0:
            raise ValueError("input.std must be positive")
        return self


class RegionSection(_Section):
    """[region]: the similarity grid and how many of its cells make the region; 0 where none is used."""

    grid: int = Field(ge=2, le=256)
    top_k: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_top_k(self) -> "RegionSection":
        if self.top_k > self.grid**2:
            raise ValueError(f"region.top_k is {self.top_k}, but there are only {self.grid**2} cells")
        return self


class TextSection(_Section):
    """[text]: the tokenizer, the language model's layers, the limits of question and answer in tokens."""

    tokenizer: FileName = "tokenizer.json"
    layers: int = Field(0, ge=0, le=1024)  # 0: no language model
    max_query_tokens: int = Field(ge=1, le=4096)
    max_new_tokens: int = Field(ge=1, le=4096)
    answer_cue: str = Field(max_length=256)


class LabelsSection(_Section):
    """[labels]: the closed diagnosis labels; none where the model makes no diagnosis."""

    diagnoses: tuple[str, ...] = Field(max_length=256)


class Manifest(_Section):
    """model.toml, typed and validated."""

    model: ModelSection
    input: InputSection
    region: RegionSection
    text: TextSection
    labels: LabelsSection
    files: dict[FileName, Sha256] = Field(min_length=1, max_length=256)


@dataclass(frozen=True)
class ModelInfo:
    """One line of `dicom-node models`."""

    name: str
    version: str
    family: str
    licence: str
    digest: str
    problem: str | None  # a sentence when the package cannot be used


@dataclass(frozen=True)
class ModelPackage:
    """A package whose files were all verified when it was opened."""

    folder: Path
    manifest: Manifest
    digest: str  # sha256 over "<sha256>  <file name>" lines, sorted by name, model.toml among them

    def read(self, file_name: str) -> bytes:
        """The bytes of one file, verified again as read, so that nothing can be exchanged in between.

        Raises
        ------
        PackageInvalid
            If model.toml lists no such file.
        PackageTampered
            If the file is missing or differs from its sha256.
        """
        expected = self.manifest.files.get(file_name)
        if expected is None:
            raise PackageInvalid(
                f"{self.folder / MANIFEST} lists no sha256 for {file_name}; export the package again."
            )
        try:
            content = (self.folder / file_name).read_bytes()
        except OSError as error:
            raise _missing(self.folder / file_name, error) from error
        _check_digest(self.folder / file_name, expected, hashlib.sha256(content).hexdigest())
        return content


def open_package(repository: Path, name: str) -> ModelPackage:
    """Read `<repository>/<name>/model.toml` and verify the sha256 of every file it lists.

    Raises
    ------
    ModelNotFound, PackageInvalid, PackageTampered
    """
    if not _NAME.fullmatch(name):
        raise ModelNotFound(
            f"{name[:80]!r} is not a model name: lower-case letters, digits, '.', '_' and '-' only."
        )
    folder = repository / name
    if not (folder / MANIFEST).is_file():
        known = ", ".join(package_names(repository)) or "none"
        raise ModelNotFound(f"There is no model {name!r} in {repository}. Models there: {known}.")
    manifest, manifest_digest = _read_manifest(folder)
    if manifest.model.name != name:
        raise PackageInvalid(
            f"{folder / MANIFEST} is the package of {manifest.model.name!r}; rename its folder so."
        )
    for file_name, expected in manifest.files.items():
        _check_digest(folder / file_name, expected, _file_digest(folder / file_name))
    return ModelPackage(folder, manifest, _package_digest(manifest, manifest_digest))


def package_names(repository: Path) -> list[str]:
    """Names of the folders of `repository` that hold a model.toml, sorted."""
    if not repository.is_dir():
        return []
    return sorted(
        path.parent.name for path in repository.glob(f"*/{MANIFEST}") if _NAME.fullmatch(path.parent.name)
    )


def describe_package(repository: Path, name: str) -> ModelInfo:
    """What there is to say about a package; a broken one is described by its problem, not raised."""
    try:
        package = open_package(repository, name)
    except (ModelNotFound, PackageInvalid, PackageTampered) as error:
        return ModelInfo(name, version="", family="", licence="", digest="", problem=str(error))
    model = package.manifest.model
    return ModelInfo(name, model.version, model.family, model.licence, package.digest, problem=None)


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise PackageInvalid(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise PackageInvalid(f"{path} is longer than {MAX_MANIFEST_BYTES} bytes; it is not a model.toml.")
    try:
        manifest = Manifest.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        raise PackageInvalid(
            f"{path} is wrong: {_first_problem(error)}. Export the package again."
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PackageInvalid(
            f"{path} is not TOML ({error}). Restore it from where the package came from."
        ) from error
    return manifest, hashlib.sha256(content).hexdigest()


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the whole'}: {first['msg']}"


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _missing(path, error) from error


def _check_digest(path: Path, expected: str, actual: str) -> None:
    if actual != expected:
        raise PackageTampered(
            f"{path} is not the file this package was made with: sha256 {actual}, expected {expected}. "
            "Do not use it; restore the package from where it came from."
        )


def _missing(path: Path, error: OSError) -> PackageTampered:
    return PackageTampered(
        f"{path} cannot be read ({error.strerror}). Restore the package from where it came from."
    )


def _package_digest(manifest: Manifest, manifest_digest: str) -> str:
    # model.toml counts too: another mean or top_k is another model, and result UIDs derive from this digest.
    digests = {**manifest.files, MANIFEST: manifest_digest}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
