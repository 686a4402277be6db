"""Who may see the pages: a session in a cookie, and what a POST must prove besides.

The cookie holds a random number, when it was made and whether its owner signed in; no secret. It is signed by
a key that is derived from API_TOKEN: all processes with that token agree, nothing is kept, and another token
signs everyone out. Without API_TOKEN the signature proves nothing, and only callers on this machine are let
in, by a name of this machine: else a page elsewhere could have its own name lead here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from flask import Request, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer

from webhook.callers import Unauthorized, is_from_here, is_own_name
from webhook.errors import BadRequest

SESSION_S = 12 * 3600
"""How long a session lasts, at most."""
FAILURES_MAX, FAILURES_S, PEERS_MAX = 5, 60.0, 1000
"""So many wrong tokens from one address are logged one by one in this time; so many addresses are remembered.
What makes guessing hopeless is the token's length."""
TOKEN_FIELD = "token_of_form"  # noqa: S105 - a name


@dataclass(frozen=True)
class Session:
    """What a cookie says. `number` is random; who knows it can make the token of a form."""

    number: str
    is_signed_in: bool


class Sessions:
    """Makes and reads sessions; `api_token` may be empty. Thread-safe."""

    def __init__(self, api_token: str) -> None:
        self._api_token = api_token
        self.failures = Failures()

    @property
    def needs_sign_in(self) -> bool:
        """Whether there is anything to sign in with."""
        return bool(self._api_token)

    def is_token(self, given: str) -> bool:
        """Whether it is API_TOKEN; takes as long for any answer."""
        return bool(self._api_token) and hmac.compare_digest(given.encode(), self._api_token.encode())

    def begin(self, *, is_signed_in: bool) -> Session:
        """A new session."""
        return Session(secrets.token_hex(16), is_signed_in)

    def read(self, request: Request) -> Session | None:
        """The session of a request; None where there is none, or it is over."""
        try:
            match self._serializer("session").loads(
                request.cookies.get(_cookie_name(request), ""), max_age=SESSION_S
            ):
                case [str(number), bool(is_signed_in)]:
                    return Session(number, is_signed_in)
        except BadSignature:
            pass
        return None

    def keep(self, session: Session, request: Request, response: Response) -> None:
        """Has the browser send the session from now on."""
        text = self._serializer("session").dumps([session.number, session.is_signed_in])
        _set_cookie(request, response, _cookie_name(request), text, max_age=SESSION_S)

    def forget(self, request: Request, response: Response) -> None:
        """Has the browser forget the session."""
        _set_cookie(request, response, _cookie_name(request), "", max_age=0)

    def form_token(self, session: Session) -> str:
        """What every form of the session sends along; nobody else can know it."""
        return hmac.new(self._key("form"), session.number.encode(), hashlib.sha256).hexdigest()

    def admit(self, request: Request) -> Session | None:
        """The session of a caller who may see the pages; None: who is to sign in.

        Raises: Unauthorized, where no API_TOKEN is set and the caller is not on this machine.
        """
        session = self.read(request)
        if self.needs_sign_in:
            return session if session and session.is_signed_in else None
        if not is_from_here() or not is_own_name(request.host):
            raise Unauthorized(
                "API_TOKEN is not set, so only callers on the service's own machine are let in, as localhost",
                hint="Set API_TOKEN on the service, and sign in with it.",
            )
        return session or self.begin(is_signed_in=False)

    def check_post(self, session: Session | None, request: Request) -> None:
        """Raises BadRequest unless one of the session's own forms was sent."""
        given = request.form.get(TOKEN_FIELD, "")
        expected = self.form_token(session) if session else ""
        is_own = session is not None and hmac.compare_digest(given.encode(), expected.encode())
        if not (is_own and _is_same_origin(request)):
            raise BadRequest(
                "the form is not one of this session, so nothing was done",
                hint="Go back, load the page again, and press the button once more. Cookies must be allowed.",
            )

    def _serializer(self, purpose: str) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._key(purpose), salt=purpose, signer_kwargs={"digest_method": hashlib.sha256}
        )

    def _key(self, purpose: str) -> bytes:
        return hmac.new(_root_key(self._api_token), purpose.encode(), hashlib.sha256).digest()

    # ── a word for the next page ─────────────────────────────────────────────────────────────────────

    def note(self, text: str, request: Request, response: Response) -> None:
        """Has the next page say this, once."""
        signed = self._serializer("note").dumps(text[:500])
        _set_cookie(request, response, NOTE, signed, max_age=60)

    def take_note(self, request: Request) -> str | None:
        """What the last page left to be said; whoever shows it calls `drop_note`."""
        try:
            text = self._serializer("note").loads(request.cookies.get(NOTE, ""), max_age=60)
        except BadSignature:
            return None
        return text if isinstance(text, str) else None

    def drop_note(self, request: Request, response: Response) -> None:
        """It has been said."""
        _set_cookie(request, response, NOTE, "", max_age=0)


NOTE = "replicator_note"


@lru_cache(maxsize=8)
def _root_key(api_token: str) -> bytes:
    """Slow to make: everybody gets a cookie signed by it, on which tokens could be tried at home."""
    return hashlib.scrypt(api_token.encode(), salt=b"minio-replicator pages", n=2**14, r=8, p=1)


class Failures:
    """Counts wrong tokens by the address they came from, in this process. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, peer: str) -> float:
        """How long it is too many that came from the address; 0.0: it is not."""
        with self._lock:
            times = self._times.get(peer, deque())
            if len(times) < FAILURES_MAX:
                return 0.0
            return max(0.0, times[0] + FAILURES_S - self._clock())

    def count(self, peer: str) -> None:
        """A wrong token came from there."""
        with self._lock:
            times = self._times.setdefault(peer, deque(maxlen=FAILURES_MAX))
            times.append(self._clock())
            self._times.move_to_end(peer)
            while len(self._times) > PEERS_MAX:
                self._times.popitem(last=False)


# ── a request's way here ─────────────────────────────────────────────────────────────────────────────


def _is_https(request: Request) -> bool:
    """Also where a proxy says so: to believe it wrongly makes a cookie stricter, and nothing else."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip()
    return request.is_secure or forwarded == "https"


def _cookie_name(request: Request) -> str:
    """Browsers take `__Host-` from this host only, and over https only."""
    return "__Host-replicator" if _is_https(request) else "replicator"


def _set_cookie(request: Request, response: Response, name: str, text: str, *, max_age: int) -> None:
    response.set_cookie(
        name, text, max_age=max_age, path="/", secure=_is_https(request), httponly=True, samesite="Strict"
    )


def _is_same_origin(request: Request) -> bool:
    """Whether a page of this service sent it, as far as the browser tells."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return False
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    # a page elsewhere cannot set a proxy's header; a proxy may replace Host
    forwarded = request.headers.get("X-Forwarded-Host", "").partition(",")[0].strip()
    return origin.partition("://")[2] in (request.host, forwarded) and "://" in origin
