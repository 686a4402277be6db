"""Who is let in: every route there is, with every token that is almost the right one."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from scripts.local_service import Replicator
from tests.security.conftest import API, API_TOKEN, ENVIRON, EVENTS, HOOK, HOOK_TOKEN, TOKENS, ask, status_of
from tests.unit.conftest import MakeClient, opened
from tests.unit.test_app import AFAR, body_of, ledger_of, record
from tests.unit.test_pages import sign_in
from webhook.callers import PROXY_HEADERS

OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/openapi.json"), ("GET", EVENTS)}
OPEN |= {("GET", "/sign-in"), ("POST", "/sign-in"), ("GET", "/page/page.css")}
"""All that strangers may ask for. A route that is added is none of these until somebody says so here."""
MAKES_UP = {"<path:filename>": "page.css", "<rule>": "default", "<key:key>": "a/b"}
Route = tuple[str, str]


def routes(app: Flask) -> list[Route]:
    """Every method of every address, with something in each of its gaps."""
    found = []
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for gap, text in MAKES_UP.items():
            path = path.replace(gap, text)
        path = re.sub(r"<int\(.*?\):\w+>", "1", path)
        assert "<" not in path, f"the test has nothing to put into {path}"
        found += [(method, path) for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})]
    return found


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A stranger, far away, where both tokens are set."""
    with opened(ENVIRON, tmp_path_factory.mktemp("tokens")) as make:
        made = make(**TOKENS)
        made.environ_base |= AFAR
        yield made


@pytest.fixture
def guarded(client: FlaskClient) -> list[Route]:
    """All routes but those that are open."""
    found = routes(client.application)
    assert set(found) >= OPEN
    return [route for route in found if route not in OPEN]


def is_page(path: str) -> bool:
    """Whether people in a browser ask for it: they are led to the sign-in."""
    return not path.startswith(("/v1/", "/minio/", "/metrics"))


def is_shut(client: FlaskClient, route: Route, **more: object) -> bool:
    method, path = route
    body = {"data": b'{"s3_key": "a/b"}'} if method == "POST" and not is_page(path) else {}
    answer = client.open(path, method=method, **body, **more)
    if is_page(path):
        return answer.status_code == 303 and (answer.location or "").startswith("/sign-in")
    return answer.status_code == 401


def near_misses(token: str, other: str) -> list[str]:
    """Headers that almost hold the token."""
    basic = [base64.b64encode(text.encode()).decode() for text in (token, f"user:{token}", f"{token}:")]
    return [
        *("", "Bearer", "Bearer ", f"Bearer {token[:-1]}", f"Bearer {token[1:]}", f"Bearer {token}x"),
        *(f"Bearer x{token}", f"Bearer {token.upper()}", f"Bearer  {token}", f"Bearer {token} "),
        *(
            f"bearer {token}",
            f"BEARER {token}",
            f"Bearer\t{token}",
            token,
            f"Token {token}",
            f'Bearer "{token}"',
        ),
        *(f"Bearer {token}, Bearer {token}", f"Bearer x,Bearer {token}", f"Bearer {token},Bearer x"),
        *(f"Basic {each}" for each in basic),
        *("Bearer \xe9", f"Bearer {token}\xe9", f"Bearer {token[:-1]}\xb9", f"Bearer {token}\0", "Bearer *"),
        *(f"Bearer {other}", "Bearer None", "Bearer null", f"Bearer {token[:-1]}%{ord(token[-1]):x}"),
    ]


def test_strangers_get_what_is_open_and_nothing_else(client: FlaskClient, guarded: list[Route]) -> None:
    assert len(guarded) > 25
    for route in guarded:
        assert is_shut(client, route), route
    for method, path in OPEN:
        with client.open(path, method=method) as answer:
            assert answer.status_code not in (401, 303, 404), (method, path)


def test_no_header_that_is_not_exactly_the_right_one_opens_a_route(
    client: FlaskClient, guarded: list[Route]
) -> None:
    for method, path in guarded:
        token, other = (HOOK_TOKEN, API_TOKEN) if path == EVENTS else (API_TOKEN, HOOK_TOKEN)
        for value in near_misses(token, other):
            if (
                value == f"Bearer {token} "
            ):  # blanks around a value are no part of it; the test client leaves them
                continue
            headers = {"Authorization": value}
            assert is_shut(client, (method, path), headers=headers), (method, path, value)


def test_the_right_header_opens_its_own_routes_and_no_page(client: FlaskClient, guarded: list[Route]) -> None:
    for method, path in guarded:
        headers = HOOK if path == EVENTS else API
        assert is_shut(client, (method, path), headers=headers) == is_page(path), (method, path)


def test_a_session_opens_pages_and_neither_the_api_nor_the_webhook(
    make_client: MakeClient, guarded: list[Route]
) -> None:
    client = make_client(**TOKENS)
    client.environ_base |= AFAR
    sign_in(client, API_TOKEN)
    pages_to_see = [path for method, path in guarded if is_page(path) and method == "GET"]
    assert len(pages_to_see) > 4
    for path in pages_to_see:
        assert client.get(path).status_code != 303, path
    for route in guarded:
        if not is_page(route[1]):
            assert is_shut(client, route), route


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "Authorization", "auth"])
def test_a_token_in_the_address_opens_nothing(client: FlaskClient, guarded: list[Route], name: str) -> None:
    for method, path in guarded:
        for token in (HOOK_TOKEN, API_TOKEN, f"Bearer {API_TOKEN}"):
            assert is_shut(client, (method, path), query_string={name: token}), (method, path, name)


