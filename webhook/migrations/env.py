"""Run by Alembic, on the connection that `webhook.database.prepare` hands over."""

from alembic import context

from webhook.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
