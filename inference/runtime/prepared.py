"""Engines that `dicom-node prepare` has chosen for this machine: where they lie, and with what evidence."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, ValidationError

from inference.errors import EngineRejected
from inference.runtime.engine_plan import EnginePlan
from inference.runtime.gate_report import GateReport
from inference.runtime.machine import Device, accelerator, processor
from inference.runtime.model_repository import ModelPackage
from inference.runtime.onnx_engine import available_cores
from inference.settings import InferenceSettings

EVIDENCE = "evidence.json"
GRAPHS, BUILT = "graphs", "built"  # optimised graphs; what an execution provider keeps for itself


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Profile(_Record):
    """What engines are made for: another profile is another engine."""

    side: int
    threads: int
    max_new_tokens: int


class Identity(_Record):
    """All that an engine depends on; its sha256 is the key of the folder."""

    digest: str  # of the model package
    onnxruntime: str
    device: str
    driver: str
    processor: str
    cores: int
    profile: Profile

    @property
    def key(self) -> str:
        """32 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class Trial(_Record):
    """One plan that was tried, beside the plain engine in the same minutes."""

    plan: EnginePlan
    open_s: float | None = None
    median_s: float | None = None  # of one image, all of the model
    plain_median_s: float | None = None
    gate: GateReport | None = None
    refused: str | None = None  # why it must not serve; None where it may


class Evidence(_Record):
    """Why this machine runs this plan."""

    model: str
    version: str
    identity: Identity
    made_at: str  # UTC
    rounds: int
    trials: tuple[Trial, ...]
    winner: EnginePlan
    files: dict[str, str]  # optimised graphs -> sha256


@dataclass(frozen=True)
class Prepared:
    """What was chosen for this machine, and where it lies."""

    folder: Path
    evidence: Evidence

    @property
    def built(self) -> Path:
        """Where TensorRT finds the engines of the winner."""
        return self.folder / BUILT / self.evidence.winner.slug

    def graph(self, name: str) -> bytes:
        """The optimised graph `name`, as it was saved.

        Raises
        ------
        EngineRejected
            If it is missing or was changed.
        """
        try:
            content = (self.folder / GRAPHS / name).read_bytes()
        except OSError as error:
            raise _unprepared(self.evidence.model, f"{name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != self.evidence.files.get(name):
            raise _unprepared(self.evidence.model, f"{name} is not the file that was prepared")
        return content


def identity_of(package: ModelPackage, settings: InferenceSettings) -> Identity:
    """What engines of `package` depend on, here and now."""
    manifest, device = package.manifest, _device()
    return Identity(
        digest=package.digest,
        onnxruntime=ort.__version__,
        device=device.name,
        driver=device.driver,
        processor=processor().name,
        cores=available_cores(),
        profile=Profile(
            side=manifest.input.side,
            threads=settings.threads,
            max_new_tokens=settings.max_new_tokens or manifest.text.max_new_tokens,
        ),
    )


def find_prepared(package: ModelPackage, settings: InferenceSettings) -> Prepared:
    """What was prepared for `package` on this machine.

    Raises
    ------
    EngineRejected
        If nothing was, or it is for another machine, model, driver, version or profile.
    """
    name, identity = package.manifest.model.name, identity_of(package, settings)
    folder = folder_of(name, identity, settings)
    try:
        evidence = Evidence.model_validate_json((folder / EVIDENCE).read_bytes())
    except OSError as error:
        raise _unprepared(name, f"{folder} holds no evidence") from error
    except ValidationError as error:
        raise _unprepared(name, f"{folder / EVIDENCE} cannot be understood") from error
    if evidence.identity != identity:
        raise _unprepared(name, f"{folder / EVIDENCE} speaks of something else")
    return Prepared(folder, evidence)


def folder_of(name: str, identity: Identity, settings: InferenceSettings) -> Path:
    """Where engines of this identity lie.

    Raises
    ------
    EngineRejected
        If no folder is configured.
    """
    if settings.prepared_root is None:
        raise _unprepared(name, "inference.prepared_root is not set")
    return settings.prepared_root / name / identity.key


def write_evidence(folder: Path, evidence: Evidence) -> None:
    """Write `evidence` for people and machines."""
    text = json.dumps(evidence.model_dump(mode="json"), indent=1)
    (folder / EVIDENCE).write_text(text, encoding="utf-8")


def _device() -> Device:
    """The accelerator where this ONNX Runtime can use one that is there, else the processor."""
    found = accelerator()
    can_use = any(each.startswith(("CUDA", "Tensorrt")) for each in ort.get_available_providers())
    return found if found is not None and can_use else processor()


def _unprepared(name: str, why: str) -> EngineRejected:
    return EngineRejected(
        f"{name}: no engine is prepared for this machine, model, driver and version: {why}. Run `dicom-node "
        'prepare`, or set inference.engines = "plain".'
    )