def test_what_a_stranger_sends_to_the_webhook_is_not_recorded(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    for value in near_misses(HOOK_TOKEN, API_TOKEN)[:6]:
        client.post(EVENTS, data=body_of(record()), headers={"Authorization": value})
        client.post(EVENTS, data=b"{}", headers={"Authorization": value})
    assert ledger_of(client).entry("default", "k") is None
    assert ledger_of(client).quarantined() == 0


@pytest.mark.parametrize("says", [True, False])
def test_what_compares_in_constant_time_has_the_only_say(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    """Nothing else looks at a token: with that function's answer turned around, so is everything."""
    client = make_client(**TOKENS)
    page_token = client.get("/sign-in")  # a session is begun while all is well
    assert page_token.status_code == 200
    monkeypatch.setattr(hmac, "compare_digest", lambda _one, _other: says)
    header = "Bearer wrong" if says else f"Bearer {API_TOKEN}"
    assert (client.get("/v1/status", headers={"Authorization": header}).status_code == 200) is says
    header = "Bearer wrong" if says else f"Bearer {HOOK_TOKEN}"
    answer = client.post(EVENTS, data=body_of(record()), headers={"Authorization": header})
    assert (answer.status_code == 200) is says
    answer = client.post("/sign-in", data={"token": "wrong" if says else API_TOKEN})
    assert (answer.status_code == 303) is says


# ── as it comes over the wire ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "lines",
    [
        [f"Authorization: Bearer {API_TOKEN}", "Authorization: Bearer x"],
        ["Authorization: Bearer x", f"Authorization: Bearer {API_TOKEN}"],
        [f"Authorization: Bearer {API_TOKEN}", f"Authorization: Bearer {API_TOKEN}"],
        [f"Authorization: Bearer {API_TOKEN}\xe9"],
        [f"Authorization: Bearer {API_TOKEN[:-1]}\xff"],
        [f"Authorization: Bearer {HOOK_TOKEN}"],
        [f"Authorisation: Bearer {API_TOKEN}"],
        [f"Proxy-Authorization: Bearer {API_TOKEN}"],
        [f"Cookie: Authorization=Bearer {API_TOKEN}"],
        ["Authorization:", f" Bearer {API_TOKEN}"],
        [f"HTTP_AUTHORIZATION: Bearer {API_TOKEN}", f"Authorization_: Bearer {API_TOKEN}"],
    ],
)
def test_two_tokens_or_a_token_elsewhere_are_none(served: Replicator, lines: list[str]) -> None:
    answer = ask(served, "\n".join(["GET /v1/status HTTP/1.1", *lines]))
    assert status_of(answer) in (400, 401)
    assert b"recovery_point" not in answer
    right = ask(served, f"GET /v1/status HTTP/1.1\nAuthorization: Bearer {API_TOKEN}")
    assert status_of(right) == 200


def test_no_header_says_what_the_path_is(served: Replicator) -> None:
    """gunicorn would believe a caller on its own machine: a proxy there, and all who come through it."""
    for lines in ("SCRIPT_NAME: /minio", "SCRIPT_NAME: /minio\nPATH_INFO: /healthz", "PATH_INFO: /healthz"):
        answer = ask(served, f"GET /minio/healthz HTTP/1.1\n{lines}")
        assert status_of(answer) == 404, lines


# ── without a token ──────────────────────────────────────────────────────────────────────────────────


def test_without_a_token_this_machine_is_let_in_and_no_header_makes_a_caller_look_like_it(
    make_client: MakeClient,
) -> None:
    client = make_client()
    shut = [route for route in routes(client.application) if route not in OPEN]
    claims = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Real-Ip": "::1"}
    claims |= {"X-Client-Ip": "127.0.0.1", "True-Client-Ip": "127.0.0.1", "X-Remote-Addr": "127.0.0.1"}
    claims |= {"X-Forwarded-Host": "localhost", "Via": "1.1 localhost", "Remote-Addr": "127.0.0.1"}
    for method, path in shut:
        body = {"data": b"{"} if method == "POST" else {}
        for headers in ({}, *({name: value} for name, value in claims.items())):
            answer = client.open(path, method=method, headers=headers, environ_overrides=AFAR, **body)
            assert answer.status_code == 401, (method, path, headers)
        for header in PROXY_HEADERS:  # somebody else's, through a proxy on this machine
            answer = client.open(path, method=method, headers={header: "127.0.0.1"}, **body)
            assert answer.status_code == 401, (method, path, header)


def test_without_a_token_a_page_elsewhere_is_refused_on_every_route(make_client: MakeClient) -> None:
    client = make_client()
    strange = [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "[::1].evil.example"}]
    forms = [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
    forms += [{"Origin": "http://localhost.evil.example"}, {"Sec-Fetch-Site": "same-site"}]
    for method, path in routes(client.application):
        if (method, path) in OPEN:
            continue
        headers = [] if path == EVENTS else strange  # MinIO on this machine may use any name of it
        for each in headers + (forms if method == "POST" else []):
            answer = client.open(path, method=method, headers=each, data=b"{" if method == "POST" else None)
            assert answer.status_code in (400, 401), (method, path, each)
            assert answer.status_code == 401 or is_page(path), (method, path, each)


def test_without_a_token_strangers_are_refused_over_the_wire_too(open_here: Replicator) -> None:
    assert status_of(ask(open_here, "GET /v1/status HTTP/1.1")) == 200
    for line in ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1"):
        assert status_of(ask(open_here, f"GET /v1/status HTTP/1.1\n{line}")) == 401, line
    proxied = "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\nGET /v1/status HTTP/1.1"
    assert status_of(ask(open_here, proxied)) == 400
