"""Deliveries and attempts: the outbox of results.

Going back: downgrade() drops what was still to be sent: wait until the outbox is empty before going back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_delivery()
    _create_delivery_attempt()


def downgrade() -> None:
    op.drop_table("delivery_attempt")
    op.drop_table("delivery")


def _create_delivery() -> None:
    op.create_table(
        "delivery",
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
        sa.CheckConstraint(
            "state IN ('QUEUED', 'DELIVERED', 'FAILED')", name=op.f("ck_delivery_state_known")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.job_id"], name="fk_delivery_job_id"),
        sa.ForeignKeyConstraint(
            ["sop_instance_uid"], ["instance.sop_instance_uid"], name="fk_delivery_sop_instance_uid"
        ),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_delivery"),
        sa.UniqueConstraint(
            "sop_instance_uid", "destination", name="uq_delivery_sop_instance_uid_destination"
        ),
    )
    op.create_index("ix_delivery_due", "delivery", ["state", "next_attempt_at"], unique=False)
    op.create_index("ix_delivery_job_id", "delivery", ["job_id"], unique=False)


def _create_delivery_attempt() -> None:
    op.create_table(
        "delivery_attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=256), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("status", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.String(length=1000), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.delivery_id"], name="fk_delivery_attempt_delivery_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_delivery_attempt"),
        sa.UniqueConstraint("delivery_id", "attempt", name="uq_delivery_attempt_delivery_id_attempt"),
    )
