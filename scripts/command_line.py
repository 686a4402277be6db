"""What the scripts for people share: options, settings, stores, what is printed where, and how they end.

Results go to stdout, all else to stderr. Progress is drawn where stderr is a terminal and nowhere else. Names
that others chose are printed without their control characters.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import json
import logging
import os
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import ParseError

import minio
import urllib3
from dotenv import dotenv_values
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.text import Text

from webhook import logs, settings
from webhook.errors import SettingsError
from webhook.rules import is_glob
from webhook.settings import Settings, StoreSettings
from webhook.variables import Variables

CONNECT_BOUND_S, ANSWER_BOUND_S = 5.0, 60.0
RETRIES_MAX, RETRY_PAUSE_S = 3, 0.3
AHEAD = 4
"""Work taken ahead for each thread."""
KIB = 1024
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
SOURCE_SETTINGS = "MINIO_ENDPOINT, MINIO_ACCESS_KEY, MINIO_SECRET_KEY; optional MINIO_REGION, MINIO_CA_BUNDLE"
COMMON_CODES = "  2    wrong use or settings\n  130  interrupted by Ctrl-C; run it again"

STORE_ERRORS = (MinioException, urllib3.exceptions.HTTPError, ParseError, ValueError)
"""What minio raises: an answer it does not like, no answer, an answer that is no XML, a name it refuses."""
NOT_IMPLEMENTED = frozenset({"NotImplemented", "MethodNotAllowed"})
_HINTS = {
    "NoSuchBucket": "Check the bucket's name.",
    "InvalidAccessKeyId": "Check the access key in the settings.",
    "SignatureDoesNotMatch": "Check the secret key in the settings.",
    "AccessDenied": "Check the keys in the settings, and what they are allowed to do.",
    "AuthorizationHeaderMalformed": "Check the region in the settings.",
    "PermanentRedirect": "Check the endpoint and the region in the settings.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "SlowDown": "Run this again later.",
}
_HOPELESS = {"NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
_HOPELESS |= {"PermanentRedirect", "RequestTimeTooSkewed"}

T = TypeVar("T")


class Code(enum.IntEnum):
    """What a script's exit status says."""

    DONE = 0
    FAILED = 1
    WRONG_USE = 2
    INTERRUPTED = 130
    UNREAD = 141
    """Nobody reads what it prints any more: as a shell shows it of other programs."""


class Failure(Exception):
    """It cannot be done; the message says why and what to do about it."""


class NoBucket(Failure):
    """The store has no bucket of that name."""


class WrongUse(Exception):
    """The options or settings cannot be used; the message says what to change."""


class Interrupted(Exception):
    """Ctrl-C; the message says what was done until then."""


class Stopped(Exception):
    """Work that another thread's failure, or Ctrl-C, has made pointless."""


# ── how a script starts and ends ─────────────────────────────────────────────────────────────────────


def start(main: Callable[[], int]) -> NoReturn:
    """Runs a script to its exit status, and says in words what went wrong."""
    logs.configure("text", least=logging.CRITICAL)  # what a script has to say, it says itself
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it tells of each retry
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="backslashreplace")  # whatever the locale can't show
    code = _ended(main)
    if code in (Code.INTERRUPTED, Code.UNREAD):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # at once: threads that still wait for a store's answer would hold it up
    sys.exit(code)


