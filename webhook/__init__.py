"""Copies objects from MinIO to another S3 provider the moment they are written.

The flow, in reading order:

 1. settings.py   environment → Settings
 2. rules.py      which source bucket goes to which target bucket
 3. app.py        POST /minio/events and POST /v1/replicate arrive here
 4. events.py     MinIO's notification JSON → changes
 5. ledger.py     changes → entries, on disk before the sender hears 200 (tables: database.py, migrations/)
 6. worker.py     claim → copy → settle
 7. copier.py     check → copy → verify; the only way to the target (objects.py, layout.py: its arithmetic)
 8. stores.py     source and target, and what their errors mean
 9. retry.py      what to do about an error
10. errors.py     all errors there are
11. logs.py       one line for each thing that happened
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

__version__ = "0.1.0"


def create_app() -> Flask:
    """The WSGI application, for `gunicorn --config config/gunicorn.conf.py 'webhook:create_app()'`."""
    from webhook.app import create_app as create  # Flask is not loaded for a worker without a web side

    return create()
