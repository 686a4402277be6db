"""Sweeps, guarded deletes, and what the recovery point and the lag are told from."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add columns to entries, and the tables that are not about single objects."""
    _columns()
    _rules_and_sweeps()
    _processes_and_minutes()


def _columns() -> None:
    for column in (
        sa.Column("asked_at", sa.Double),
        sa.Column("removal_told", sa.Integer, nullable=False, server_default="0"),
        sa.Column("gone_at", sa.Double),
        sa.Column("missed_at", sa.Double),
    ):
        op.add_column("entries", column)
    op.execute("UPDATE entries SET asked_at = event_at WHERE state <> 'settled'")
    for name, column, condition in (
        ("entries_asked", "asked_at", "asked_at IS NOT NULL AND gone_at IS NULL"),
        ("entries_gone", "gone_at", "gone_at IS NOT NULL"),
        ("entries_missed", "missed_at", "missed_at IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "entries", ["rule", column], sqlite_where=where, postgresql_where=where)


def _rules_and_sweeps() -> None:
    op.create_table(
        "rules",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("first_seen_at", sa.Double, nullable=False),
        sa.Column("tripped_at", sa.Double),
        sa.Column("trip_reason", sa.Text),
        sa.Column("counted_from", sa.Double, nullable=False),
    )
    op.create_table(
        "sweeps",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("rule", NAME, nullable=False),
        sa.Column("prefix", NAME, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("cursor", sa.Text, nullable=False),
        sa.Column("on_disk", sa.Text, nullable=False),
        sa.Column("asked_at", sa.Double, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("proves_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("worker", sa.Text),
        sa.Column("error", sa.Text),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            for name in ("compared", "compared_bytes", "missing", "different", "unproven", "extra", "kept")
        ),
        sa.Column("put", sa.BigInteger, nullable=False, server_default="0"),
    )
    is_open = sa.text("state = 'open'")
    op.create_index(
        "sweeps_open",
        "sweeps",
        ["rule", "prefix"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_index("sweeps_of_rule", "sweeps", ["rule", "id"])


def _processes_and_minutes() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
    op.create_table(
        "minutes",
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("rule", NAME, primary_key=True),
        sa.Column("lane", sa.Text, primary_key=True),
        sa.Column("bucket", sa.Integer, primary_key=True),
        sa.Column("objects", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