def _ended(main: Callable[[], int]) -> int:
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        return Code.UNREAD
    except (Interrupted, KeyboardInterrupt) as error:
        return _said(Code.INTERRUPTED, f"interrupted. {error}".rstrip())
    except WrongUse as error:
        return _said(Code.WRONG_USE, str(error))
    except SettingsError as error:
        return _said(Code.WRONG_USE, *error.message.splitlines(), error.hint)
    except Failure as error:
        return _said(Code.FAILED, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _said(Code.FAILED, where + (error.strerror or str(error)))
    return code


def _said(code: Code, *lines: str) -> int:
    with contextlib.suppress(OSError):  # nobody reads it
        for line in lines:
            say(line)
    return code


def say(text: str) -> None:
    """One message to stderr, behind the script's name."""
    print(f"{Path(sys.argv[0]).name}: {printable(text)}", file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """argparse, with the help these scripts give: what it does, examples, settings and exit codes."""

    def __init__(self, name: str, what: str, *, examples: str, settings: str, done: str, failed: str) -> None:
        epilog = f"examples:\n{examples.strip(chr(10))}\n\nsettings, from the environment or .env here:\n"
        epilog += f"  {settings}\n\nexit codes:\n  0    {done}\n  1    {failed}\n{COMMON_CODES}"
        super().__init__(
            prog=f"python scripts/{name}.py",
            description=what,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Two lines instead of the whole usage; exit status 2."""
        print(f"{self.prog}: {printable(message)}\nSee --help.", file=sys.stderr)
        sys.exit(Code.WRONG_USE)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────


def environment() -> dict[str, str]:
    """The variables, with `.env` in the current folder filling the gaps. Raises: WrongUse."""
    try:
        values = {name: value for name, value in dotenv_values(Path.cwd() / ".env").items() if value}
    except (OSError, UnicodeError):
        raise WrongUse(".env cannot be read: it must be a text file in UTF-8.") from None
    return {**values, **os.environ}


def variables() -> Variables:
    """A reader of the same, and of the files that NAME_FILE names. Raises: WrongUse."""
    return Variables(environment(), Path.cwd())


def source_settings() -> StoreSettings:
    """The source alone: the target's settings may be missing. Raises: SettingsError."""
    read = variables()
    store = StoreSettings(
        endpoint_url=read.endpoint("MINIO_ENDPOINT"),
        access_key=read.secret("MINIO_ACCESS_KEY"),
        secret_key=read.secret("MINIO_SECRET_KEY"),
        region=read.text("MINIO_REGION", "us-east-1"),
        ca_file=settings.ca_file(read, "MINIO"),
    )
    if read.problems:
        raise SettingsError(read.problems)
    return store


def all_settings() -> Settings:
    """What the service itself is set to. Raises: SettingsError, WrongUse."""
    environment()  # has words for a .env that is no text
    return settings.load()


def is_address(url: str) -> bool:
    """Whether it is scheme and host, perhaps with a port and a path, and without credentials."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(usable and not parts.query and not parts.fragment and "@" not in parts.netloc)


def source_bucket() -> str:
    """The one bucket that MINIO_BUCKET names. Raises: WrongUse where it names none, several or a pattern."""
    names = environment().get("MINIO_BUCKET", "").replace(",", " ").split()
    if len(names) != 1 or is_glob(names[0]):
        raise WrongUse("which bucket? Give --bucket, or set MINIO_BUCKET to the name of one.")
    return names[0]


# ── stores ───────────────────────────────────────────────────────────────────────────────────────────


class Store:
    """A store, with the client that asks it and the words for its errors. Safe to share between threads."""

    def __init__(
        self, name: str, store: StoreSettings, *, threads: int = 1, repeats_posts: bool = False
    ) -> None:
        """`repeats_posts`: whether POSTs may be sent again: deletes may, the end of an upload may not."""
        self.name = name
        """ "source", or "target filebase"."""
        self._settings = store
        url = urlsplit(store.endpoint_url)
        self.client = minio.Minio(
            endpoint=url.netloc,
            access_key=store.access_key,
            secret_key=store.secret_key,
            secure=url.scheme == "https",
            region=store.region,
            http_client=_pool(store, connections_max=threads, repeats_posts=repeats_posts),
        )

    def buckets(self) -> list[str]:
        """The names of all its buckets. Raises: one of STORE_ERRORS."""
        return [bucket.name for bucket in self.client.list_buckets()]

    def why(self, error: Exception) -> str:
        """What an error means and what to do about it, without a secret."""
        text = self._why(error)
        for secret in (self._settings.secret_key, self._settings.access_key):
            text = text.replace(secret, "***")
        return text

    def _why(self, error: Exception) -> str:
        place = f"The {self.name} at {self._settings.endpoint_url}"
        if isinstance(error, S3Error):
            said = f"{error.code}: {error.message}" if error.message else f"{error.code}"
            return f"The {self.name} answered {said.rstrip('.')}. {_HINTS.get(error.code or '', '')}".rstrip()
        if isinstance(error, InvalidResponseError | ServerError | ParseError):
            return f"{place} gave an answer that is not S3's. Check the endpoint in the settings."
        if isinstance(error, urllib3.exceptions.HTTPError):
            return f"{place} does not answer ({_kind(error)}). {_silence_hint(error)}"
        return f"The {self.name} cannot be asked that: {error}."

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Turns the errors of the block into a Failure, or NoBucket."""
        try:
            yield
        except STORE_ERRORS as error:
            kind = NoBucket if getattr(error, "code", "") == "NoSuchBucket" else Failure
            raise kind(self.why(error)) from error


def is_hopeless(error: Exception) -> bool:
    """Whether every other request would end as this one did."""
    if isinstance(error, S3Error):
        return error.code in _HOPELESS
    return not isinstance(error, ValueError)


def _pool(store: StoreSettings, *, connections_max: int, repeats_posts: bool) -> urllib3.PoolManager:
    more: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=CONNECT_BOUND_S, read=ANSWER_BOUND_S),
        "retries": urllib3.Retry(
            total=RETRIES_MAX,
            backoff_factor=RETRY_PAUSE_S,
            allowed_methods=None if repeats_posts else urllib3.Retry.DEFAULT_ALLOWED_METHODS,
            status_forcelist=[429, 500, 502, 503, 504],
            raise_on_status=False,  # the store's own words are better
            redirect=False,
            respect_retry_after_header=False,  # it has no bound
        ),
        "maxsize": max(connections_max, 1),
        "ca_certs": store.ca_file,
    }
    proxy = proxy_for(store.endpoint_url)
    if not proxy:
        return urllib3.PoolManager(**more)
    login = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(login)) if login else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **more)


