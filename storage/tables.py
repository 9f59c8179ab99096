"""SQLAlchemy tables: Study, Series, Instance, Conflict, Job, Delivery, their attempts, Correction and more.

Times are UTC epoch seconds of the database clock (`storage.database.database_now`), in columns `*_at`.
Text attributes hold "" when the data set has none, as DICOM makes no difference between empty and absent.
"""

from typing import Annotated, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

Uid = Annotated[str, mapped_column(String(64))]
Code = Annotated[str, mapped_column(String(16))]
ShortText = Annotated[str, mapped_column(String(64))]
LongText = Annotated[str, mapped_column(String(256))]
Sentence = Annotated[str, mapped_column(String(1000))]
Json = Annotated[str, mapped_column(Text)]
Sha256 = Annotated[str, mapped_column(String(64))]
FilePath = Annotated[str, mapped_column(String(128))]
WorkId = Annotated[str, mapped_column(String(32))]


class Table(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map: ClassVar[dict[type, TypeEngine[float]]] = {float: Double()}


class Study(Table):
    """A study and how far it has come: received, complete, routed."""

    __tablename__ = "study"
    # The order of every search; read from its end, it gives a page of the newest without sorting.
    __table_args__ = (
        Index("ix_study_newest", "study_date", "study_time", "created_at", "study_instance_uid"),
    )

    study_instance_uid: Mapped[Uid] = mapped_column(primary_key=True)
    patient_id: Mapped[ShortText] = mapped_column(index=True)
    patient_name: Mapped[LongText]
    patient_name_folded: Mapped[LongText] = mapped_column(index=True)
    patient_birth_date: Mapped[Code]
    patient_sex: Mapped[Code]
    study_date: Mapped[Code]
    study_time: Mapped[Code]
    accession_number: Mapped[ShortText] = mapped_column(index=True)
    study_description: Mapped[LongText]
    study_id: Mapped[ShortText]
    referring_physician_name: Mapped[LongText]
    referring_physician_name_folded: Mapped[LongText]
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float]
    last_received_at: Mapped[float]
    complete_requested_by: Mapped[LongText | None]
    completed_at: Mapped[float | None] = mapped_column(index=True)
    evidence: Mapped[Json | None]
    outcome: Mapped[Sentence | None]
    expected_instances: Mapped[int | None]  # how many its sender says there are; None = nobody said
    identity_note: Mapped[Sentence | None]  # what an operator should know about whose study this is


class Series(Table):
    """A series of a study; `is_own_result` marks what this node made."""

    __tablename__ = "series"

    series_instance_uid: Mapped[Uid] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[Uid] = mapped_column(ForeignKey("study.study_instance_uid"), index=True)
    modality: Mapped[Code]
    series_number: Mapped[int | None]
    series_description: Mapped[LongText]
    body_part_examined: Mapped[ShortText]
    series_date: Mapped[Code]
    series_time: Mapped[Code]
    laterality: Mapped[Code]
    is_own_result: Mapped[bool]


