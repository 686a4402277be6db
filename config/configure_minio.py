"""Makes MinIO report every change of its buckets to this service: config/minio-webhook.sh without mc.

Same options, settings, messages and exit status; `--help` lists them. RULES_FILE is read here only.
Two notification targets are bound to every bucket: REPLICATOR_NOW is sent at once and tried once,
REPLICATOR_QUEUE waits on MinIO's disk until it was accepted. Safe to repeat; other targets'
notifications are left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from dotenv import dotenv_values
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import InvalidResponseError, MinioAdminException, S3Error, ServerError
from minio.notificationconfig import NotificationConfig, QueueConfig

NOW_ID = "REPLICATOR_NOW"  # also the suffix of MINIO_NOTIFY_WEBHOOK_*: letters, digits and _ only
QUEUE_ID = "REPLICATOR_QUEUE"
IDS = (NOW_ID, QUEUE_ID)
QUEUE_LIMIT_EVENTS = 100_000
EVENTS = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
WAIT_DEFAULT_S = 120
WAIT_MAX_S = 999_999
PROBE_BOUND_S = 5.0
CONNECT_BOUND_S = 10.0
ANSWER_BOUND_S = 60.0
POLL_S = 1.0

MINIO_NAMES = ("MINIO_ENDPOINT", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "MINIO_BUCKET")
WEBHOOK_NAMES = ("WEBHOOK_URL", "WEBHOOK_AUTH_TOKEN", "WEBHOOK_QUEUE_DIR")
SECRET_NAMES = ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "WEBHOOK_AUTH_TOKEN")
"""They may also stand in files, which NAME_FILE names."""
SECRET_MAX_BYTES = 16_384
# a name, or a glob
BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]|[a-zA-Z0-9._-]*[*?][a-zA-Z0-9._*?-]*")
WORDS = ("MINIO_ENDPOINT", *WEBHOOK_NAMES)
HINTS = {
    "NoSuchBucket": "the bucket doesn't exist; create it, or name others in MINIO_BUCKET",
    "SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied": (
        "check MINIO_ACCESS_KEY and MINIO_SECRET_KEY; they must be an administrator's"
    ),
    "not connected to target|targets are offline": (
        "MinIO can't reach WEBHOOK_URL; start the service first, or correct the address as seen from MinIO"
    ),
    "CERTIFICATE_VERIFY_FAILED": "MinIO's certificate isn't trusted; set MINIO_CA_BUNDLE to its CA",
    "WRONG_VERSION_NUMBER|RECORD_LAYER": "MINIO_ENDPOINT must begin with http://, this server has no TLS",
}
EPILOG = f"""\
Settings, from the environment, else from .env: {", ".join(MINIO_NAMES + WEBHOOK_NAMES)};
optional WEBHOOK_QUEUE_LIMIT, MINIO_CA_BUNDLE and SSL_CERT_FILE. config/minio-webhook.sh --help explains each.
A key or token may stand in a file that NAME_FILE names, such as MINIO_SECRET_KEY_FILE.
Where MINIO_BUCKET is not set, RULES_FILE is read: the buckets are the sources of its rules.

Exit status: 0 done, 1 failed, 2 wrong use."""
_SAID_BY_SERVER = (MinioAdminException, S3Error, ServerError, InvalidResponseError, ParseError)


class SetupError(Exception):
    """It failed; the message says what to do. Exit status 1."""


class UsageError(Exception):
    """The options or settings can't be used. Exit status 2."""


@dataclass(frozen=True)
class Settings:
    """What to set up where; strings that are not needed may be empty."""

    endpoint: str
    access_key: str
    secret_key: str
    buckets: tuple[str, ...]  # names and globs
    webhook_url: str
    auth_token: str
    queue_dir: str
    queue_limit: str
    region: str = ""
    """Without it, MinIO is asked for each bucket's."""

    @property
    def has_globs(self) -> bool:
        return any(is_glob(bucket) for bucket in self.buckets)

    def target(self, target_id: str) -> dict[str, str]:
        """The configuration of one of our targets."""
        config = {"endpoint": self.webhook_url, "auth_token": self.auth_token}
        if target_id == QUEUE_ID:
            config |= {"queue_dir": self.queue_dir, "queue_limit": self.queue_limit}
        return config


