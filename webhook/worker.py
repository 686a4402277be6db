"""Claims entries, copies them, settles them; drains on SIGTERM.

One `Worker` for each process. Its threads and what passes between them:

    claimer ──claims──▶ copiers (WORKER_THREADS of them) ──endings──▶ finisher
       ▲                    ▲ may still write?                           │
       │                  keeper (prolongs leases)                       │
       └──────────────────── there is room again ────────────────────────┘

`python -m webhook.worker` runs one without the web side, or several under a supervisor.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import structlog

from webhook import traces
from webhook.attempt import Lease, Means, Task, attempt, count_ending, log_ending
from webhook.clocks import elapsed_s
from webhook.database import BUSY_TIMEOUT_S
from webhook.entries import BACKFILL, LIVE, Claim, Ending, Released, Request
from webhook.errors import LedgerLost, LedgerUnavailable, StoreError
from webhook.fleet import Fleet
from webhook.inbox import Allowance, Inbox
from webhook.ledger import Ledger
from webhook.processes import end_own, is_dead, own_name
from webhook.progress import Progress
from webhook.pruning import Pruner
from webhook.rules import Rule
from webhook.settings import WorkerSettings
from webhook.sweeps import PRUNER, Sweeps

POLL_S = 0.05
"""Between looks for a thread that is free, or for the end of what another worker does."""
CLAIM_MAX = 64
FINISH_MAX = 128
GATHER_S = 0.02
"""How long a copy that has ended waits for those that still run, to be settled together with them."""
LIVE_FEW = 4
QUIET_S = 2.0
"""Without live work for this long, the backfill gets all threads."""
BESIDE_LIVE_THREADS, BESIDE_LIVE_CPU = 0.5, 0.15
"""What the backfill may take while there is live work: of the threads, and of one core."""
OWED_AGAIN_S = 0.5
PREFETCH_S = 0.05
"""Claimed ahead: what the copiers get through in this time."""
TROUBLE_DELAY_S, TROUBLE_DELAY_MAX_S = 0.5, 5.0
"""Between tries while the ledger cannot be used: the first, and what it grows to."""
DEAD_CHECK_S = 5.0
TIDY_S = 600.0
"""Between looks for old uploads."""
HALT_S = 3.0
"""How long a copy whose drain time is over may take to notice."""

log = structlog.get_logger("webhook.worker")


class Worker:
    """See the module's text. `start` once, `stop` once; `replicate_now` from any thread."""

    def __init__(self, means: Means, ledger: Ledger, options: WorkerSettings) -> None:
        self._means = means
        self._ledger = ledger
        self._fleet = Fleet(ledger)
        self._options = options
        self._pruner = Pruner(ledger, keep_s=options.keep_settled_s)
        self.name = own_name()
        self.lease_s = options.lease_s
        self._inbox: Inbox[Task] = Inbox(threads=options.threads)
        self._done: queue.SimpleQueue[tuple[Task, Ending] | None] = queue.SimpleQueue()
        self._held: dict[tuple[str, str, int], Task] = {}
        self._held_lock = threading.Lock()
        self._held_live = 0
        self._finished = 0
        self._owes_from = 0.0
        self._pauses_s: dict[str, float] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._is_lost = threading.Event()
        self._threads: list[threading.Thread] = []
        ledger.on_put(self._wake.set)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> float | None:
        """Starts the threads. Call it after the fork.

        Gives when any process that replicates last gave a sign of life before, None: never.
        """
        try:
            last_seen_at = self._fleet.last_seen_at()
        except LedgerUnavailable:  # a process that is started anew while the database is away
            last_seen_at = None
        log.info("worker starts", worker=self.name, threads=self._options.threads)
        copiers = [(f"copier-{number}", self._copy_loop) for number in range(self._options.threads)]
        for name, loop in [("finisher", self._finish_loop), *copiers, ("claimer", self._claim_loop)]:
            thread = threading.Thread(target=loop, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._ledger.claim_with_puts(self)
        self._ledger.hear_others()
        self.start_keeper()
        return last_seen_at

    def start_keeper(self) -> None:
        """Prolongs leases, also those of `replicate_now` in a process that does not replicate otherwise."""
        threading.Thread(target=self._keep_loop, name="keeper", daemon=True).start()
        threading.Thread(target=self._tidy_loop, name="tidier", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether this process ends because the ledger that it had open is not there any more."""
        return self._is_lost.is_set()

    def stop_claiming(self) -> None:
        """Takes nothing new from now on. Safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """Lets running copies finish for `drain_s`, hands the others back, settles, ends the threads.

        What even then is in the middle of a request keeps its lease: somebody else may start on it only
        when this process is surely gone.
        """
        self.stop_claiming()
        if self._threads:
            self._threads[-1].join(BUSY_TIMEOUT_S + 1)  # the claimer, so that nothing follows
            self._hand_back_unstarted()
            if not self._wait_until_nothing_held(self._options.drain_s):
                self._end_leases()
                self._wait_until_nothing_held(HALT_S)
            self._done.put(None)
            self._threads[0].join(HALT_S)
            with contextlib.suppress(LedgerUnavailable):
                self._fleet.leave(self.name)
        with contextlib.suppress(LedgerUnavailable):
            self._ledger.keep_counts()
        log.info("worker stopped", worker=self.name, left_running=len(self._held))

    def _end_leases(self) -> None:
        with self._held_lock:
            for task in self._held.values():
                task.lease.end()

    def _hand_back_unstarted(self) -> None:
        for task in self._inbox.empty():
            self._done.put((task, Released(claim=task.claim)))
        self._inbox.close()

    def _wait_until_nothing_held(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._held and time.monotonic() < until:
            time.sleep(0.02)
        return not self._held

    # ── the loops ────────────────────────────────────────────────────────────────────────────────────

    def _claim_loop(self) -> None:
        rate = _Rate()
        while not self._stopping.is_set():
            self._wake.clear()
            rate.update(self._finished)
            ahead = min(CLAIM_MAX, int(rate.per_s * PREFETCH_S))
            self._inbox.allow_backfill(self._allowance())
            owed = self._inbox.owed_backfill() if time.monotonic() >= self._owes_from else 0
            limit = min(CLAIM_MAX, self._inbox.room() + ahead)
            if limit <= ahead // 2 and not owed:
                self._wake.wait(POLL_S)
                continue
            with self._surviving("cannot claim"):
                if not self._claim(max(0, limit), self._inbox.backfill_room() + ahead, owed):
                    self._wake.wait(self._ledger.idle_s())

    def _allowance(self) -> Allowance:
        """How much of the backfill may be done: little beside live work, which it would slow down."""
        threads = self._options.threads
        if time.monotonic() - self._ledger.live_seen_at > QUIET_S:
            return Allowance(at_once=threads)
        return Allowance(at_once=max(1, int(threads * BESIDE_LIVE_THREADS)), cpu_share=BESIDE_LIVE_CPU)

    def _claim(self, limit: int, backfill_max: int, backfill_owed: int) -> int:
        asked_at = elapsed_s()
        claims = self._ledger.claim(
            limit,
            backfill_max=backfill_max,
            backfill_owed=backfill_owed,
            worker=self.name,
            lease_s=self.lease_s,
        )
        if backfill_owed and not any(claim.lane == BACKFILL for claim in claims):
            self._owes_from = time.monotonic() + OWED_AGAIN_S  # there is none that is due
        self.take(claims, asked_at)
        return len(claims)

    def room(self) -> int:
        """How much live work it can begin at once now."""
        return 0 if self._stopping.is_set() else self._inbox.room()

    def take(self, claims: Sequence[Claim], asked_at: float) -> None:
        """Hands new claims to the copiers; `asked_at` is the elapsed time before they were made."""
        for claim in claims:
            task = self._hold(claim, asked_at)
            if self._stopping.is_set():
                self._done.put((task, Released(claim=claim)))
            else:
                self._inbox.put(task, is_backfill=claim.lane == BACKFILL)

    def _copy_loop(self) -> None:
        while (given := self._inbox.take()) is not None:
            task, is_backfill = given
            cpu_before_s = time.thread_time()
            try:
                self._done.put((task, self._attempt(task)))
            finally:
                self._inbox.done(is_backfill=is_backfill, cpu_s=time.thread_time() - cpu_before_s)

    def _gather(self, first: tuple[Task, Ending]) -> list[tuple[Task, Ending]]:
        """What is settled together: what comes within GATHER_S, unless it is live work and there is little
        of that, so that somebody may be waiting for it.
        """
        batch = [first]
        until = time.monotonic() + (GATHER_S if len(self._held) > 1 else 0.0)
        with contextlib.suppress(queue.Empty):
            while len(batch) < FINISH_MAX:
                hurries = batch[-1][0].claim.lane == LIVE and self._held_live <= LIVE_FEW
                until = 0.0 if hurries else until
                following = self._done.get(timeout=max(0.0, until - time.monotonic()))
                if following is None:
                    self._done.put(None)
                    break
                batch.append(following)
        return batch

    def _finish_loop(self) -> None:
        while (first := self._done.get()) is not None:
            batch = self._gather(first)
            with self._surviving("cannot settle"):
                self._finish(batch)
            for task, _ in batch:
                self._let_go(task)
            self._finished += len(batch)
            self._wake.set()

    def _finish(self, batch: Sequence[tuple[Task, Ending]]) -> None:
        """Commits, for as long as it takes: the leases are kept meanwhile, and fence it if they are not."""
        endings = [ending for _, ending in batch]
        while True:
            try:
                held = self._ledger.finish(endings)
                lost = self._ask_again_for_lost(endings) if held < len(endings) else set()
            except LedgerLost:
                raise  # there is nothing to commit to
            except LedgerUnavailable as error:
                log.warning("cannot settle", entries=len(batch), error=error.message)
                time.sleep(TROUBLE_DELAY_S)
            else:
                break
        settled_at = self._ledger.clock()
        for task, ending in batch:
            is_lost = _id(task.claim) in lost
            log_ending(task, ending, settled_at=settled_at, is_lost=is_lost)
            if not is_lost:
                count_ending(self._ledger.meter, task, ending, settled_at=settled_at)
                traces.attempt(ending, began_at=task.began_at, ended_at=task.ended_at, settled_at=settled_at)

    def _ask_again_for_lost(self, endings: Sequence[Ending]) -> set[tuple[str, str, int]]:
        """What was written under a claim that somebody else took over, may have come after that one's copy:
        whoever claims the entry next looks once more. Gives the claims.
        """
        lost = self._ledger.overtaken([each.claim for each in endings])
        if lost:
            self._ledger.put([Request(rule=claim.rule, key=claim.key) for claim in lost])
        return {_id(claim) for claim in lost}

    def _keep_loop(self) -> None:
        pause_s = min(self._options.lease_s / 4, DEAD_CHECK_S)
        while True:
            with self._surviving("cannot prolong leases"):
                self._keep_leases()
                if by_s := self._ledger.heed_clock():
                    log.warning("the clock was set back", by_s=round(by_s))
                self._ledger.release_of(is_dead)
                self._means.pauses.keep()
                self._ledger.keep_counts()
                if self._threads and not self._stopping.is_set():
                    limits = {name: each.limit for name, each in self._means.copiers.items()}
                    self._fleet.sign(self.name, threads=self._options.threads, limits=limits)
            time.sleep(pause_s)

    def _tidy_loop(self) -> None:
        """Apart from the keeper, whose leases must not wait for a store."""
        while True:
            with self._surviving("cannot end old uploads"):
                self.end_old_uploads()
                self._means.deletes.forget()
                Progress(self._ledger).forget()
                self._prune()
            time.sleep(TIDY_S)

    def _prune(self) -> None:
        """One process does it for all, where it is wanted at all."""
        if not self._options.keep_settled_s:
            return
        lease_s = TIDY_S * 2
        may = Sweeps(self._ledger).take_lease(worker=self.name, lease_s=lease_s, is_dead=is_dead, name=PRUNER)
        if may:
            rules = map(self._means.rules.named, self._means.deletes.breakers())
            self._pruner.round([rule.name for rule in rules if rule and not rule.deletes])

    def end_old_uploads(self) -> None:
        """Those of failed entries: all others are gone on with, or ended by the copy that comes next."""
        before = self._ledger.clock() - self._options.upload_keep_s
        for claim in self._ledger.failed_with_upload(before=before):
            if rule := self._means.rules.named(claim.rule):
                self._means.copiers[rule.target].discard_upload(rule, claim.key, claim.upload or "")
                self._ledger.drop_upload(claim)
                log.info("old upload ended", key=claim.key, rule=claim.rule)

    @contextlib.contextmanager
    def _surviving(self, trouble: str) -> Iterator[None]:
        """A loop outlives whatever one round of it meets; what it was about is found again by its lease.

        The next round comes later each time it meets something.
        """
        try:
            yield
        except LedgerLost as error:
            self._give_up(error)
        except (LedgerUnavailable, StoreError) as error:
            log.warning(trouble, error=error.message)
        except Exception:
            log.exception(trouble)
        else:
            self._pauses_s.pop(trouble, None)
            return
        longest = min(TROUBLE_DELAY_MAX_S, self._options.lease_s / 4)
        pause_s = min(longest, self._pauses_s.get(trouble, TROUBLE_DELAY_S))
        self._pauses_s[trouble] = pause_s * 2
        self._stopping.wait(pause_s * random.uniform(0.5, 1.0))  # so that a fleet does not come all at once

    def _give_up(self, error: LedgerLost) -> None:
        """Others work by the ledger that is there now, and know nothing of what this process holds: it writes
        nothing more, and ends, to be started anew.
        """
        if self._is_lost.is_set():
            return
        self._is_lost.set()
        log.critical("the ledger is lost", error=error.message, hint=error.hint)
        self._end_leases()
        end_own()

    def _keep_leases(self) -> None:
        with self._held_lock:
            tasks = list(self._held.values())
        if not tasks:
            return
        asked_at = elapsed_s()
        gone = self._ledger.extend([task.claim for task in tasks], lease_s=self.lease_s)
        lost = {_id(claim) for claim in gone}
        for task in tasks:
            if _id(task.claim) in lost:
                task.lease.end()
            else:
                task.lease.prolong(asked_at)

    # ── one entry ────────────────────────────────────────────────────────────────────────────────────

    def replicate_now(
        self, rule: Rule, key: str, *, wait_s: float, trace: str | None = None
    ) -> Ending | None:
        """Copies one key for a caller that waits, under the same claim as everybody else.

        Where another worker has the entry, waits for it to end first. None: not done within `wait_s`.
        Raises: LedgerUnavailable.
        """
        generation = self._ledger.put_now(Request(rule=rule.name, key=key, trace=trace))
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            asked_at = elapsed_s()
            claim = self._ledger.claim_one(rule.name, key, worker=self.name, lease_s=self.lease_s)
            if claim:
                return self._work_and_finish(self._hold(claim, asked_at))
            time.sleep(POLL_S)
            if ended := self._ledger.ending_of(rule.name, key, generation=generation):
                return ended
        return None

    def _work_and_finish(self, task: Task) -> Ending:
        try:
            ending = self._attempt(task)
            self._finish([(task, ending)])
            return ending
        finally:
            self._let_go(task)

    def _hold(self, claim: Claim, asked_at: float) -> Task:
        lease = Lease(claim, self._ledger, taken_at=asked_at, lease_s=self.lease_s)
        task = Task(claim=claim, lease=lease)
        with self._held_lock:
            self._held[_id(claim)] = task
            self._held_live += claim.lane == LIVE
        return task

    def _let_go(self, task: Task) -> None:
        with self._held_lock:
            if self._held.pop(_id(task.claim), None):
                self._held_live -= task.claim.lane == LIVE

    def _attempt(self, task: Task) -> Ending:
        return attempt(task, self._means)


class _Rate:
    """How many copies end in a second, over the last half second or so."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._since = time.monotonic()
        self._count = 0

    def update(self, count: int) -> None:
        """`count`: how many ended in all."""
        passed_s = time.monotonic() - self._since
        if passed_s >= 0.25:
            self.per_s = (self.per_s + (count - self._count) / passed_s) / 2
            self._since, self._count = time.monotonic(), count


def _id(claim: Claim) -> tuple[str, str, int]:
    return claim.rule, claim.key, claim.number


if __name__ == "__main__":
    # What is made of workers, and so above this module; the command bears the name of what it runs.
    code = importlib.import_module("webhook.service").main()
    sys.stderr.flush()
    os._exit(code)  # threads that are in the middle of a request must not keep the process alive
