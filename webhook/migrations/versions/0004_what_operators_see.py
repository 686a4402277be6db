"""Pauses, counts for charts and metrics, what targets were found to hold, traces, and indexes for
looking at a large ledger of which much waits, has failed or is held back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add two tables, a column each to the rules and the entries, and indexes."""
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
    _indexes()


def _indexes() -> None:
    op.drop_index("entries_asked", "entries")  # it is made anew, by lane
    for name, columns, condition in (
        ("entries_asked", ["rule", "lane", "asked_at"], "asked_at IS NOT NULL AND gone_at IS NULL"),
        ("entries_failed_by", ["rule", "error_code", "asked_at"], "state = 'failed'"),
        ("entries_gone_by", ["rule", "state"], "gone_at IS NOT NULL"),
        (
            "entries_doubtful",
            ["rule", "asked_at"],
            "gone_at IS NOT NULL AND asked_at IS NOT NULL AND (state = 'running' OR state = 'failed' "
            "OR error_code IS NOT NULL)",
        ),
    ):
        where = sa.text(condition)
        op.create_index(name, "entries", columns, sqlite_where=where, postgresql_where=where)
