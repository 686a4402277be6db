"""What one process is made of, and the processes that only copy: `python -m webhook.worker`."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from webhook import logs, settings, startcheck, traces
from webhook.attempt import Means
from webhook.copier import Copier
from webhook.database import prepare
from webhook.deletes import Deletes
from webhook.errors import ReplicatorError
from webhook.findings import Learner, Learning
from webhook.ledger import Ledger
from webhook.memory import MemoryBudget
from webhook.pace import LedgerSlots
from webhook.pauses import Pauses
from webhook.processes import stop_on_signals
from webhook.reconcile import Sides, Sweeper
from webhook.records import Records
from webhook.settings import Settings
from webhook.source import Source
from webhook.supervisor import Supervisor, call_when_parent_is_gone
from webhook.target import Target
from webhook.worker import Worker

PROCESSES_MAX = 256

log = structlog.get_logger("webhook.service")


@dataclass(frozen=True, kw_only=True)
class Service:
    """What one process is made of."""

    sides: Sides
    ledger: Ledger
    deletes: Deletes
    pauses: Pauses
    records: Records
    copiers: Mapping[str, Copier]
    learning: Learning
    worker: Worker
    sweeper: Sweeper

    def start(self) -> None:
        """Replicates from now on. Call it after the fork. Raises: LedgerUnavailable."""
        last_seen_at = self.worker.start()
        self.sweeper.start(last_seen_at=last_seen_at)
        self.learning.start()

    def stop(self) -> None:
        """Finishes or hands back what is running; a sweep is left open."""
        self.sweeper.stop()
        self.worker.stop()
        self.learning.stop()
        traces.flush()

    def close(self) -> None:
        """Gives up connections and threads, for a service whose worker was not started or has stopped."""
        for copier in self.copiers.values():
            copier.close()
        self.sides.close()
        self.ledger.close()

    def checks(self) -> dict[str, Callable[[], object]]:
        """What must work for this process to be of use: name → a call that raises where it does not.

        Of rules whose buckets are named by globs, only the source as such.
        """
        found: dict[str, Callable[[], object]] = {"ledger": self.ledger.check}
        sides = self.sides
        if sides.rules.has_globs:
            found["source"] = sides.source.buckets
        named = sides.rules.of_buckets(sides.rules.literal_buckets)
        for bucket in sorted({rule.source_bucket for rule in named}):
            label = "source" if len(named) == 1 else f"source {bucket}"
            found[label] = partial(sides.source.check, bucket)
        for name, bucket in sorted({(rule.target, rule.target_bucket) for rule in named}):
            label = "target" if len(named) == 1 else f"target {name}/{bucket}"
            found[label] = partial(sides.targets[name].check, bucket)
        return found


def open_stores(configured: Settings, ledger: Ledger | None = None) -> Sides:
    """Both sides of all rules. Call it after the fork.

    The targets' limits hold for all processes that share the ledger; without one, for this process.
    """
    slots = LedgerSlots(ledger) if ledger else None
    return Sides(
        rules=configured.rules,
        source=Source(configured.source),
        targets={name: Target(each, name=name, slots=slots) for name, each in configured.targets.items()},
    )


def assemble(configured: Settings) -> Service:
    """Opens the ledger and all stores for this process. Call it after the fork."""
    traces.begin(configured.traces)
    ledger = Ledger.open(configured.database_url)
    sides = open_stores(configured, ledger)
    deletes = Deletes(ledger, configured.deletes)
    pauses = Pauses(ledger)
    budget = MemoryBudget(configured.copy.memory_budget_bytes)
    copiers = {
        name: Copier(sides.source, target, configured.copy, budget) for name, target in sides.targets.items()
    }
    learners = [
        Learner(
            target=name,
            endpoint=configured.targets[name].endpoint_url,
            expect=copier.expect,
            learned=copier.learned,
        )
        for name, copier in copiers.items()
    ]
    means = Means(
        rules=configured.rules,
        copiers=copiers,
        deletes=deletes,
        pauses=pauses,
        attempts_max=configured.worker.attempts_max,
        clock=ledger.clock,
    )
    sweeper = Sweeper(
        sides,
        ledger,
        deletes,
        interval_s=configured.reconcile_interval_s,
        lease_s=configured.worker.lease_s,
        upload_keep_s=configured.worker.upload_keep_s,
    )
    worker = Worker(means, ledger, configured.worker)
    return Service(
        sides=sides,
        ledger=ledger,
        deletes=deletes,
        pauses=pauses,
        records=Records(ledger),
        copiers=copiers,
        learning=Learning(ledger, learners),
        worker=worker,
        sweeper=sweeper,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs workers until SIGTERM or SIGINT. Exit code 1: the ledger was lost; 2: settings or ledger cannot be
    used.
    """
    asked = _parser().parse_args(arguments)
    try:
        configured = settings.load()
        if asked.threads:
            configured = replace(configured, worker=replace(configured.worker, threads=asked.threads))
        logs.configure(configured.log_format)
        if asked.processes > 1:
            prepare(configured.database_url)
            return _supervise(asked.processes, threads=configured.worker.threads)
        service = assemble(configured)
    except ReplicatorError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    return _work(service, configured, has_parent=asked.has_parent)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m webhook.worker",
        description="Copies what the ledger holds, without the web side. Settings come from the environment "
        "and .env, as for the web process; .env.example lists them. SIGTERM lets running copies finish, a "
        "second one ends all at once.",
    )
    parser.add_argument(
        "--processes",
        type=_between(1, PROCESSES_MAX),
        default=1,
        metavar="N",
        help="how many processes; each has MEMORY_BUDGET_MIB of its own, and one that dies is started anew "
        "(default: 1)",
    )
    parser.add_argument(
        "--threads",
        type=_between(1, settings.THREADS_MAX),
        metavar="M",
        help="objects that one process copies at once (default: WORKER_THREADS)",
    )
    parser.add_argument("--has-parent", action="store_true", help=argparse.SUPPRESS)
    return parser


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"must be between {least} and {most}, not {text!r}")
        return int(text)

    return number


def _supervise(processes: int, *, threads: int) -> int:
    command = [sys.executable, "-m", "webhook.worker", "--has-parent", "--threads", str(threads)]
    supervisor = Supervisor(command=command, count=processes)
    log.info("worker processes start", processes=processes, threads=threads)
    return supervisor.run()


def _work(service: Service, configured: Settings, *, has_parent: bool) -> int:
    ended = threading.Event()

    def begin() -> None:
        service.worker.stop_claiming()
        ended.set()

    stop_on_signals(begin)
    if has_parent:
        call_when_parent_is_gone(begin)
    service.start()
    startcheck.begin(service.checks(), service.sides, configured)
    ended.wait()
    service.stop()
    return 1 if service.worker.is_lost else 0