def read_settings(*, needed: Iterable[str]) -> Settings:
    """From the environment, else from .env here or in the repository. Raises: UsageError."""
    secret_files = (f"{name}_FILE" for name in SECRET_NAMES)
    names = (*MINIO_NAMES, *WEBHOOK_NAMES, *secret_files, "WEBHOOK_QUEUE_LIMIT", "RULES_FILE")
    files = (Path(".env"), Path(__file__).resolve().parent.parent / ".env")
    path = next((path for path in files if path.is_file()), None)
    from_file = dotenv_values(dotenv_path=path, interpolate=False) if path else {}
    values = {name: os.environ.get(name) or from_file.get(name) or "" for name in names}
    found = read_secrets(values)
    where = "RULES_FILE" if values["RULES_FILE"] and not values["MINIO_BUCKET"] else "MINIO_BUCKET"
    missing = [name for name in needed if not values[where if name == "MINIO_BUCKET" else name]]
    missing = [name for name in missing if not values.get(f"{name}_FILE")]  # that has been told
    found += [f"not set: {', '.join(missing)} (in the environment or in .env)"] if missing else []
    found += problems(values)
    buckets = values["MINIO_BUCKET"].replace(",", " ").split()
    if where == "RULES_FILE":
        buckets = sources_of(Path(values["RULES_FILE"]))
    elif values["MINIO_BUCKET"] and not buckets:
        found.append("MINIO_BUCKET names no bucket")
    found += [f"{where}: '{name}' is no bucket name" for name in buckets if not BUCKET.fullmatch(name)]
    if found:
        raise UsageError("the settings can't be used:\n  " + "\n  ".join(found))
    return Settings(
        endpoint=values["MINIO_ENDPOINT"].removesuffix("/"),
        access_key=values["MINIO_ACCESS_KEY"],
        secret_key=values["MINIO_SECRET_KEY"],
        buckets=tuple(buckets),
        webhook_url=values["WEBHOOK_URL"],
        auth_token=values["WEBHOOK_AUTH_TOKEN"],
        queue_dir=values["WEBHOOK_QUEUE_DIR"],
        queue_limit=values["WEBHOOK_QUEUE_LIMIT"] or str(QUEUE_LIMIT_EVENTS),
    )


def read_secrets(values: dict[str, str]) -> list[str]:
    """Puts in place what stands in files, as the service does, and tells what is wrong with them."""
    found = []
    for name in SECRET_NAMES:
        path = Path(values[f"{name}_FILE"])
        if not values[f"{name}_FILE"]:
            continue
        try:
            if values[name]:
                found.append(f"{name} and {name}_FILE are both set: leave one of them empty")
            elif not path.is_file() or path.stat().st_size > SECRET_MAX_BYTES:
                found.append(f"{name}_FILE {path} must be a file of {SECRET_MAX_BYTES} bytes at most")
            else:
                values[name] = path.read_text("utf-8").strip()
                if not values[name] or not values[name].isprintable():
                    found.append(f"{name}_FILE {path} must hold one line of text")
        except OSError as error:
            found.append(f"{name}_FILE {path} can't be read: {error.strerror}")
        except UnicodeDecodeError:
            found.append(f"{name}_FILE {path} is not UTF-8")
    return found


def sources_of(path: Path) -> list[str]:
    """The names and globs that the rules of a TOML file have as their source. Raises: UsageError."""
    try:
        rules = tomllib.loads(path.read_text(encoding="utf-8")).get("rules")
    except (OSError, ValueError) as error:
        raise UsageError(f"RULES_FILE {path} can't be read: {getattr(error, 'strerror', error)}") from error
    if not isinstance(rules, dict) or not rules:
        raise UsageError(f"RULES_FILE {path} has no table [rules.NAME]")
    found: list[str] = []
    for name, rule in rules.items():
        source = rule.get("source") if isinstance(rule, dict) else None
        buckets: list[Any] = source if isinstance(source, list) else [source]
        if not buckets or not all(isinstance(bucket, str) for bucket in buckets):
            raise UsageError(f"RULES_FILE {path}: rule {name} needs a source: a bucket or a list of buckets")
        found += buckets
    return found


def problems(values: dict[str, str]) -> list[str]:
    """What is wrong with the values that are set, without any secret."""
    found = [
        f"{name} must have no spaces and no quotes" for name in WORDS if re.search(r"[\s\"']", values[name])
    ]
    for name in ("MINIO_ENDPOINT", "WEBHOOK_URL"):
        if "@" in values[name]:
            found.append(f"{name} must not contain credentials")
        elif values[name] and not re.match(r"https?://.", values[name]):
            found.append(f"{name} must begin with http:// or https://")
    if "/" in values["MINIO_ENDPOINT"].removesuffix("/").partition("://")[2]:
        found.append("MINIO_ENDPOINT must have no path")
    if values["WEBHOOK_QUEUE_DIR"] and not values["WEBHOOK_QUEUE_DIR"].startswith("/"):
        found.append("WEBHOOK_QUEUE_DIR must begin with /")
    if not re.fullmatch(r"[0-9]*", values["WEBHOOK_QUEUE_LIMIT"]):
        found.append("WEBHOOK_QUEUE_LIMIT must be a number")
    return found


