"""What the processes of a fleet share of a target's limits, and tell of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of slots, and a column to the processes."""
    op.create_table(
        "slots",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("given_until", sa.Double, nullable=False),
    )
    op.add_column("workers", sa.Column("limits", sa.Text, nullable=False, server_default="{}"))
