"""InferenceSettings: model_repository, execution_providers (in order), threads, cache_mb, max_new_tokens."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PACKAGES = Path(__file__).resolve().parent / "packages"


class InferenceSettings(BaseModel):
    """Where the model packages are and how they run; frozen."""

    # `model_repository` is our word; pydantic would otherwise guard its "model_" prefix.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_repository: Path = Field(PACKAGES, description="Folder with one folder per model package.")
    execution_providers: tuple[str, ...] = Field(
        ("CPUExecutionProvider",),
        min_length=1,
        description="ONNX Runtime execution providers, most wanted first.",
    )
    engines: Literal["plain", "prepared"] = Field(
        "plain",
        description="plain: graphs run on the execution providers above; prepared: as `dicom-node prepare` "
        "found best and equal on this machine, and the node is not ready until it has.",
    )
    prepared_root: Path | None = Field(None, description="Folder of the prepared engines.")
    threads: int = Field(
        0, ge=0, le=1024, description="Threads per engine; 0 means every core of this container."
    )
    max_batch: int = Field(
        1,
        ge=1,
        le=16,
        description="Images that an engine runs together, where graph and jobs.at_once allow it.",
    )
    max_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="Longest wait of an image for company, in milliseconds."
    )
    max_answers: int = Field(
        1,
        ge=1,
        le=64,
        description="Answers that take their language steps together, where jobs.at_once allows it; each may "
        "begin and end at any step of the others. For large models on a device: on two cores the small ones "
        "are slower together.",
    )
    cache_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="What each model remembers of images, in MiB, about 6 an image: the next question about "
        "them costs no image encoder; 0 means nothing.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Longest answer in tokens; empty means the model package's own limit.",
    )
    reasoning_paths: int = Field(
        1,
        ge=1,
        le=16,
        description="Answers that Sim4Seg chooses one of (test-time scaling); 4 cost twice one.",
    )
    regions_per_path: int = Field(
        2, ge=1, le=8, description="Region prompts tried for each answer, where there are several answers."
    )
    test_mode: bool = Field(
        default=False,
        description="Let packages of the family `stub` run, whose results mean nothing: for tests of a node.",
    )
