"""The service at work on this machine: real servers, real notifications, a kill -9, an independent judge.

It starts a server with MinIO's API, another maker's S3 server and this service, all on the loopback address;
shows that what was there before is copied; lets the script in config/ set up MinIO's notifications; writes
objects to the first server and watches them arrive at the second; kills the service while more are written,
and starts it again; has rclone compare both sides byte by byte. On a terminal it then stays up until
Ctrl-C. It leaves no process and no file behind.

Exit status: 0 both sides are equal, 1 they are not or something failed, 128 + n ended early by signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from scripts.demo_stage import (
    ANSWER_BOUND_S,
    ARRIVAL_BOUND_S,
    CRASH_OBJECTS,
    CRASH_THREADS,
    FAILURES,
    KEY_COLUMNS,
    KIB,
    KILL_AFTER_OBJECTS,
    LOG_LINES,
    LOOK_S,
    MIB,
    OLD_OBJECTS,
    PROGRESS_S,
    RECOVERY_BOUND_S,
    SAMPLES,
    SOURCE,
    TARGET,
    WIDTH_COLUMNS,
    Demo,
    DemoError,
    Interrupted,
    Interrupts,
    Sample,
    connect,
    prepare,
    put,
    set_up_notifications,
    start_servers,
)
from scripts.local_servers import REGION, S3Server
from scripts.local_service import API_TOKEN
from scripts.local_tools import find_mc, rclone_check

# ── first act: what was there before ─────────────────────────────────────────────────────────────────


def show_old_objects(demo: Demo) -> None:
    """Waits until the service's first sweep has had them copied. Raises: DemoError at the bound."""
    demo.title(f"{OLD_OBJECTS} objects were there before the service: its first sweep finds them")
    deadline = time.monotonic() + ARRIVAL_BOUND_S
    while not (found := rule_status(demo))["recovery_point"] or demo.service.unsettled():
        if time.monotonic() > deadline or demo.dead():
            raise DemoError(f"the first sweep does not end: {found}")
        time.sleep(LOOK_S)
    sweep = found["sweep"]
    demo.say(f"Both sides listed, {sweep['missing']} missing at the target, all of them copied and verified.")
    demo.say(f"The target is proved complete up to {found['recovery_point']}.", "green")


def rule_status(demo: Demo) -> dict[str, Any]:
    """What the service says of its rule."""
    answer = demo.service.get("/v1/status")
    answer.raise_for_status()
    return dict(answer.json()["rules"]["default"])


# ── second act: every kind of object ─────────────────────────────────────────────────────────────────


def show_objects(demo: Demo) -> list[str]:
    """Writes every sample, one after the other; gives what is wrong, which should be nothing."""
    demo.title(f"{len(SAMPLES)} objects, each copied because MinIO told of it")
    print_row(demo, "object", "size", "PUT→copy", "ETags", style="dim")
    problems, small_ms = [], []
    with demo.console.status("") as status:
        for sample in SAMPLES:
            status.update(Text(f"{sample.key} ({_size(sample.size)})"))
            lag_ms, note = write_and_watch(demo, sample)
            small_ms += [lag_ms] if sample.size < MIB else []
            here, there = facts(demo.source, SOURCE, sample.key), facts(demo.target, TARGET, sample.key)
            unequal = sorted(name for name in here | there if here.get(name) != there.get(name))
            problems += [f"{sample.key}: its {name} differs" for name in unequal]
            lag = f"{lag_ms:,.0f} ms" if lag_ms >= 1 else "<1 ms"  # even below 0: done before PUT's answer
            etags = f"{'≠' if 'ETag' in unequal else '='} {here['ETag'][:8]}"
            note, style = (f"UNEQUAL: {', '.join(unequal)}", "red") if unequal else (note, "")
            print_row(demo, sample.key, _size(sample.size), lag, etags, note, style=style)
    median_ms = statistics.median(small_ms)
    demo.say(f"Below 1 MiB: {median_ms:.0f} ms median from the PUT's return to a verified copy.", "green")
    return problems


def print_row(demo: Demo, key: str, size: str, lag: str, etags: str, note: str = "", style: str = "") -> None:
    if cell_len(key) > KEY_COLUMNS:
        key = set_cell_size(key, KEY_COLUMNS - 1).rstrip() + "…"
    line = f"  {set_cell_size(key, KEY_COLUMNS)} {size:>7} {lag:>8}  {etags:<11} {note}".rstrip()
    demo.console.print(Text(line, style), no_wrap=True, overflow="ellipsis")


