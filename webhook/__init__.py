"""Copies objects from MinIO to another S3 provider the moment they are written.

The flow, in reading order:

 1. settings.py   environment → Settings (variables.py: one variable at a time; presets.py: what is known of
                  stores beforehand)
 2. rules.py      which object goes to which targets, and how (rulesfile.py: from a file; conflicts.py:
                  loops and overlaps)
 3. app.py        POST /minio/events and POST /v1/replicate arrive here (callers.py: who may call);
                  ingest.py: events that are fetched from NATS (jetstream.py)
 4. events.py     MinIO's notification JSON → changes → what they ask of the ledger
 5. ledger.py     changes → entries, on disk before the sender hears 200
                  (entries.py: its words; statements.py, compiled.py: its SQL, and how that is run;
                  tables.py, migrations/, database.py: its tables and the engine they live in;
                  ledgerfile.py: whether a file is still the one that was opened;
                  postgresql.py: what is PostgreSQL's own; clocks.py: a time that all machines agree on;
                  wakeups.py: words between processes; together.py: many puts in one transaction;
                  pruning.py: old records dropped; pauses.py: rules that a person has stopped;
                  records.py: the record in pages and numbers, for people; quarantine.py: what nobody
                  could act on)
 6. worker.py     the threads that claim, copy and settle (inbox.py: live work first; processes.py: which
                  process is which; fleet.py: which of them are there; service.py: what one is made of;
                  startcheck.py, disks.py: what it finds when it starts; supervisor.py: several under one)
 7. attempt.py    one attempt at one entry: claim → copy → ending
 8. copier.py     check → copy → verify, the only way to the target
                  (multipart.py: large objects; objects.py, layout.py, digests.py,
                  holdings.py: what it reckons with; memory.py: its bound)
 9. deletes.py    grace period, breaker and a fresh look before an object goes from the target
10. source.py, target.py  the two stores, as a copy needs them
                  (pace.py: how fast a target is asked; conditions.py: that nothing newer is replaced)
11. store.py      one signed request to a store, and its answer
                  (connections.py: HTTP; sigv4.py: the signature; answers.py: what errors mean;
                  findings.py: what was found out about targets, abilities.py, probes.py: by trying)
12. reconcile.py  sweeps: what no event told of goes into the ledger's backfill lane
                  (listing.py: pages in order; compare.py: two listings side by side; sweeps.py: how far
                  each has come; strays.py: uploads that nobody knows of)
13. progress.py   how far the target is complete, how fast changes get there (lags.py: in few numbers)
14. metrics.py    the same in numbers, for Prometheus (meter.py: what a process counted;
                  traces.py: one change, step by step, for OpenTelemetry)
15. operating.py  looking at what happened, and operating it (status.py: how it all stands; verdict.py: in
                  sentences; paging.py: page by page; openapi.py, schemas.py: the description of it all;
                  pages/: the same for people, in a browser)
16. retry.py      what to do about an error
17. errors.py     all errors there are
18. logs.py       one line for each thing that happened
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from webhook.version import VERSION

if TYPE_CHECKING:
    from flask import Flask

__version__ = VERSION


def create_app() -> Flask:
    """The WSGI application, for `gunicorn --config config/gunicorn.conf.py 'webhook:create_app()'`."""
    from webhook.app import create_app as create  # Flask is not loaded for a worker without a web side

    return create()
