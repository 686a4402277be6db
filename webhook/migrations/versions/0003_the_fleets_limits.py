"""What the processes of a fleet share: a target's limits, their own, and the counts of a minute."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the table of slots, and a column to the processes."""
    op.create_table(
        "slots",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("given_until", sa.Double, nullable=False),
    )
    op.add_column("workers", sa.Column("limits", sa.Text, nullable=False, server_default="{}"))
    _spread_minutes()
    if op.get_bind().dialect.name == "postgresql":
        # else new rows go to the scraps of room that VACUUM leaves in pages all over the table
        op.execute("ALTER TABLE entries SET (fillfactor = 90)")


def _spread_minutes() -> None:
    """Rows of each process's own: all that settle in a minute waited for each other's."""
    op.rename_table("minutes", "minutes_before")
    op.create_table(
        "minutes",
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("rule", NAME, primary_key=True),
        sa.Column("lane", sa.Text, primary_key=True),
        sa.Column("bucket", sa.Integer, primary_key=True),
        sa.Column("share", sa.Integer, primary_key=True),
        sa.Column("objects", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO minutes SELECT minute, rule, lane, bucket, 0, objects, bytes FROM minutes_before")
    op.drop_table("minutes_before")
