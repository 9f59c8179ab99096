"""Settings of the work side: completion, sweep, broker, jobs, deliveries, limits, viewer and logs."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dicom_node.settings_network import AeTitle, Section


class CompletionSettings(Section):
    """When a study counts as complete."""

    quiet_period_s: float = Field(
        default=10.0,
        ge=0.1,
        le=86400,
        description="No new instance for so long, by the database clock, in seconds.",
    )
    hold_incomplete: bool = Field(
        default=False,
        description="Wait for the rest of a study whose sender announced more; otherwise the result says so.",
    )


class IdentitySettings(Section):
    """Whose images these are, and which of them count."""

    follow_rejection_notes: bool = Field(
        default=True,
        description="Hide what an IHE rejection note (IOCM) names, and make or withdraw results anew.",
    )
    corrections_from: tuple[AeTitle, ...] = Field(
        default=(),
        description="AE titles that may send known images again with another patient: the newest counts, "
        "results are made anew. From anybody else such images are set aside and refused.",
    )


class RetentionSettings(Section):
    """How long studies are kept; none goes before its results are delivered, and confirmed if asked for."""

    days: float = Field(
        default=0.0, ge=0, description="A study nothing arrived for is removed after so many days; 0 = never."
    )
    purge_when_full: bool = Field(
        default=False,
        description="Remove the oldest studies that may go while less than limits.low_free_mb is free.",
    )
    look_every_s: float = Field(
        default=60.0, ge=0.1, le=86400, description="Pause between two looks for such studies, in seconds."
    )


class SweepSettings(Section):
    """The loop that completes studies and wakes what is due."""

    interval_s: float = Field(
        default=0.5, ge=0.05, le=60, description="Pause between two passes, in seconds."
    )
    reissue_s: float = Field(
        default=10.0,
        ge=0.1,
        le=3600,
        description="A wake-up nobody answered is sent again after so many seconds.",
    )
    orphans_every_s: float = Field(
        default=21600.0,
        ge=1,
        le=86400,
        description="Pause between two looks for files without a row, in seconds; the first is at the start.",
    )
    stale_incoming_s: float = Field(
        default=86400.0, ge=60, description="Unfinished incoming files are removed after so many seconds."
    )


class ServeSettings(Section):
    """How `dicom-node serve` tends its processes."""

    longest_restart_s: float = Field(
        default=30.0,
        ge=0.2,
        le=3600,
        description="Longest pause before a process that keeps ending starts again, in seconds.",
    )


class BrokerSettings(Section):
    """Celery's broker; it carries wake-ups only, so losing a message loses no work."""

    url: str = Field(
        default="filesystem://",
        min_length=1,
        repr=False,
        description="filesystem:// (a folder of the home, no server), redis://... or amqp://...",
    )
    polling_interval_s: float = Field(
        default=0.05,
        ge=0.01,
        le=5,
        description="Pause between two looks into the folder (filesystem://), in seconds.",
    )


class JobSettings(Section):
    """How jobs are run."""

    lease_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="A job whose worker is silent for so long is taken over, in seconds.",
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="Attempts before a job is cancelled as FAILED."
    )
    time_limit_s: float = Field(
        default=600.0,
        ge=0.5,
        le=86400,
        description="The process of a model that takes longer over one job is ended, in seconds.",
    )
    model_memory_mb: int = Field(
        default=8192,
        ge=64,
        description="The process of a model that holds more memory is ended, in MiB.",
    )
    all_models_memory_mb: int = Field(
        default=0,
        ge=0,
        description="Memory that all models of one worker may hold, in MiB, as measured when one is opened: "
        "those used longest ago are closed until they are needed. 0 = no bound.",
    )
    at_once: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Jobs that one worker runs side by side, on the same models; alone, one has all cores.",
    )
    aging_s: float = Field(
        default=60.0,
        ge=1,
        description="Waiting for so long counts as one step of priority, in seconds: nothing waits for ever.",
    )
    stop_grace_s: float = Field(
        default=15.0,
        ge=0,
        le=3600,
        description="A job under way when the node is told to end may take so long, in seconds; "
        "otherwise it is handed back, which costs it no attempt.",
    )
    first_retry_s: float = Field(
        default=5.0, ge=0.05, le=3600, description="Pause after the first failure, in seconds."
    )
    max_retry_s: float = Field(
        default=300.0, ge=0.05, le=86400, description="Longest pause between attempts, in seconds."
    )


class QuestionSettings(Section):
    """What a person may ask."""

    models: tuple[str, ...] = Field(
        default=("prs-med-s",),
        description="Models that can be asked by name, beside those of the rules; for questions only.",
    )


class DeliverySettings(Section):
    """How results are sent to destinations."""

    lease_s: float = Field(
        default=120.0, ge=1, le=3600, description="Longest silence of a sending worker, in seconds."
    )
    first_retry_s: float = Field(
        default=30.0, ge=0.05, le=3600, description="Pause after the first failure, in seconds."
    )
    max_retry_s: float = Field(
        default=600.0, ge=0.05, le=86400, description="Longest pause between attempts, in seconds."
    )
    slow_retry_s: float = Field(
        default=3600.0,
        ge=0.05,
        le=86400,
        description="Pause after an answer that stays the same until somebody acts, in seconds.",
    )
    response_timeout_s: float = Field(
        default=60.0, gt=0, le=60, description="Longest wait for the answer to one C-STORE, in seconds."
    )
    batch: int = Field(default=16, ge=1, le=1000, description="Instances sent on one association.")
    commitment_again_s: float = Field(
        default=21600.0,
        ge=0.05,
        le=604800,
        description="Storage Commitment that is not answered for so long is asked for again, in seconds.",
    )
    max_age_s: float = Field(
        default=604800.0,
        ge=1,
        description="A result that cannot be sent for so long is given up, in seconds.",
    )


class LimitSettings(Section):
    """What the node takes in."""

    max_instance_mb: int = Field(
        default=2048, ge=1, le=65536, description="Largest instance received, in MiB."
    )
    min_free_mb: int = Field(
        default=512, ge=0, description="Free space on the disk below which nothing is received, in MiB."
    )
    low_free_mb: int = Field(
        default=1024,
        ge=0,
        description="Free space on the disk below which no new association or upload is taken, in MiB; "
        "what is under way goes on.",
    )
    max_frames: int = Field(
        default=2000, ge=1, le=100000, description="Frames of a series that a job runs on."
    )
    max_frame_megapixels: float = Field(
        default=50.0, gt=0, le=1000, description="Largest frame that a job decodes, in million pixels."
    )
    max_series_megapixels: float = Field(
        default=600.0, gt=0, le=100000, description="All frames of a series together, in million samples."
    )
    decode_memory_mb: int = Field(
        default=1024,
        ge=64,
        le=65536,
        description="Memory that a process which decodes pixels may take, in MiB.",
    )
    decode_cpu_s: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Processor time that decoding one object may take, in seconds.",
    )
    decode_wall_s: float = Field(
        default=60.0, ge=1, le=3600, description="Longest wait for the next decoded frame, in seconds."
    )
    decode_children: int = Field(
        default=2, ge=1, le=64, description="Processes that decode pixels, for each process that serves them."
    )


class ViewerSettings(Section):
    """OHIF at the web root."""

    ohif_root: Path | None = Field(
        default=None, description="Folder of OHIF's static site; empty = no viewer."
    )


class LogSettings(Section):
    """JSON logs under HOME/logs; ids and UIDs, never a patient attribute."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least level written."
    )