class Instance(Table):
    """An instance, where its Part 10 file is, and how it reached us."""

    __tablename__ = "instance"

    sop_instance_uid: Mapped[Uid] = mapped_column(primary_key=True)
    series_instance_uid: Mapped[Uid] = mapped_column(ForeignKey("series.series_instance_uid"), index=True)
    study_instance_uid: Mapped[Uid] = mapped_column(ForeignKey("study.study_instance_uid"), index=True)
    sop_class_uid: Mapped[Uid]
    transfer_syntax_uid: Mapped[Uid]
    instance_number: Mapped[int | None]
    rows: Mapped[int | None]
    columns: Mapped[int | None]
    number_of_frames: Mapped[int | None]
    sha256: Mapped[Sha256] = mapped_column(index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[FilePath]
    origin_kind: Mapped[Code]
    origin_detail: Mapped[LongText]
    received_at: Mapped[float]
    patient_id: Mapped[ShortText | None]  # as this instance says; a correction may have reached only some
    retired_as: Mapped[Code | None]  # REJECTED, WITHDRAWN (both hidden) or SUPERSEDED; None = current
    retired_at: Mapped[float | None]
    retired_by: Mapped[Uid | None]  # SOP Instance UID of the rejection note, or id of the job
    refers_to: Mapped[Uid | None]  # the result of ours that somebody else's object names


class Rejection(Table):
    """An instance that a rejection note names; it stays hidden, also when it comes after the note."""

    __tablename__ = "rejection"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "note_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[Uid]
    study_instance_uid: Mapped[Uid]
    note_uid: Mapped[Uid]
    code: Mapped[Code]
    received_at: Mapped[float]


class Conflict(Table):
    """Quarantine: content that came under a UID already taken by other content; kept, never shown."""

    __tablename__ = "conflict"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "second_sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[Uid]
    first_sha256: Mapped[Sha256]
    second_sha256: Mapped[Sha256] = mapped_column(index=True)
    reason: Mapped[LongText]
    path: Mapped[FilePath]
    origin_kind: Mapped[Code]
    origin_detail: Mapped[LongText]
    received_at: Mapped[float]
    times_received: Mapped[int] = mapped_column(default=1)


class Leased:
    """Columns of work that one worker at a time may hold: see `storage.leases`."""

    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    leased_by: Mapped[LongText | None]
    lease_expires_at: Mapped[float | None]
    next_attempt_at: Mapped[float | None]


class Job(Leased, Table):
    """One model on one series of one version of a study; a UPS workitem to others."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint(
            "study_instance_uid",
            "study_version",
            "series_instance_uid",
            "model",
            "query",
            "repeat",
            name="uq_job_request",
        ),
        CheckConstraint("state IN ('SCHEDULED', 'IN PROGRESS', 'COMPLETED', 'CANCELED')", name="state_known"),
        Index("ix_job_due", "state", "next_attempt_at"),
    )

    job_id: Mapped[WorkId] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[Uid] = mapped_column(ForeignKey("study.study_instance_uid"))
    study_version: Mapped[int]
    series_instance_uid: Mapped[Uid] = mapped_column(ForeignKey("series.series_instance_uid"), index=True)
    rule: Mapped[LongText]
    model: Mapped[ShortText]
    query: Mapped[str] = mapped_column(String(500))
    target: Mapped[LongText | None]
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[Code]
    outcome: Mapped[Code | None]
    reason: Mapped[Sentence | None]
    model_version: Mapped[ShortText | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    summary: Mapped[Json | None]
    handed_back: Mapped[int] = mapped_column(default=0)  # attempts that their worker gave up unharmed
    repeat: Mapped[int] = mapped_column(default=0)  # how often an operator asked for the same again
    requeued_from: Mapped[WorkId | None]  # the failed job that this one repeats
    requeued_by: Mapped[LongText | None]
    inputs_key: Mapped[Sha256 | None]  # digest over the instances that it saw
    supersedes: Mapped[WorkId | None]  # the job whose result its own replaces
    is_kept_here: Mapped[bool | None]  # its results are sent when somebody asks for it, and not before
    images_done: Mapped[int | None]  # of this attempt, as far as it has told
    images_all: Mapped[int | None]


class JobAttempt(Table):
    """One try at a job; written before the work begins."""

    __tablename__ = "job_attempt"
    __table_args__ = (UniqueConstraint("job_id", "attempt"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[WorkId] = mapped_column(ForeignKey("job.job_id"))
    attempt: Mapped[int]
    worker: Mapped[LongText]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    error: Mapped[Sentence | None]


class Delivery(Leased, Table):
    """One instance to one destination: the outbox."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "destination"),
        CheckConstraint(
            "state IN ('QUEUED', 'DELIVERED', 'CONFIRMED', 'FAILED', 'WITHDRAWN')", name="state_known"
        ),
        Index("ix_delivery_due", "state", "next_attempt_at"),
        Index("ix_delivery_lane", "destination", "state"),
    )

    delivery_id: Mapped[WorkId] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[Uid] = mapped_column(ForeignKey("instance.sop_instance_uid"))
    destination: Mapped[ShortText]
    job_id: Mapped[WorkId | None] = mapped_column(ForeignKey("job.job_id"), index=True)
    state: Mapped[Code]
    last_status: Mapped[ShortText | None]
    reason: Mapped[Sentence | None]  # what an operator should do; None = nothing is wrong
    created_at: Mapped[float]
    queued_at: Mapped[float]  # its age counts from here: when it was queued, or requeued by an operator
    delivered_at: Mapped[float | None]
    commitment_uid: Mapped[Uid | None]  # Transaction UID of the commitment asked for
    commitment_due_at: Mapped[float | None]  # when it is asked for, or asked for again
    confirmed_at: Mapped[float | None]


