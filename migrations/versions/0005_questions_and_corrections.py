"""Questions whose results stay here until somebody has them sent, and what people made of our results.

Going back: downgrade() drops the column and the table of this step; what is held back is then sent by nobody.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A mark on jobs, and a table of corrections."""
    op.add_column("job", sa.Column("is_kept_here", sa.Boolean(), nullable=True))
    op.create_table(
        "correction",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("sender", sa.String(length=256), nullable=False),
        sa.Column("made_by", sa.String(length=256), nullable=True),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("judged_at", sa.Double(), nullable=True),
        sa.Column("result_uid", sa.String(length=64), nullable=True),
        sa.Column("job_id", sa.String(length=32), nullable=True),
        sa.Column("model", sa.String(length=64), nullable=True),
        sa.Column("model_version", sa.String(length=64), nullable=True),
        sa.Column("matched_by", sa.String(length=16), nullable=True),
        sa.Column("dice", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "verdict IN ('PENDING', 'ACCEPTED', 'MODIFIED', 'REJECTED')",
            name=op.f("ck_correction_verdict_known"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_correction"),
        sa.UniqueConstraint(
            "sop_instance_uid", "result_uid", name="uq_correction_sop_instance_uid_result_uid"
        ),
    )
    op.create_index("ix_correction_verdict", "correction", ["verdict", "received_at"])
    for column in ("study_instance_uid", "result_uid", "job_id"):
        op.create_index(f"ix_correction_{column}", "correction", [column])


def downgrade() -> None:
    """The same in the other direction."""
    op.drop_table("correction")
    op.drop_column("job", "is_kept_here")
