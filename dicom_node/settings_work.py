"""Settings of the work side: completion, sweep, broker, jobs, deliveries, limits, viewer and logs."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dicom_node.settings_network import Section


class CompletionSettings(Section):
    """When a study counts as complete."""

    quiet_period_s: float = Field(
        default=10.0,
        ge=0.1,
        le=86400,
        description="No new instance for so long, by the database clock, in seconds.",
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
    stale_incoming_s: float = Field(
        default=86400.0, ge=60, description="Unfinished incoming files are removed after so many seconds."
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
        ge=1,
        le=86400,
        description="A worker that takes longer over one job ends itself, in seconds.",
    )
    first_retry_s: float = Field(
        default=5.0, ge=0.05, le=3600, description="Pause after the first failure, in seconds."
    )
    max_retry_s: float = Field(
        default=300.0, ge=0.05, le=86400, description="Longest pause between attempts, in seconds."
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
    max_frames: int = Field(
        default=2000, ge=1, le=100000, description="Frames of a series that a job runs on."
    )
    max_frame_megapixels: float = Field(
        default=50.0, gt=0, le=1000, description="Largest frame that a job decodes, in million pixels."
    )
    max_series_megapixels: float = Field(
        default=600.0, gt=0, le=100000, description="All frames of a series together, in million samples."
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
