"""What scripts/operate.py shows: the service's facts as sentences and tables, and one key's story in words.

Names that others chose are shown without their control characters.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.command_line import count, in_units, printable
from webhook.entries import PARKED_AT
from webhook.verdict import duration, moment

Facts = Mapping[str, Any]

WIDTH_UNSEEN = 160
"""Of what is printed where nobody sees a terminal."""
OPERATE = "python scripts/operate.py"
HELP = {
    "work": "start the service, or another process of it: python -m webhook.worker",
    "resume": f"{OPERATE} resume {{rule}}",
    "retry": f"{OPERATE} failures; once the cause is mended: {OPERATE} retry {{rule}}",
    "decide": f"{OPERATE} deletes approve {{rule}} lets them go; discard in its place keeps the copies",
    "doctor": "python scripts/doctor.py",
    "sweep": f"{OPERATE} sweep",
    "quarantine": f"{OPERATE} quarantine",
}
"""Action of a verdict → what to type."""
_ENDS = {
    "replicated": "At the target, copied and verified",
    "unchanged": "At the target: it was found equal",
    "deleted": "Deleted at the target, as it was at the source",
    "gone": "The source had no such object; nothing was copied",
}
_NOTHING_NEXT = (
    "Nothing is to be done. The next change is copied when MinIO tells of it, or a sweep finds it."
)


def console() -> Console:
    """stdout, with no markup: what is shown holds names that others chose."""
    width = None if sys.stdout.isatty() else WIDTH_UNSEEN
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def help_for(verdict: Facts) -> str:
    """What to type where the verdict asks for a person; "": nothing."""
    rule = f"--rule {shlex.quote(verdict['rule'])}" if verdict["rule"] else "--all"
    return HELP.get(verdict["action"] or "", "").format(rule=rule)


def sentences(facts: Facts, rule: str | None = None) -> Iterator[tuple[Facts, str]]:
    """Verdicts with their sentences: that of all, or of one rule, then those of rules that are not fine."""
    of_all, *rules = facts["summary"]
    if rule is not None:
        rules = [each for each in rules if each["rule"] == rule]
    elif len(rules) == 1:
        rules = [{**rules[0], **of_all, "rule": rules[0]["rule"]}]
    else:
        number = sum(not each["ok"] for each in rules)
        text = of_all["text"] if of_all["ok"] or not number else f"{number} of {len(rules)} rules: see below."
        yield of_all, text
        rules = [each for each in rules if not each["ok"]]
    for each in rules:
        yield each, each["text"] if len(facts["rules"]) == 1 else f"{each['rule']}: {each['text']}"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────


def table(*header: str, rows: Sequence[Sequence[object]], numbers: int = 0) -> Table:
    """Rows below a header, the last `numbers` columns to the right."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for at, name in enumerate(header):
        is_number = at >= len(header) - numbers
        made.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for row in rows:
        made.add_row(*(Text(printable(str(each))) for each in row))
    return made


def rules_table(facts: Facts, rule: str | None = None) -> Table:
    """A row for each rule."""
    rows = [_rule_row(name, each) for name, each in facts["rules"].items() if rule in (None, name)]
    header = ("rule", "proved", "by events", "lag", "waits", "runs", "failed", "held", "in 1 h", "p99")
    return table(*header, rows=rows, numbers=7)


def _rule_row(name: str, rule: Facts) -> list[str]:
    states = [sum(rule["entries"][state].values()) for state in ("waiting", "running", "failed", "held")]
    hour = rule["last_hour"]
    p99 = hour["lag_s"]["p99"]
    return [
        name,
        short(rule["recovery_point"]),
        short(rule["recovery_point_by_events"]),
        duration(rule["lag_s"]),
        *(f"{number:,}" for number in states),
        f"{hour['objects']:,}",
        "–" if p99 is None else duration(p99),
    ]


def workers_table(facts: Facts) -> Table:
    """A row for each process that replicates."""
    rows = [
        [each["host"], each["pid"], each["threads"], short(each["started_at"]), limits(each["limits"])]
        for each in facts["workers"]
    ]
    return table("process on", "pid", "threads", "since", "requests at once", rows=rows)


def limits(found: Mapping[str, int | None]) -> str:
    """What targets slow a process down to."""
    told = [f"{target}: {limit}" for target, limit in sorted(found.items()) if limit is not None]
    return ", ".join(told) or "not limited"


def sweep_line(sweep: Facts) -> str:
    """How far a sweep is, or what came of it."""
    found = ", ".join(f"{sweep[name]:,} {name}" for name in ("missing", "different", "extra") if sweep[name])
    line = f"sweep {sweep['id']} of {sweep['rule']}"
    line += f" below {sweep['prefix']!r}" if sweep["prefix"] else ""
    line += f": {sweep['state']}, {count(sweep['compared'], 'object')} compared"
    line += f" ({found})" if found else ", no difference" if sweep["state"] == "complete" else ""
    return f"{line}: {sweep['error']}" if sweep["error"] and sweep["state"] == "open" else line


