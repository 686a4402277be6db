"""The source's latest ETags, by which a copy is known whose write was not answered."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column to the entries."""
    op.add_column("entries", sa.Column("told_etags", sa.Text, nullable=False, server_default=""))