def proxy_for(url: str) -> str | None:
    """The proxy that HTTPS_PROXY and NO_PROXY want for an https address; None for all others."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get("https")
    if parts.scheme != "https" or not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _kind(error: Exception) -> str:
    """The innermost reason's class: the message may quote a proxy's password."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__


def _silence_hint(error: Exception) -> str:
    if _kind(error) == "SSLError":
        names = "MINIO_CA_BUNDLE, FILEBASE_CA_BUNDLE or SSL_CERT_FILE"
        return f"Check whether it speaks TLS, and that {names} names its certificate authority."
    return "Check that it runs and that its endpoint in the settings is right."


# ── work in several threads ──────────────────────────────────────────────────────────────────────────


def do_all(
    work: Callable[[T], None], items: Iterable[T], *, threads: int, stop: threading.Event | None = None
) -> None:
    """Does the work for each item, a few at once; returns when all is done.

    Items are taken as threads become free. `stop` is set when the work is to end early, because one piece
    raised or somebody pressed Ctrl-C; what is under way is waited for. Raises: what `work` raised first.
    """
    stop = stop or threading.Event()
    pool = ThreadPoolExecutor(threads)
    running: set[Future[None]] = set()
    try:
        for item in items:
            running.add(pool.submit(work, item))
            if len(running) >= threads * AHEAD:
                running = _waited(running)
        while running:
            running = _waited(running)
    except BaseException as error:
        stop.set()
        if isinstance(error, KeyboardInterrupt):
            say("stopping: what is under way is ended first; Ctrl-C again ends at once.")
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _waited(running: set[Future[None]]) -> set[Future[None]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for each in done:
        each.result()
    return rest


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────


def printable(text: str) -> str:
    """The text with everything escaped that a terminal might obey, or not show: "\\x1b", "\\n", "\\u202e"."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def is_text(text: str) -> bool:
    """Whether it is Unicode, not bytes that the system could not read as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_units(count: float) -> str:
    """Bytes for people: "13 B", "4.0 KiB"."""
    for unit in UNITS:
        if count < KIB or unit == UNITS[-1]:
            break
        count /= KIB
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def size(text: str) -> int:
    """Bytes from "4096", "4KiB" or "1 MiB", for argparse. Raises: ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]{1,15})\s*(B|KiB|MiB|GiB)?", text.strip(), re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 4096, 4KiB or 1MiB")
    return int(found[1]) * int(KIB ** UNITS.index(found[2] or "B"))


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number between two others, for argparse."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,15}", text, re.ASCII) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def count(number: int, one: str, several: str = "") -> str:
    """ "1 object", "2,000 objects"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


class Screen:
    """Where a script prints; `as_json` asks for JSON on stdout. Safe to share between threads."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._lock = threading.Lock()
        self._live: Progress | None = None

    def result(self, line: str, facts: Mapping[str, Any]) -> None:
        """One result to stdout: the facts as JSON in a line, or the line, if it is not empty, for people."""
        if self.as_json:
            # DEL is all that is left of what a terminal might obey
            self._print(json.dumps(facts).replace("\x7f", "\\u007f"), sys.stdout)
        elif line:
            self._print(printable(line), sys.stdout)

    def line(self, text: str) -> None:
        """A line to stdout for people; nothing where JSON is wanted."""
        if not self.as_json:
            self._print(printable(text), sys.stdout)

    def note(self, text: str) -> None:
        """A line to stderr."""
        self._print(printable(text), sys.stderr)

    @contextlib.contextmanager
    def progress(self, *columns: str | ProgressColumn) -> Iterator[Progress]:
        """A bar on stderr while the block runs, gone when it ends; nothing where that is no terminal."""
        terminal = sys.stderr.isatty()
        console = Console(stderr=True, force_terminal=terminal)
        live = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not terminal,
            redirect_stdout=False,  # it would move results to stderr
            redirect_stderr=False,
        )
        self._live = live if terminal else None
        try:
            with live:
                yield live
        finally:
            self._live = None

    def _print(self, text: str, stream: TextIO) -> None:
        with self._lock:
            if self._live and stream.isatty():
                self._live.console.print(Text(text), soft_wrap=True)  # above the bar
            else:
                print(text, file=stream)
