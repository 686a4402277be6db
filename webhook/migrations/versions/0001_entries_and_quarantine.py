"""The ledger's first tables: entries and quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create both tables and the indexes that claims and failures are found by."""
    op.create_table(
        "entries",
        sa.Column("rule", NAME, primary_key=True),
        sa.Column("key", NAME, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        sa.Column("due_at", sa.Double),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("claimed_generation", sa.BigInteger, nullable=False),
        sa.Column("claim_number", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("backoff_s", sa.Double, nullable=False),
        sa.Column("recent_events", sa.Text, nullable=False),
        sa.Column("first_seen_at", sa.Double, nullable=False),
        sa.Column("event_at", sa.Double, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("settled_at", sa.Double),
        sa.Column("size", sa.BigInteger),
        sa.Column("source_etag", sa.Text),
        sa.Column("source_version", sa.Text),
        sa.Column("target_etag", sa.Text),
        sa.Column("cid", sa.Text),
        sa.Column("lost", sa.Text, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("upload", sa.Text),
        sa.Column("history", sa.Text, nullable=False),
    )
    open_rows = sa.text("due_at IS NOT NULL")
    op.create_index(
        "entries_due", "entries", ["lane", "due_at"], sqlite_where=open_rows, postgresql_where=open_rows
    )
    failed_rows = sa.text("state = 'failed'")
    op.create_index(
        "entries_failed", "entries", ["rule", "key"], sqlite_where=failed_rows, postgresql_where=failed_rows
    )
    op.create_table(
        "quarantine",
        sa.Column("record_id", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("raw", sa.Text, nullable=False),
        sa.Column("times_seen", sa.BigInteger, nullable=False),
        sa.Column("first_seen_at", sa.Double, nullable=False),
        sa.Column("last_seen_at", sa.Double, nullable=False),
    )
