"""What scripts/doctor.py looks at in the source: the store, its buckets, and whom it tells of changes."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import urllib3
from minio.error import InvalidResponseError, MinioAdminException, S3Error, ServerError
from minio.notificationconfig import QueueConfig

from config.configure_minio import (
    EVENTS,
    IDS,
    QUEUE_ID,
    Setup,
    is_for,
    is_wanted,
    reason,
)
from config.configure_minio import Settings as Wanted
from scripts.doctor_ledger import say_skew
from scripts.doctor_report import Bound, Report, mend_of
from webhook.errors import ReplicatorError, StoreDenied, StoreError
from webhook.reconcile import Sides
from webhook.rules import Rule, is_glob
from webhook.settings import Settings

BUCKETS_MAX = 50
"""Looked at, where globs match more."""
CONFIGURE = "python config/configure_minio.py"
_SAID = (S3Error, ServerError, InvalidResponseError, MinioAdminException, urllib3.exceptions.HTTPError)


# ── the store and its buckets ────────────────────────────────────────────────────────────────────────────


def buckets_of(sides: Sides, report: Report, bound: Bound) -> list[str]:
    """The source buckets that are there and can be read; says of each that is not."""
    names = list(sides.rules.literal_buckets)
    if sides.rules.has_globs:
        names += _matched(sides, report)
    usable = []
    for name in dict.fromkeys(names[:BUCKETS_MAX]):
        bound.check()
        if _is_usable(sides, name, report):
            usable.append(name)
    if usable:
        check_clock(sides, usable[0], report)
    if len(names) > BUCKETS_MAX:
        report.note(f"{len(names) - BUCKETS_MAX} more buckets match, and were not looked at")
    return usable


def _matched(sides: Sides, report: Report) -> list[str]:
    """The buckets that the globs of the rules stand for."""
    there = sides.source.buckets()
    for template in sides.rules:
        globs = [source for source in template.sources if is_glob(source)]
        if globs and not any(template.matches(name) for name in there):
            text = f"rule {template.name}: no bucket matches {', '.join(globs)}"
            report.wrong(text, "Create the bucket, or correct MINIO_BUCKET or the file of rules.")
    found = [name for name in there if any(template.matches(name) for template in sides.rules)]
    if found:
        report.fine(f"buckets that the rules match: {', '.join(found[:10])}{' …' * (len(found) > 10)}")
    return found


def _is_usable(sides: Sides, bucket: str, report: Report) -> bool:
    """The bucket answers, and its objects can be listed and looked at."""
    try:
        objects = sides.source.page(bucket, "").objects
        if objects:
            sides.source.head(bucket, objects[0].key)
    except ReplicatorError as error:
        missing = f"mc mb SOURCE/{bucket}      # or correct its name in MINIO_BUCKET or the file of rules"
        report.wrong(f"bucket {bucket}: {error.message}", mend_of(error, "MINIO", missing), bucket=bucket)
        return False
    report.fine(f"bucket {bucket}: there, can be read{'' if objects else '; it is empty'}", bucket=bucket)
    if objects:
        _check_tags(sides, bucket, objects[0].key, report)
    return True


def _check_tags(sides: Sides, bucket: str, key: str, report: Report) -> None:
    """That tags may be read; a store without them, or an object that went meanwhile, is no matter here."""
    if not any(rule.tags for rule in sides.rules.of_buckets([bucket])):
        return
    try:
        sides.source.tags(bucket, key)
    except StoreDenied as error:
        text = f"bucket {bucket}: tags cannot be read, so no object that has some is copied ({error.message})"
        mend = "Allow s3:GetObjectTagging to the access key, or say tags = false in the file of rules."
        report.note(text, mend, bucket=bucket)
    except StoreError:
        pass


def check_clock(sides: Sides, bucket: str, report: Report) -> None:
    """The source's clock beside this machine's."""
    asked_at = time.time()
    told = sides.source.time(bucket)
    took_s = time.time() - asked_at
    if told:  # in whole seconds
        say_skew(report, "the source's clock", told - asked_at - took_s / 2, exact_s=1.0 + took_s / 2)


# ── whom it tells ────────────────────────────────────────────────────────────────────────────────────────


def setup_of(configured: Settings) -> Setup:
    """The clients of config/configure_minio.py for this source."""
    source = configured.source
    wanted = Wanted(
        endpoint=source.endpoint_url,
        access_key=source.access_key,
        secret_key=source.secret_key,
        buckets=(),
        webhook_url="",
        auth_token="",
        queue_dir="",
        queue_limit="",
        region=source.region,  # else the keys would need s3:GetBucketLocation
    )
    return Setup(wanted, argparse.Namespace())


def check_bindings(setup: Setup, rules: Sequence[Rule], report: Report, bound: Bound) -> None:
    """Whether each source bucket tells of all changes, by a way with a queue and one without."""
    unbound: list[str] = []
    for bucket in dict.fromkeys(rule.source_bucket for rule in rules):
        bound.check()
        try:
            queues = setup.client.get_bucket_notification(bucket_name=bucket).queue_config_list
        except _SAID as error:
            report.skipped(
                f"bucket {bucket}: whom it tells of changes cannot be seen ({reason(error)})",
                "Allow s3:GetBucketNotification to the access key, to have that checked.",
            )
            continue
        if not _say_binding(bucket, queues, [rule for rule in rules if rule.source_bucket == bucket], report):
            unbound.append(bucket)
    if unbound:
        text = f"not bound, or not to all events: {', '.join(unbound)}; changes are found by sweeps only"
        report.wrong(text, CONFIGURE, buckets=unbound)


def _say_binding(bucket: str, queues: Iterable[QueueConfig], rules: Sequence[Rule], report: Report) -> bool:
    """Gives whether it is bound, and says to what."""
    complete = [queue for queue in queues if _tells_all(queue, rules)]
    own = [each for each in IDS if any(is_for(queue, each) and is_wanted(queue) for queue in complete)]
    names = [(queue.queue or "").removeprefix("arn:minio:sqs:").strip(":") for queue in complete]
    if not complete:
        return False
    if own and len(own) < len(IDS):
        missing = ", ".join(each for each in IDS if each not in own)
        report.wrong(f"bucket {bucket}: {missing} is not bound, only {', '.join(own)}", CONFIGURE)
    else:
        report.fine(f"bucket {bucket}: tells of all changes by {', '.join(names)}", bucket=bucket)
    if len(complete) == 1 and not own:
        report.note(f"bucket {bucket}: only one target: two are faster (docs/ARCHITECTURE.md)", CONFIGURE)
    return True


def _tells_all(queue: QueueConfig, rules: Sequence[Rule]) -> bool:
    """Whether it tells of all that these rules want to know."""
    events = set(queue.events)
    prefix, suffix = (
        each.value or "" if each else "" for each in (queue.prefix_filter_rule, queue.suffix_filter_rule)
    )
    covered = all(
        rule.prefix.startswith(prefix) and (not suffix or rule.suffix.endswith(suffix)) for rule in rules
    )
    return set(EVENTS) <= events and covered


def check_targets(setup: Setup, report: Report) -> None:
    """The notification targets as MinIO's administration shows them, where it lets us see."""
    try:
        stored = setup.admin.config_get(key="notify_webhook")
    except (*_SAID, UnboundLocalError):  # the latter is what minio-py makes of a refusal
        report.skipped("MinIO's notification targets are not shown: not to these keys, or not by this server")
        return
    _say_targets(_targets(stored), report)


