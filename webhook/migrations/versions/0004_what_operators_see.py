"""Pauses, counts for charts and metrics, what targets were found to hold, and traces."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add two tables, and a column each to the rules and the entries."""
    op.add_column("rules", sa.Column("paused_at", sa.Double))
    op.add_column("entries", sa.Column("trace", sa.Text))
    op.create_table(
        "counts",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("labels", NAME, primary_key=True),
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("target", NAME, primary_key=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("found_at", sa.Double, nullable=False),
        sa.Column("findings", sa.Text, nullable=False),
    )
