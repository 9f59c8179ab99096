"""First tables: studies, series, instances, and the quarantine of conflicting content.

Going back: downgrade() drops the whole index. The Part 10 files stay, and can be received again from disk.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_study()
    _create_series()
    _create_instance()
    _create_conflict()


def downgrade() -> None:
    op.drop_table("conflict")
    op.drop_table("instance")
    op.drop_table("series")
    op.drop_table("study")


def _create_study() -> None:
    op.create_table(
        "study",
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", sa.String(length=64), nullable=False),
        sa.Column("patient_name", sa.String(length=256), nullable=False),
        sa.Column("patient_name_folded", sa.String(length=256), nullable=False),
        sa.Column("patient_birth_date", sa.String(length=16), nullable=False),
        sa.Column("patient_sex", sa.String(length=16), nullable=False),
        sa.Column("study_date", sa.String(length=16), nullable=False),
        sa.Column("study_time", sa.String(length=16), nullable=False),
        sa.Column("accession_number", sa.String(length=64), nullable=False),
        sa.Column("study_description", sa.String(length=256), nullable=False),
        sa.Column("study_id", sa.String(length=64), nullable=False),
        sa.Column("referring_physician_name", sa.String(length=256), nullable=False),
        sa.Column("referring_physician_name_folded", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_received_at", sa.Double(), nullable=False),
        sa.Column("complete_requested_by", sa.String(length=256), nullable=True),
        sa.Column("completed_at", sa.Double(), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=True),
        sa.Column("outcome", sa.String(length=1000), nullable=True),
        sa.PrimaryKeyConstraint("study_instance_uid", name="pk_study"),
    )
    op.create_index("ix_study_accession_number", "study", ["accession_number"], unique=False)
    op.create_index("ix_study_completed_at", "study", ["completed_at"], unique=False)
    op.create_index("ix_study_patient_id", "study", ["patient_id"], unique=False)
    op.create_index("ix_study_patient_name_folded", "study", ["patient_name_folded"], unique=False)
    op.create_index(
        "ix_study_newest",
        "study",
        ["study_date", "study_time", "created_at", "study_instance_uid"],
        unique=False,
    )


def _create_series() -> None:
    op.create_table(
        "series",
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("series_number", sa.Integer(), nullable=True),
        sa.Column("series_description", sa.String(length=256), nullable=False),
        sa.Column("body_part_examined", sa.String(length=64), nullable=False),
        sa.Column("series_date", sa.String(length=16), nullable=False),
        sa.Column("series_time", sa.String(length=16), nullable=False),
        sa.Column("laterality", sa.String(length=16), nullable=False),
        sa.Column("is_own_result", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["study.study_instance_uid"], name="fk_series_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("series_instance_uid", name="pk_series"),
    )
    op.create_index("ix_series_study_instance_uid", "series", ["study_instance_uid"], unique=False)


def _create_instance() -> None:
    op.create_table(
        "instance",
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("instance_number", sa.Integer(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("columns", sa.Integer(), nullable=True),
        sa.Column("number_of_frames", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(length=128), nullable=False),
        sa.Column("origin_kind", sa.String(length=16), nullable=False),
        sa.Column("origin_detail", sa.String(length=256), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_instance_uid"], ["series.series_instance_uid"], name="fk_instance_series_instance_uid"
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["study.study_instance_uid"], name="fk_instance_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid", name="pk_instance"),
    )
    op.create_index("ix_instance_series_instance_uid", "instance", ["series_instance_uid"], unique=False)
    op.create_index("ix_instance_study_instance_uid", "instance", ["study_instance_uid"], unique=False)


def _create_conflict() -> None:
    op.create_table(
        "conflict",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("first_sha256", sa.String(length=64), nullable=False),
        sa.Column("second_sha256", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=256), nullable=False),
        sa.Column("path", sa.String(length=128), nullable=False),
        sa.Column("origin_kind", sa.String(length=16), nullable=False),
        sa.Column("origin_detail", sa.String(length=256), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("times_received", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conflict"),
        sa.UniqueConstraint(
            "sop_instance_uid", "second_sha256", name="uq_conflict_sop_instance_uid_second_sha256"
        ),
    )
