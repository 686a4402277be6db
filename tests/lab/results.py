"""`python -m tests.lab.results FILE…`: what runs with `--results FILE` found, as the tables of
docs/RELIABILITY.md.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
COLUMNS = (
    *("seed", "ledger", "min", "faults", "requests struck", "operations", "put, MiB", "events"),
    *("objects", "entries", "recovery points", "quiet after, s", "peak, MiB", "wrong"),
)


def runs(facts: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each run, and their sums."""
    rows = [_row(each) for each in facts]
    sums = [sum(float(row[column]) for row in rows) for column in range(2, 11)]
    total = ["all", "", *(f"{each:,.0f}" for each in sums), "", "", sum(int(row[13]) for row in rows)]
    return _table(COLUMNS, [*rows, total])


def _row(facts: dict[str, Any]) -> list[Any]:
    verdict = facts["verdict"]
    return [
        *(facts["seed"], facts["engine"], f"{facts['faults_s'] / 60:g}"),
        *(sum(facts["faults"].values()), sum(facts["struck"].values()), facts["operations"]),
        *(round(facts["bytes_put"] / MIB), facts["events"], verdict["objects"], verdict["entries"]),
        *(
            verdict["recovery_points"],
            round(facts["quiet_s"]),
            round(facts["peak_mib"]),
            len(verdict["wrong"]),
        ),
    ]


def kinds(facts: Sequence[dict[str, Any]]) -> list[str]:
    """How often each fault was on, and how many requests it struck, where it strikes requests."""
    on: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    for each in facts:
        for name, count in each["faults"].items():
            on[_kind(name)] += count
        struck.update(each["struck"])
    return _table(
        ("fault", "times on", "requests struck"),
        [[name, on[name], struck[name] or ""] for name in sorted(on)],
    )


def _kind(name: str) -> str:
    """ "events web-1 wire: delay" → "events: delay"; "worker-2: SIGKILL" → "worker: SIGKILL"."""
    place, _, what = name.partition(": ")
    if place.endswith(" wire"):
        return f"{place.split()[0]}: {what}"
    return f"{place.rstrip('-0123456789')}: {what}" if what else place


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    names = list(columns)
    lines = [names, ["---"] * len(names), *(map(str, row) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> int:
    """Prints both tables; of runs of one seed and engine the last one counts."""
    lines = [json.loads(line) for name in sys.argv[1:] for line in Path(name).read_text().splitlines()]
    latest = {(each["seed"], each["engine"]): each for each in lines}
    facts = [latest[run] for run in sorted(latest)]
    sys.stdout.write("\n".join([*runs(facts), "", *kinds(facts), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
