"""`make chaos SEED=n MINUTES=m`: the service under faults, and whether it kept its promises."""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.lab.run import run, text

ENGINES = ("sqlite", "postgresql")


def main() -> int:
    """Gives the exit code: 0 where all promises were kept on each engine, else 1."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # all that was started and mounted goes
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of connections that faults have ended
    say = partial(print, flush=True)
    seed = random.randrange(100_000) if arguments.seed is None else arguments.seed
    is_well = True
    for engine in [arguments.engine] if arguments.engine else ENGINES:
        folder = Path(tempfile.mkdtemp(prefix=f"chaos-{engine}-{seed}-"))
        report = run(folder, engine=engine, seed=seed, minutes=arguments.minutes, say=say)
        say(text(report))
        if arguments.results:
            with arguments.results.open("a") as results:
                results.write(json.dumps(report.facts()) + "\n")
        if report.verdict.wrong:
            is_well = False
            again = f"make chaos SEED={seed} MINUTES={arguments.minutes:g} ENGINE={engine}"
            say(f"promises broken; again: {again}\nall logs are in {folder}")
        else:
            say(f"all promises kept: seed {seed}, {engine}")
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if is_well else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="decides the workload and the faults (default: any)")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long there are faults (default: 2)")
    parser.add_argument("--engine", choices=ENGINES, help="the ledger's; default: one after the other")
    parser.add_argument("--results", type=Path, help="appends a line of JSON for each run to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
