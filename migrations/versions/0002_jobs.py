"""Jobs and attempts: the truth about work, whatever the broker forgets.

Going back: downgrade() drops the history of all jobs; their results stay in the index, and studies that are
complete get no new jobs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_job()
    _create_job_attempt()


def downgrade() -> None:
    op.drop_table("job_attempt")
    op.drop_table("job")


def _create_job() -> None:
    op.create_table(
        "job",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_version", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("rule", sa.String(length=256), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("query", sa.String(length=500), nullable=False),
        sa.Column("target", sa.String(length=256), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.String(length=1000), nullable=True),
        sa.Column("model_version", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("leased_by", sa.String(length=256), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("next_attempt_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('SCHEDULED', 'IN PROGRESS', 'COMPLETED', 'CANCELED')", name=op.f("ck_job_state_known")
        ),
        sa.ForeignKeyConstraint(
            ["series_instance_uid"], ["series.series_instance_uid"], name="fk_job_series_instance_uid"
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["study.study_instance_uid"], name="fk_job_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("job_id", name="pk_job"),
        sa.UniqueConstraint(
            "study_instance_uid",
            "study_version",
            "series_instance_uid",
            "model",
            "query",
            name="uq_job_request",
        ),
    )
    op.create_index("ix_job_due", "job", ["state", "next_attempt_at"], unique=False)
    op.create_index("ix_job_series_instance_uid", "job", ["series_instance_uid"], unique=False)


def _create_job_attempt() -> None:
    op.create_table(
        "job_attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=256), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("error", sa.String(length=1000), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.job_id"], name="fk_job_attempt_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_job_attempt"),
        sa.UniqueConstraint("job_id", "attempt", name="uq_job_attempt_job_id_attempt"),
    )