class DeliveryAttempt(Table):
    """One try at a delivery; written before anything is sent."""

    __tablename__ = "delivery_attempt"
    __table_args__ = (UniqueConstraint("delivery_id", "attempt"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[WorkId] = mapped_column(ForeignKey("delivery.delivery_id"))
    attempt: Mapped[int]
    worker: Mapped[LongText]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    status: Mapped[ShortText | None]
    detail: Mapped[Sentence | None]


class Correction(Table):
    """Somebody's object about a result of ours: the same again, a changed one, or a rejection."""

    __tablename__ = "correction"
    __table_args__ = (
        CheckConstraint("verdict IN ('PENDING', 'ACCEPTED', 'MODIFIED', 'REJECTED')", name="verdict_known"),
        UniqueConstraint("sop_instance_uid", "result_uid"),
        Index("ix_correction_verdict", "verdict", "received_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_instance_uid: Mapped[Uid]  # of the object that came
    study_instance_uid: Mapped[Uid] = mapped_column(index=True)
    verdict: Mapped[Code]  # PENDING: nobody has compared it yet
    sender: Mapped[LongText]  # calling AE title, or how else it came
    made_by: Mapped[LongText | None]  # a person's name: it stands here and nowhere else
    received_at: Mapped[float]
    judged_at: Mapped[float | None]
    result_uid: Mapped[Uid | None] = mapped_column(index=True)  # of our object that it is about
    job_id: Mapped[WorkId | None] = mapped_column(index=True)  # that made it
    model: Mapped[ShortText | None]
    model_version: Mapped[ShortText | None]
    matched_by: Mapped[Code | None]  # REFERENCE or CONTENT
    dice: Mapped[Json | None]  # {segment label: Dice against ours, 0..1}


class Workitem(Table):
    """A UPS workitem that another system made; one that asks for our model is carried out by a job."""

    __tablename__ = "workitem"
    __table_args__ = (
        CheckConstraint("state IN ('SCHEDULED', 'IN PROGRESS', 'COMPLETED', 'CANCELED')", name="state_known"),
        Index("ix_workitem_newest", "created_at", "workitem_uid"),
    )

    workitem_uid: Mapped[Uid] = mapped_column(primary_key=True)
    state: Mapped[Code]  # of a workitem with a job: at its creation; the job's own state counts
    transaction_uid: Mapped[Uid | None]  # the lock of whoever performs it
    attributes: Mapped[Json]  # DICOM JSON
    job_id: Mapped[WorkId | None] = mapped_column(ForeignKey("job.job_id"), index=True)
    cancel_requests: Mapped[Json | None]  # list of DICOM JSON, in their order
    created_at: Mapped[float]
    changed_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class WorkitemSubscription(Table):
    """Who wants to hear of a workitem, or of all (by the well-known UIDs of PS3.4 CC.3.1)."""

    __tablename__ = "workitem_subscription"

    workitem_uid: Mapped[Uid] = mapped_column(primary_key=True)
    subscriber: Mapped[Code] = mapped_column(primary_key=True, index=True)
    has_deletion_lock: Mapped[bool]
    filter: Mapped[Json | None]
    created_at: Mapped[float]


class CommitmentRequest(Table):
    """Storage Commitment that we asked of a peer, and what it answered."""

    __tablename__ = "commitment_request"
    __table_args__ = (CheckConstraint("state IN ('PENDING', 'COMMITTED', 'FAILED')", name="state_known"),)

    transaction_uid: Mapped[Uid] = mapped_column(primary_key=True)
    ae_title: Mapped[Code]
    state: Mapped[Code]
    references: Mapped[Json]  # [[SOP Class UID, SOP Instance UID], ...]
    failed: Mapped[Json | None]  # {SOP Instance UID: Failure Reason}
    created_at: Mapped[float]
    answered_at: Mapped[float | None]


class CommitmentReport(Leased, Table):
    """Storage Commitment that a peer asked of us: the outbox of its N-EVENT-REPORT."""

    __tablename__ = "commitment_report"
    __table_args__ = (
        CheckConstraint("state IN ('QUEUED', 'REPORTED', 'FAILED')", name="state_known"),
        Index("ix_commitment_report_due", "state", "next_attempt_at"),
    )

    report_id: Mapped[WorkId] = mapped_column(primary_key=True)
    transaction_uid: Mapped[Uid] = mapped_column(index=True)
    ae_title: Mapped[Code]
    state: Mapped[Code]
    is_duplicate: Mapped[bool]  # the Transaction UID was in use with other references
    references: Mapped[Json]
    last_status: Mapped[ShortText | None]
    created_at: Mapped[float]
    reported_at: Mapped[float | None]
