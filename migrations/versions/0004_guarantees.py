"""Guarantees: what retries, confirmations, versions and requests of other parts need to remember.

Going back: downgrade() drops the columns and tables of this step; instances, jobs and deliveries stay.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part adds its own columns and tables in a function of its own, and calls it here."""
    _add_blob_index()
    _create_workitems()
    _add_identity()
    _add_delivery_states()
    _create_commitments()
    _add_repeats()


def downgrade() -> None:
    """The same in the other direction, last made first."""
    _drop_repeats()
    _drop_commitments()
    _drop_delivery_states()
    _drop_identity()
    _drop_workitems()
    _drop_blob_index()


def _add_blob_index() -> None:
    """From a file to the rows that refer to it: orphans, purge."""
    op.create_index("ix_instance_sha256", "instance", ["sha256"])
    op.create_index("ix_conflict_second_sha256", "conflict", ["second_sha256"])


def _drop_blob_index() -> None:
    op.drop_index("ix_conflict_second_sha256", "conflict")
    op.drop_index("ix_instance_sha256", "instance")


def _create_workitems() -> None:
    """UPS-RS: workitems that others made, and who wants to hear of them."""
    op.create_table(
        "workitem",
        sa.Column("workitem_uid", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=True),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=True),
        sa.Column("cancel_requests", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('SCHEDULED', 'IN PROGRESS', 'COMPLETED', 'CANCELED')",
            name=op.f("ck_workitem_state_known"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.job_id"], name="fk_workitem_job_id"),
        sa.PrimaryKeyConstraint("workitem_uid", name="pk_workitem"),
    )
    op.create_index("ix_workitem_job_id", "workitem", ["job_id"])
    op.create_index("ix_workitem_newest", "workitem", ["created_at", "workitem_uid"])
    op.create_table(
        "workitem_subscription",
        sa.Column("workitem_uid", sa.String(length=64), nullable=False),
        sa.Column("subscriber", sa.String(length=16), nullable=False),
        sa.Column("has_deletion_lock", sa.Boolean(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("workitem_uid", "subscriber", name="pk_workitem_subscription"),
    )
    op.create_index("ix_workitem_subscription_subscriber", "workitem_subscription", ["subscriber"])


def _drop_workitems() -> None:
    op.drop_table("workitem_subscription")
    op.drop_table("workitem")


IDENTITY_COLUMNS: tuple[tuple[str, str, sa.types.TypeEngine[Any]], ...] = (
    ("study", "expected_instances", sa.Integer()),
    ("study", "identity_note", sa.String(length=1000)),
    ("instance", "patient_id", sa.String(length=64)),
    ("instance", "retired_as", sa.String(length=16)),
    ("instance", "retired_at", sa.Double()),
    ("instance", "retired_by", sa.String(length=64)),
    ("instance", "refers_to", sa.String(length=64)),
    ("job", "inputs_key", sa.String(length=64)),
    ("job", "supersedes", sa.String(length=32)),
)


def _add_identity() -> None:
    """Whose images these are, which of them were rejected, and which result replaces which."""
    for table, name, kind in IDENTITY_COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=True))
    op.create_table(
        "rejection",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("note_uid", sa.String(length=64), nullable=False),
        sa.Column("code", sa.String(length=16), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rejection"),
        sa.UniqueConstraint("sop_instance_uid", "note_uid", name="uq_rejection_sop_instance_uid_note_uid"),
    )


def _drop_identity() -> None:
    op.drop_table("rejection")
    for table, name, _ in reversed(IDENTITY_COLUMNS):
        op.drop_column(table, name)


DELIVERY_STATES = ("QUEUED", "DELIVERED", "CONFIRMED", "FAILED", "WITHDRAWN")
OLD_DELIVERY_STATES = ("QUEUED", "DELIVERED", "FAILED")
DELIVERY_COLUMNS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("reason", sa.String(length=1000)),
    ("commitment_uid", sa.String(length=64)),
    ("commitment_due_at", sa.Double()),
    ("confirmed_at", sa.Double()),
)


def _add_delivery_states() -> None:
    """Confirmed by Storage Commitment, withdrawn; since when it waits, and what an operator should do."""
    for name, kind in DELIVERY_COLUMNS:
        op.add_column("delivery", sa.Column(name, kind, nullable=True))
    op.add_column("delivery", sa.Column("queued_at", sa.Double(), nullable=False, server_default="0"))
    op.execute("UPDATE delivery SET queued_at = created_at")
    if op.get_bind().dialect.name == "sqlite":
        _make_delivery_anew(DELIVERY_STATES, has_columns=True)
    else:
        op.alter_column("delivery", "queued_at", server_default=None)
        _check_delivery_states(DELIVERY_STATES)
    op.create_index("ix_delivery_lane", "delivery", ["destination", "state"])


def _drop_delivery_states() -> None:
    op.drop_index("ix_delivery_lane", "delivery")
    op.execute("UPDATE delivery SET state = 'DELIVERED' WHERE state = 'CONFIRMED'")
    op.execute("UPDATE delivery SET state = 'FAILED' WHERE state = 'WITHDRAWN'")
    if op.get_bind().dialect.name == "sqlite":
        _make_delivery_anew(OLD_DELIVERY_STATES, has_columns=False)
        return
    _check_delivery_states(OLD_DELIVERY_STATES)
    for name in ("queued_at", *(name for name, _ in DELIVERY_COLUMNS)):
        op.drop_column("delivery", name)


def _check_delivery_states(states: tuple[str, ...]) -> None:
    op.drop_constraint(op.f("ck_delivery_state_known"), "delivery", type_="check")
    op.create_check_constraint(op.f("ck_delivery_state_known"), "delivery", _states(states))


def _states(states: tuple[str, ...]) -> str:
    return f"state IN ({', '.join(repr(state) for state in states)})"


def _make_delivery_anew(states: tuple[str, ...], *, has_columns: bool) -> None:
    """SQLite cannot change a check: the rows step aside while the table is made again under its name."""
    op.execute("PRAGMA defer_foreign_keys=ON")  # the attempts point at it; all is well again at the commit
    op.execute("CREATE TABLE delivery_aside AS SELECT * FROM delivery")
    op.drop_table("delivery")
    columns = _old_delivery_columns()
    if has_columns:
        columns += [sa.Column(name, kind, nullable=True) for name, kind in DELIVERY_COLUMNS]
        columns += [sa.Column("queued_at", sa.Double(), nullable=False)]
    op.create_table(
        "delivery",
        *columns,
        sa.CheckConstraint(_states(states), name=op.f("ck_delivery_state_known")),
        sa.ForeignKeyConstraint(["job_id"], ["job.job_id"], name="fk_delivery_job_id"),
        sa.ForeignKeyConstraint(
            ["sop_instance_uid"], ["instance.sop_instance_uid"], name="fk_delivery_sop_instance_uid"
        ),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_delivery"),
        sa.UniqueConstraint(
            "sop_instance_uid", "destination", name="uq_delivery_sop_instance_uid_destination"
        ),
    )
    names = ", ".join(column.name for column in columns)
    op.execute(f"INSERT INTO delivery ({names}) SELECT {names} FROM delivery_aside")  # noqa: S608 - our names
    op.drop_table("delivery_aside")
    op.create_index("ix_delivery_due", "delivery", ["state", "next_attempt_at"])
    op.create_index("ix_delivery_job_id", "delivery", ["job_id"])


def _old_delivery_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("last_status", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("leased_by", sa.String(length=256), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("next_attempt_at", sa.Double(), nullable=True),
    ]


def _create_commitments() -> None:
    """Storage Commitment: what we asked of others, and the reports that we owe them."""
    op.create_table(
        "commitment_request",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("ae_title", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("references", sa.Text(), nullable=False),
        sa.Column("failed", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("answered_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('PENDING', 'COMMITTED', 'FAILED')", name=op.f("ck_commitment_request_state_known")
        ),
        sa.PrimaryKeyConstraint("transaction_uid", name="pk_commitment_request"),
    )
    op.create_table(
        "commitment_report",
        sa.Column("report_id", sa.String(length=32), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("ae_title", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("is_duplicate", sa.Boolean(), nullable=False),
        sa.Column("references", sa.Text(), nullable=False),
        sa.Column("last_status", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("reported_at", sa.Double(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("leased_by", sa.String(length=256), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("next_attempt_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'REPORTED', 'FAILED')", name=op.f("ck_commitment_report_state_known")
        ),
        sa.PrimaryKeyConstraint("report_id", name="pk_commitment_report"),
    )
    op.create_index("ix_commitment_report_due", "commitment_report", ["state", "next_attempt_at"])
    op.create_index("ix_commitment_report_transaction_uid", "commitment_report", ["transaction_uid"])


def _drop_commitments() -> None:
    op.drop_table("commitment_report")
    op.drop_table("commitment_request")


JOB_REQUEST = ("study_instance_uid", "study_version", "series_instance_uid", "model", "query")
REPEAT_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "handed_back": sa.Integer(),
    "repeat": sa.Integer(),
    "requeued_from": sa.String(length=32),
    "requeued_by": sa.String(length=256),
}
REPEATS_IN_SQLITE = """
    handed_back INTEGER NOT NULL, repeat INTEGER NOT NULL,
    requeued_from VARCHAR(32), requeued_by VARCHAR(256),
    CONSTRAINT pk_job"""


def _add_repeats() -> None:
    """A failed job may be asked for again, as another job; attempts that were handed back do not count."""
    if op.get_bind().dialect.name == "sqlite":
        _make_job_anew(
            {"CONSTRAINT pk_job": REPEATS_IN_SQLITE, 'model, "query")': 'model, "query", repeat)'},
            "*, 0, 0, NULL, NULL",
        )
        return
    for name, kind in REPEAT_COLUMNS.items():
        is_count = isinstance(kind, sa.Integer)
        default = "0" if is_count else None
        op.add_column("job", sa.Column(name, kind, nullable=not is_count, server_default=default))
    for name in ("handed_back", "repeat"):
        op.alter_column("job", name, server_default=None)
    op.drop_constraint("uq_job_request", "job", type_="unique")
    op.create_unique_constraint("uq_job_request", "job", [*JOB_REQUEST, "repeat"])


def _drop_repeats() -> None:
    """Of jobs that were asked for again, the newest stays."""
    repeated = "IN (SELECT requeued_from FROM job WHERE requeued_from IS NOT NULL)"
    op.execute(f"UPDATE delivery SET job_id = NULL WHERE job_id {repeated}")  # noqa: S608 - our own words
    op.execute(f"UPDATE workitem SET job_id = NULL WHERE job_id {repeated}")  # noqa: S608
    op.execute(f"DELETE FROM job_attempt WHERE job_id {repeated}")  # noqa: S608
    op.execute(f"DELETE FROM job WHERE job_id {repeated}")  # noqa: S608
    if op.get_bind().dialect.name == "sqlite":
        columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns("job")]
        kept = ", ".join(f'"{name}"' for name in columns if name not in REPEAT_COLUMNS)
        back = {REPEATS_IN_SQLITE: "CONSTRAINT pk_job", 'model, "query", repeat)': 'model, "query")'}
        _make_job_anew(back, kept)
        return
    op.drop_constraint("uq_job_request", "job", type_="unique")
    op.create_unique_constraint("uq_job_request", "job", list(JOB_REQUEST))
    for name in REPEAT_COLUMNS:
        op.drop_column("job", name)


def _make_job_anew(changes: dict[str, str], values: str) -> None:
    """SQLite cannot change a constraint: the rows step aside while the table is made again under its name."""
    connection = op.get_bind()
    made = "SELECT sql FROM sqlite_master WHERE tbl_name = 'job' AND type = :type AND sql IS NOT NULL"
    (table,) = connection.scalars(sa.text(made), {"type": "table"})
    indexes = list(connection.scalars(sa.text(made), {"type": "index"}))
    for old, new in changes.items():
        table = table.replace(old, new)
    op.execute(
        "PRAGMA defer_foreign_keys=ON"
    )  # attempts and deliveries point at it; all is well again at the end
    op.execute("CREATE TABLE job_aside AS SELECT * FROM job")
    op.drop_table("job")
    op.execute(table)
    op.execute(f"INSERT INTO job SELECT {values} FROM job_aside")  # noqa: S608 - our own names
    op.drop_table("job_aside")
    for index in indexes:
        op.execute(index)