def reasons_table(reasons: Sequence[Facts]) -> Table:
    """What failed by what."""
    rows = [[each["rule"], each["reason"], short(each["since"]), f"{each['number']:,}"] for each in reasons]
    return table("rule", "reason", "since", "objects", rows=rows, numbers=1)


def failures_table(failures: Sequence[Facts]) -> Table:
    """What failed."""
    rows = [[each["rule"], each["key"], each["error_code"], each["error"]] for each in failures]
    return table("rule", "key", "reason", "error", rows=rows)


def records_table(records: Sequence[Facts]) -> Table:
    """What is in quarantine."""
    rows = [
        [each["record_id"], each["reason"], each["raw"], short(each["last_seen_at"]), each["times_seen"]]
        for each in records
    ]
    return table("record", "why", "as it came", "last seen", "times", rows=rows, numbers=1)


def short(at: str | None) -> str:
    """A time of the service, UTC: "06:12:44" today, "11-24 23:59" on other days; "–" for none."""
    if at is None:
        return "–"
    date, clock, _ = moment(at).split()
    return clock if date == f"{datetime.now(UTC):%Y-%m-%d}" else f"{date[5:]} {clock[:5]}"


# ── one key ──────────────────────────────────────────────────────────────────────────────────────────


def story(entry: Facts, status: Facts, now: float) -> Iterator[str]:
    """Everything of one entry in lines: what it is, what happened, what happens next; `now`: since 1970."""
    rule = status["rules"].get(entry["rule"])
    place = f"{rule['source']} → {rule['target']}" if rule else "no rule of that name is in force"
    yield f"{entry['key']}  (rule {entry['rule']}: {place})"
    yield f"  {_is(entry)}."
    yield f"  first seen  {_at(entry['first_seen_at'])}"
    yield f"  last event  {_at(entry['event_at'])}" + (", of a removal" if entry["removal_told"] else "")
    for name in ("source", "target"):
        if entry[f"{name}_etag"]:
            yield f"  {name} ETag {entry[f'{name}_etag']}"
    if entry["cid"]:
        yield f"  CID         {entry['cid']}"
    for each in entry["lost"]:
        yield f"  not held by the target: {each}"
    for each in entry["attempts_made"]:
        yield f"  {_attempt(each)}"
    yield f"  Next: {_next(entry, status, now)}"


def _is(entry: Facts) -> str:
    size = f", {in_units(entry['size'])}" if entry["size"] is not None else ""
    if entry["state"] == "settled":
        return f"{_ENDS.get(entry['outcome'], entry['outcome'])}, {_at(entry['settled_at'])}{size}"
    words = {
        "waiting": "Waiting",
        "running": "Being worked on",
        "failed": "Failed",
        "held": "Delete held back",
    }
    since = f" since {_at(entry['asked_at'])}" if entry["asked_at"] else ""
    error = f", {entry['error_code']}" if entry["error_code"] else ""
    return f"{words[entry['state']]}{since}{error}"


def _attempt(each: Facts) -> str:
    took = duration(max(0.0, each["ended_at"] - each["claimed_at"]))
    line = f"{_at(each['claimed_at'])}  {each['result']} after {took}"
    if each.get("bytes_copied"):
        line += f", {in_units(each['bytes_copied'])}"
    line += f", by {_process(each['worker'])}"
    return f"{line}: {each['error']}" if each.get("error") else line


def _process(worker: str) -> str:
    parts = worker.rsplit(":", 3)  # as webhook.processes names them
    return f"{parts[0]} pid {parts[1]}" if len(parts) == 4 else worker


def _next(entry: Facts, status: Facts, now: float) -> str:
    narrowed = f"--rule {shlex.quote(entry['rule'])}"
    rule = status["rules"].get(entry["rule"])
    match entry["state"]:
        case "settled":
            return _NOTHING_NEXT
        case "failed":
            what = f"{OPERATE} retry --key {shlex.quote(entry['key'])} {narrowed}"
            return f"it will not be tried again by itself. Mend the cause, then: {what}"
        case "held":
            return HELP["decide"].format(rule=narrowed)
        case "running":
            return "the process that has it ends it; should that die, another one takes it over."
    if entry["due_at"] == PARKED_AT or (rule and rule["paused_since"]):
        return f"it is done once the rule is resumed: {OPERATE} resume {narrowed}"
    if not status["workers"]:
        return f"no process replicates: {HELP['work']}"
    waits_s = (entry["due_at"] or 0.0) - now
    what = "looked at again before the copy is deleted" if entry["gone_at"] else "tried again"
    return f"{what} in {duration(waits_s)}." if waits_s > 0 else "it is done as soon as a thread is free."


def _at(seconds: float | None) -> str:
    if not seconds:
        return "an unknown time"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
