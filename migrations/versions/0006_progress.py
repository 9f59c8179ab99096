"""How many images of a series a job has read, for who waits for it.

Going back: downgrade() drops both columns; nothing else depends on them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = ("images_done", "images_all")


def upgrade() -> None:
    """Two numbers on jobs."""
    for name in COLUMNS:
        op.add_column("job", sa.Column(name, sa.Integer(), nullable=True))


def downgrade() -> None:
    """The same in the other direction."""
    for name in COLUMNS:
        op.drop_column("job", name)