def _say_targets(found: Mapping[str, Mapping[str, str]], report: Report) -> None:
    own = {name: found[name] for name in IDS if name in found}
    if not own:
        report.skipped("REPLICATOR_NOW and REPLICATOR_QUEUE are not stored at MinIO: set in its environment?")
        return
    for name, settings in own.items():
        report.fine(f"{name} sends to {settings.get('endpoint', '')}", target=name)
    if QUEUE_ID in own and not own[QUEUE_ID].get("queue_dir"):
        text = f"{QUEUE_ID} has no queue_dir: events are lost while the service is away"
        report.wrong(text, f"Set WEBHOOK_QUEUE_DIR, then {CONFIGURE}")


def _targets(stored: str) -> dict[str, dict[str, str]]:
    """Name → settings, from lines such as `notify_webhook:NAME endpoint=… queue_dir=…`; those of MinIO's
    environment stand behind `# MINIO_NOTIFY_WEBHOOK_ENDPOINT_NAME=`.
    """
    found: dict[str, dict[str, str]] = {}
    for line in stored.splitlines():
        if line.startswith("notify_webhook:"):
            name, *words = line.removeprefix("notify_webhook:").split()
            pairs = (word.partition("=") for word in words)
            found.setdefault(name, {}).update({key: value.strip('"') for key, _, value in pairs})
        by_environment = re.match(
            r"# MINIO_NOTIFY_WEBHOOK_([A-Z]+(?:_[A-Z]+)?)_(REPLICATOR_[A-Z]+)=(.*)", line
        )
        if by_environment:
            key, name, value = by_environment.groups()
            found.setdefault(name, {})[key.lower()] = value.strip('"')
    return found


def check_live(setup: Setup, report: Report) -> None:
    """Whether MinIO takes its targets for reachable; only MinIO itself tells, and only an administrator."""
    try:
        told = json.loads(setup.admin.info())
    except (*_SAID, ValueError):
        report.skipped(
            "whether MinIO reaches its targets is not shown: not to these keys, or not by this server"
        )
        return
    states = dict(_states(told))
    for name, state in states.items():
        if state == "online":
            report.fine(f"MinIO reaches {name}", target=name)
        else:
            mend = "Start the service; check WEBHOOK_URL as seen from MinIO; then restart MinIO."
            report.wrong(f"MinIO does not reach {name} ({state})", mend, target=name)
    if not states:
        report.skipped("MinIO names none of our targets as live or not")


def _states(told: Any) -> Iterable[tuple[str, str]]:
    """Our targets → "online" or "offline", wherever they stand: {"NAME": {"status": …}}."""
    if isinstance(told, list):
        for each in told:
            yield from _states(each)
    elif isinstance(told, dict):
        for name, value in told.items():
            if name in IDS and isinstance(value, dict) and isinstance(value.get("status"), str):
                yield name, value["status"]
            else:
                yield from _states(value)