def write_and_watch(demo: Demo, sample: Sample) -> tuple[float, str]:
    """Writes a sample and waits for its copy; gives the milliseconds between the two, and a note."""
    store, begun_at = connect(demo.source), 0.0
    if sample.size_before:
        put(store, sample, sample.size_before)
        wait_for_entry(demo, sample.key, lambda entry: bool(entry["state"] != "waiting"))
        begun_at = time.time()
    for _ in range(sample.writes):
        etag, returned_at = put(store, sample, sample.size)
    copied = ("settled", etag)
    entry = wait_for_entry(demo, sample.key, lambda entry: (entry["state"], entry["source_etag"]) == copied)
    notes = ["metadata, tags too"] if sample.tags else []
    notes += [f"in {etag.partition('-')[2]} parts"] if "-" in etag else []
    notes += [f"last of {sample.writes} writes"] if sample.writes > 1 else []
    if any(attempt["claimed_at"] < begun_at < attempt["ended_at"] for attempt in entry["attempts_made"]):
        notes.append(f"replaced {_size(sample.size_before)}")
    return (entry["settled_at"] - returned_at) * 1000, ", ".join(notes)


def wait_for_entry(demo: Demo, key: str, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The entry once it is as wanted. Raises: DemoError at the bound."""
    deadline = time.monotonic() + ARRIVAL_BOUND_S
    while not ((entry := demo.entry(key)) and is_wanted(entry)):
        if time.monotonic() > deadline or demo.dead():
            raise DemoError(f"not copied, and no longer waited for: {fate(demo, key)}")
        time.sleep(LOOK_S)
    return entry


def facts(server: S3Server, bucket: str, key: str) -> dict[str, str]:
    """What a store itself says of an object, by name."""
    store = connect(server)
    found = store.stat_object(bucket_name=bucket, object_name=key)
    headers = {name.lower(): value for name, value in (found.metadata or {}).items()}
    kept = {name: headers[name] for name in headers if name.startswith(("content-type", "x-amz-meta-"))}
    tags: Mapping[str, str] = store.get_object_tags(bucket_name=bucket, object_name=key) or {}
    return kept | {f"tag {name}": value for name, value in tags.items()} | {"ETag": found.etag or ""}


def fate(demo: Demo, key: str) -> str:
    """What became of a key, for a message."""
    entry = demo.entry(key)
    told = f"{entry['state']}, {entry['error'] or 'no error'}" if entry else "no event of it came"
    return f"{key}: {told}"


# ── third act: kill -9 ──────────────────────────────────────────────────────────────────────────────


def crash(demo: Demo) -> None:
    """Kills the service amid uploads, starts it again, and waits until all is at the target."""
    demo.title("kill -9 of the service, while objects are written")
    etags: dict[str, str] = {}
    killed_at = write_and_kill(demo, etags)
    started_at = time.time()
    with demo.interrupts.held():
        demo.service.start()
    demo.say(f"The service was started again; it answers after {time.time() - started_at:.1f} s.")
    wait_for_recovery(demo, etags, started_at)
    entries = [demo.entry(key) for key in etags]
    complete = sum(1 for entry in entries if entry["settled_at"] < killed_at)
    queued = sum(1 for entry in entries if entry["first_seen_at"] > started_at)
    demo.say(f"{complete:4} had been copied before the kill")
    demo.say(f"{len(entries) - complete - queued:4} were accepted, not copied: the ledger had them on disk")
    demo.say(f"{queued:4} became known after the restart: MinIO's queue had kept the events")
    demo.say("   0 lost: all have the same ETag on both sides", "green")


def write_and_kill(demo: Demo, etags: dict[str, str]) -> float:
    """Writes a large object, then small ones in threads, and kills amid them; gives the time of death."""
    store, enough = connect(demo.source), threading.Event()

    def write(sample: Sample) -> None:
        etags[sample.key], _ = put(store, sample, sample.size)
        if len(etags) > KILL_AFTER_OBJECTS:
            enough.set()

    write(Sample("crash/64-MiB.bin", 64 * MIB))
    with ThreadPoolExecutor(CRASH_THREADS) as pool:
        uploads = [pool.submit(write, Sample(f"crash/{number}.txt")) for number in range(CRASH_OBJECTS)]
        enough.wait(ANSWER_BOUND_S)
        with demo.interrupts.held():
            demo.service.kill()
        killed_at, before = time.time(), len(etags)
        for upload in uploads:
            upload.result()
    demo.say(f"{before} objects were written, one of 64 MiB, when all processes of the service were killed;")
    demo.say(f"{len(etags) - before} more were written while there was no service.")
    return killed_at


def wait_for_recovery(demo: Demo, etags: Mapping[str, str], started_at: float) -> None:
    """Until nothing is left to do, and the target lists each object with the source's ETag."""
    target, missing, told_s, passed_s = connect(demo.target), set(etags), 0.0, 0.0
    while missing or demo.service.unsettled():
        if passed_s > RECOVERY_BOUND_S or demo.dead():
            fates = "; ".join(fate(demo, key) for key in sorted(missing)[:3])
            raise DemoError(f"{len(missing)} not copied, {demo.service.unsettled()} unsettled. {fates}")
        time.sleep(LOOK_S)
        listed = target.list_objects(bucket_name=TARGET, prefix="crash/", recursive=True)
        missing -= {one.object_name for one in listed if etags[one.object_name or ""] == one.etag}
        passed_s = time.time() - started_at
        if not missing or passed_s - told_s > PROGRESS_S:
            told_s = passed_s
            demo.say(f"{passed_s:4.1f} s: {len(etags) - len(missing)} of {len(etags)} are copied", "dim")


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────


def judge(demo: Demo, problems: list[str]) -> bool:
    """Has rclone read every byte of both sides; gives, and prints, whether all is equal."""
    demo.title("The judge: rclone check --download reads every byte of both sides")
    found = rclone_check(demo.source, SOURCE, demo.target, TARGET, download=True)
    equal = sum(line.startswith("= ") for line in found.output.splitlines())
    expected = OLD_OBJECTS + len(SAMPLES) + 1 + CRASH_OBJECTS
    problems += [f"rclone: {line}" for line in found.differences]
    if not found.ok or equal != expected:
        problems.append(f"rclone found {equal} of {expected} objects equal")
    for problem in problems:
        demo.say(problem, "red")
    if problems:
        demo.say("✘ The sides are NOT equal (rclone: + not at the target, - only there, * other).", "red")
        return False
    demo.say(f"✔ All {equal} objects are equal, none is missing, none is too many.", "bold green")
    return True


def stay_up(demo: Demo) -> None:
    """Says where to look, until interrupted."""
    source, mc = demo.source, find_mc()
    keys = f"{source.access_key}:{source.secret_key}"
    write = f"curl -T README.md -u {keys} --aws-sigv4 aws:amz:{REGION}:s3 {source.endpoint}/{SOURCE}/"
    if mc:
        alias = source.endpoint.replace("://", f"://{keys}@")
        write = f"MC_HOST_demo={alias} {os.path.relpath(mc)} cp README.md demo/{SOURCE}/"
    api = f"curl -H 'Authorization: Bearer {API_TOKEN}' {demo.service.url}/v1"
    demo.title("All of it stays up until Ctrl-C")
    for label, text in {
        "source": f"{source.endpoint}, bucket {SOURCE}, {keys.replace(':', ' / ')}",
        "target": f"{demo.target.endpoint}, bucket {TARGET}, same keys",
        "write": write,
        "look": f"{api}/entries/default/README.md",
        "status": f"{api}/status",
    }.items():
        demo.console.print(Text(f"  {label:<7} {text}"), soft_wrap=True)
    with contextlib.suppress(Interrupted):
        threading.Event().wait()


def explain(demo: Demo, error: Exception) -> None:
    """What went wrong, who is not running, and the end of the service's log."""
    demo.title("The demo failed")
    demo.say(str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}", "red")
    time.sleep(PROGRESS_S)  # what is just dying is dead then
    for name in demo.dead():
        demo.say(f"{name} is not running", "red")
    demo.say("The end of the service's log:")
    for line in demo.service.log_tail().splitlines()[-LOG_LINES:]:
        demo.say(line, "dim", prefix="  │ ")


def _size(size: int) -> str:
    if size < KIB:
        return f"{size} B"
    return f"{size // KIB} KiB" if size < MIB else f"{size // MIB} MiB"


def perform(demo: Demo) -> int:
    """All of it, in order; gives the exit status."""
    begun_at = time.monotonic()
    try:
        start_servers(demo)
        show_old_objects(demo)
        set_up_notifications(demo)
        problems = show_objects(demo)
        crash(demo)
        is_equal = judge(demo, problems)
        demo.say(f"{time.monotonic() - begun_at:.0f} s in all.", "dim")
        if demo.console.is_terminal:
            stay_up(demo)
    except FAILURES as error:
        explain(demo, error)
        return 1
    return 0 if is_equal else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as the module's text has it."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m scripts.demo", description=__doc__, formatter_class=shape)
    parser.parse_args(arguments)
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else WIDTH_COLUMNS
    console = Console(highlight=False, markup=False, force_terminal=is_terminal, width=width)
    interrupts = Interrupts()
    with contextlib.ExitStack() as stack:
        demo = prepare(stack, console, interrupts)
        try:
            interrupts.release()
            return perform(demo)
        except Interrupted:
            return 128 + interrupts.received
        finally:
            interrupts.holds += 1
            if interrupts.received:
                demo.title("Stopping the servers and removing their files.")


if __name__ == "__main__":
    sys.exit(main())