def check_webhook(url: str) -> None:
    """Warns when the service does not answer; it may be reachable from MinIO only."""
    try:
        answer = str(urllib3.request("GET", url, timeout=PROBE_BOUND_S, retries=False, redirect=False).status)
    except urllib3.exceptions.HTTPError:
        answer = "no answer"
    if answer != "200":
        warn(
            f"warning: WEBHOOK_URL {url} does not answer 200 from here ({answer}). "
            "That is fine if only MinIO can reach it; otherwise start the service first"
        )


class Setup:
    """One run against one MinIO."""

    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        self.settings = settings
        self.options = options
        self.buckets = tuple(dict.fromkeys(settings.buckets))
        self.changed = self.asked_by_hand = self.was_down = False
        self.deadline: float | None = None  # set when a restart was asked for
        url = urlsplit(settings.endpoint)
        keys = StaticProvider(access_key=settings.access_key, secret_key=settings.secret_key)
        http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_BOUND_S, read=ANSWER_BOUND_S),
            retries=urllib3.Retry(total=0),
            ca_certs=os.environ.get("MINIO_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        secure = url.scheme == "https"
        self.client = Minio(
            endpoint=url.netloc,
            credentials=keys,
            secure=secure,
            region=settings.region or None,
            http_client=http,
        )
        self.admin = MinioAdmin(endpoint=url.netloc, credentials=keys, secure=secure, http_client=http)

    def run(self) -> None:
        """What the options ask for."""
        if self.settings.has_globs:
            self.buckets = expand(self.buckets, [bucket.name for bucket in self.client.list_buckets()])
        if self.options.dry_run:
            steps = plan(self.settings, self.options, self.buckets)
            say("\n".join([f"Would ask {self.settings.endpoint} to:", *steps, "Nothing was changed."]))
        elif self.options.remove:
            self.remove()
        else:
            self.set_up()

    def set_up(self) -> None:
        """Sets both targets and binds every bucket to them, through MinIO's restart."""
        for bucket in self.buckets:
            self.client.get_bucket_notification(bucket_name=bucket)
        if not self.options.events_only:
            check_webhook(self.settings.webhook_url)
            for target_id in IDS:
                self.set_target(target_id)
            if self.changed:
                self.restart_and_wait()
        for bucket, target_id in product(self.buckets, IDS):
            self.bind(bucket, target_id)
        if self.changed and self.asked_by_hand and not self.was_down:
            warn(
                "warning: MinIO had targets of this name before; the new settings count once it was restarted"
            )
        count = "1 bucket" if len(self.buckets) == 1 else f"{len(self.buckets)} buckets"
        say(f"Done: MinIO reports every change of {count} to the service.")
        if self.settings.has_globs:
            say("Buckets made later need this to be run again; it is safe to repeat.")

    def remove(self) -> None:
        """Takes away our events and, unless only those were asked for, our targets."""
        for bucket, target_id in product(self.buckets, IDS):
            self.unbind(bucket, target_id)
        if not self.options.events_only:
            for target_id in IDS:
                self.reset_target(target_id)
            if self.changed and not self.restart():
                say(
                    "Restart your MinIO process when it suits you; until then the idle targets stay "
                    "in its memory."
                )
        say("Done: MinIO no longer reports to the service.")

    def set_target(self, target_id: str) -> None:
        """Sets it even when it looks right: some servers show what they started with, not what is stored."""
        was_set = self.target_is_set(target_id)
        self.admin.config_set(key=f"notify_webhook:{target_id}", config=self.settings.target(target_id))
        self.changed = self.changed or not was_set
        say(f"target {target_id}: {'unchanged' if was_set else 'set'}")

    def target_is_set(self, target_id: str) -> bool:
        try:
            words = self.admin.config_get(key=f"notify_webhook:{target_id}").split()
        except UnboundLocalError:  # what minio-py 7.2 makes of the server's refusal
            return False
        except MinioAdminException:
            return False
        wanted = {f"{name}={value}" for name, value in self.settings.target(target_id).items()}
        queues = any(word.startswith("queue_dir=/") for word in words)
        return wanted <= set(words) and queues == (target_id == QUEUE_ID)

    def reset_target(self, target_id: str) -> None:
        try:
            self.admin.config_reset(key="notify_webhook", name=target_id)
        except MinioAdminException as error:
            if not re.search("already deleted|doesn't exist", str(error)):
                raise
            say(f"target {target_id}: was not set")
            return
        self.changed = True
        say(f"target {target_id}: removed")

    def restart(self) -> bool:
        """Asks MinIO to restart. False when somebody else must do it."""
        if self.options.no_restart:
            return False
        try:
            self.admin.service_restart()
        except MinioAdminException as error:
            refused = "this server can't restart itself"
            warn(refused if "NotImplemented" in str(error) else f"MinIO did not restart: {reason(error)}")
            return False
        except urllib3.exceptions.HTTPError:  # it went down before it answered
            pass
        say("MinIO is restarting")
        return True

    def restart_and_wait(self) -> None:
        if self.deadline is not None:
            return
        self.deadline = time.monotonic() + self.options.wait
        if not self.restart():
            self.asked_by_hand = True
            say(
                "Restart your MinIO process now: it reads its targets only when it starts. "
                f"Waiting up to {self.options.wait} s ..."
            )

    def bind(self, bucket: str, target_id: str) -> None:
        """Binds the whole bucket, what is written and what is deleted; waits for the target."""
        while True:
            try:
                added = self.try_to_bind(bucket, target_id)
            except (*_SAID_BY_SERVER, urllib3.exceptions.HTTPError) as error:
                if not self.may_come_up(target_id, error):
                    raise
            else:
                say(f"bucket {bucket}: {target_id} {'added' if added else 'unchanged'}")
                return

    def may_come_up(self, target_id: str, error: Exception) -> bool:
        """Pauses and says True when another try is worth it. Raises: SetupError at the deadline."""
        if "destination ARN" in str(error):
            self.was_down = True
            if self.options.events_only:
                raise SetupError(
                    f"MinIO has no target {target_id}. Set MINIO_NOTIFY_WEBHOOK_*_{target_id} in its "
                    "environment (config/minio/Dockerfile) and restart it, or run this without --events-only"
                ) from error
            self.restart_and_wait()
        elif self.deadline is None or not is_unreachable(error):
            return False
        else:
            self.was_down = True
        if self.deadline is None or time.monotonic() >= self.deadline:
            raise SetupError(
                f"target {target_id} is not live after {self.options.wait} s. Restart MinIO while the "
                "service answers at WEBHOOK_URL, then run this again: it goes on where it stopped"
            ) from error
        time.sleep(POLL_S)
        return True

    def try_to_bind(self, bucket: str, target_id: str) -> bool:
        """Whether there was anything to do. Setting replaces the whole, so the rest is sent back."""
        current = self.client.get_bucket_notification(bucket_name=bucket)
        ours = [queue for queue in current.queue_config_list if is_for(queue, target_id)]
        if len(ours) == 1 and is_wanted(ours[0]):
            return False
        wanted = QueueConfig(queue=arn(target_id), events=EVENTS)
        self.client.set_bucket_notification(
            bucket_name=bucket, config=without(current, target_id, plus=[wanted])
        )
        return True

    def unbind(self, bucket: str, target_id: str) -> None:
        try:
            current = self.client.get_bucket_notification(bucket_name=bucket)
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            say(f"bucket {bucket}: does not exist")
            return
        if not any(is_for(queue, target_id) for queue in current.queue_config_list):
            say(f"bucket {bucket}: {target_id} was not bound")
            return
        self.client.set_bucket_notification(bucket_name=bucket, config=without(current, target_id))
        say(f"bucket {bucket}: {target_id} removed")


def arn(target_id: str) -> str:
    return f"arn:minio:sqs::{target_id}:webhook"


def is_for(queue: QueueConfig, target_id: str) -> bool:
    """Whether a bucket's configuration is bound to our target; an ARN's region is MinIO's or empty."""
    return re.fullmatch(f"arn:minio:sqs:[^:]*:{target_id}:webhook", queue.queue or "") is not None


def is_wanted(queue: QueueConfig) -> bool:
    filters = [rule for rule in (queue.prefix_filter_rule, queue.suffix_filter_rule) if rule and rule.value]
    return sorted(queue.events) == sorted(EVENTS) and not filters


def without(
    current: NotificationConfig, target_id: str, *, plus: Iterable[QueueConfig] = ()
) -> NotificationConfig:
    kept = [queue for queue in current.queue_config_list if not is_for(queue, target_id)]
    return NotificationConfig(
        cloud_func_config_list=current.cloud_func_config_list,
        queue_config_list=[*kept, *plus],
        topic_config_list=current.topic_config_list,
    )


def is_unreachable(error: Exception) -> bool:
    starting = "ServerNotInitialized" in str(error) or "ServiceUnavailable" in str(error)
    # an empty answer too: some servers give one while they start
    no_answer = urllib3.exceptions.HTTPError | ServerError | InvalidResponseError | ParseError
    return starting or isinstance(error, no_answer)


def reason(error: Exception) -> str:
    """What the server said, in one line."""
    if isinstance(error, MinioAdminException):
        found = re.search(r'"Message":"((?:[^"\\]|\\.)*)"', str(error))
        return json.loads(f'"{found[1]}"') if found else str(error)
    return (error.message if isinstance(error, S3Error) else None) or str(error)


def hint(error: Exception, settings: Settings) -> str:
    """What to do about it."""
    found = (advice for signs, advice in HINTS.items() if re.search(signs, str(error)))
    unreachable = f"MinIO can't be reached at {settings.endpoint}; check MINIO_ENDPOINT, and that MinIO runs"
    return next(found, unreachable if is_unreachable(error) else "see MinIO's log")


def is_glob(bucket: str) -> bool:
    return "*" in bucket or "?" in bucket


def expand(buckets: Iterable[str], existing: list[str]) -> tuple[str, ...]:
    """The buckets meant, none twice. MinIO's own, such as .minio.sys, match nothing. Raises: SetupError."""
    theirs = [name for name in existing if not name.startswith(".")]
    found: list[str] = []
    for bucket in buckets:
        matches = [name for name in theirs if fnmatchcase(name, bucket)] if is_glob(bucket) else [bucket]
        if not matches:
            raise SetupError(
                f"no bucket matches '{bucket}' (MinIO lists {len(theirs)} to these keys). "
                "Hint: create one, or name others in MINIO_BUCKET"
            )
        found += matches
    return tuple(dict.fromkeys(found))


def plan(settings: Settings, options: argparse.Namespace, buckets: Iterable[str]) -> list[str]:
    """What would be requested, in order, without any secret."""
    targets = () if options.events_only else IDS
    verb = "unbind" if options.remove else "bind"
    events = [f"{verb} bucket {name}: {arn(each)} {','.join(EVENTS)}" for name, each in product(buckets, IDS)]
    restart = ["restart MinIO"] if targets and not options.no_restart else []
    if options.remove:
        return [*events, *(f"reset notify_webhook:{target_id}" for target_id in targets), *restart]
    sets = []
    for target_id in targets:
        config = settings.target(target_id) | {"auth_token": "***"}
        sets.append(f"set notify_webhook:{target_id} " + " ".join(f"{k}={v}" for k, v in config.items()))
    return [*sets, *restart, *events]


def say(text: str) -> None:
    print(printable(text), flush=True)


def warn(text: str) -> None:
    print(f"configure_minio: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with everything escaped that a terminal might obey: names and words are MinIO's."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def seconds(text: str) -> int:
    value = int(text)
    if not 0 <= value <= WAIT_MAX_S:
        raise argparse.ArgumentTypeError(f"must be 0 to {WAIT_MAX_S}")
    return value


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="config/configure_minio.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog=EPILOG,
    )
    for option, text in (
        ("--events-only", "only bind (or unbind) the buckets: MinIO's environment has targets"),
        ("--remove", "take away our two targets and their events, nothing else"),
        ("--no-restart", "don't restart MinIO; wait until somebody else did"),
        (
            "--dry-run",
            "print what would be done; MinIO is only asked what a glob stands for",
        ),
    ):
        parser.add_argument(option, action="store_true", help=text)
    wait = "for the restarted MinIO (%(default)s)"
    parser.add_argument("--wait", type=seconds, default=WAIT_DEFAULT_S, metavar="SECONDS", help=wait)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 2 wrong use."""
    options = parse_options(arguments)
    try:
        minio_only = options.remove or options.events_only
        settings = read_settings(needed=MINIO_NAMES if minio_only else MINIO_NAMES + WEBHOOK_NAMES)
    except UsageError as error:
        warn(str(error))
        return 2
    try:
        Setup(settings, options).run()
    except SetupError as error:
        warn(str(error))
    except (*_SAID_BY_SERVER, urllib3.exceptions.HTTPError) as error:
        text = f"{reason(error)}. Hint: {hint(error, settings)}"
        for secret in (settings.auth_token, settings.secret_key):
            text = text.replace(secret, "***") if secret else text
        warn(text)
    except KeyboardInterrupt:
        return 130
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
