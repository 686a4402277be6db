"""The pages' contract, against a real SQLite ledger; no store answers. How they look and behave in a browser
is tested in tests/acceptance/test_pages.py.
"""

from __future__ import annotations

import html
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.unit.conftest import MakeClient
from tests.unit.test_app import AFAR, TOKENS
from webhook.callers import PROXY_HEADERS
from webhook.entries import Buried, Claim, Deferred, Held, Misfit, Request, Settled
from webhook.fleet import Fleet
from webhook.ledger import Ledger
from webhook.pages import words
from webhook.pages.charts import hour
from webhook.pages.sessions import FAILURES_MAX, FAILURES_S, PEERS_MAX, SESSION_S, TOKEN_FIELD, Failures
from webhook.pages.views import PAGE_ITEMS, PAGE_RULES
from webhook.records import SCAN_KEYS
from webhook.service import Service
from webhook.sweeps import Sweeps

ODD_KEYS = (
    *(
        "/lead",
        "a//b",
        "a/../b",
        "..",
        "é",
        "a b+c%2F",
        "?#&=",
        "a\nb",
        "a\r\nb",
        "\x1b[31m",
        "\u202etxt.exe",
    ),
    *("<script>alert(1)</script>", "\"'`", "{{ 7*7 }}", "🪣", " both ends ", "\ufffe", "a\u2028b", "שלום"),
)
PATHS = ("/", "/objects", "/object?rule=default&key=k", "/failures", "/quarantine", "/deletes?rule=default")
POSTS = (
    *(
        "/pause?rule=default",
        "/resume?rule=default",
        "/sweep?rule=default",
        "/object/copy?rule=default&key=k",
    ),
    *("/failures/retry", "/quarantine/retry", "/quarantine/discard"),
    *("/deletes/approve?rule=default", "/deletes/discard?rule=default", "/sign-out"),
)
SECRET = re.compile("s3cr3t")


@pytest.fixture
def locked(make_client: MakeClient) -> FlaskClient:
    """A browser that has not signed in, where API_TOKEN is set."""
    return make_client(**TOKENS)


@pytest.fixture
def signed_in(locked: FlaskClient) -> FlaskClient:
    """The same after signing in."""
    sign_in(locked)
    return locked


def service_of(client: FlaskClient) -> Service:
    service: Service = client.application.extensions["service"]
    return service


def ledger_of(client: FlaskClient) -> Ledger:
    return service_of(client).ledger


def token_in(page: TestResponse) -> str:
    """What the forms of a page send along."""
    found = re.search(f'name="{TOKEN_FIELD}" value="([0-9a-f]+)"', page.text)
    assert found, page.text
    return found[1]


def sign_in(client: FlaskClient, token: str = TOKENS["API_TOKEN"], **more: Any) -> TestResponse:
    page = client.get("/sign-in", **more)
    return client.post("/sign-in", data={"token": token, TOKEN_FIELD: token_in(page)}, **more)


def press(client: FlaskClient, path: str, **fields: str) -> TestResponse:
    """Sends a form of one's own, and gives the page that it leads to."""
    own = {TOKEN_FIELD: token_in(client.get("/"))} if TOKEN_FIELD not in fields else {}
    return client.post(path, data={**own, **fields}, follow_redirects=True)


def text_of(page: TestResponse) -> str:
    """What a person reads."""
    body = re.sub(r"<(script|style|title)\b.*?</\1>", "", page.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def end(client: FlaskClient, key: str, how: Any, *, rule: str = "default") -> None:
    """Has an entry asked for, claimed and ended."""
    ledger = ledger_of(client)
    ledger.put([Request(rule=rule, key=key)])
    claim = ledger.claim_one(rule, key, worker="host:1:2:3", lease_s=60)
    assert claim is not None
    ledger.finish([how(claim)])


def hold(client: FlaskClient, key: str) -> None:
    """Has the delete of its copy wait for a person."""
    end(client, key, lambda claim: Deferred(claim=claim, after_s=0.0))
    claim = ledger_of(client).claim_one("default", key, worker="host:1:2:3", lease_s=60)
    assert claim is not None
    ledger_of(client).finish([Held(claim=claim)])


def failed(claim: Claim) -> Buried:
    return Buried(claim=claim, error_code="target_refused", error="it said <no>")


def state_of(client: FlaskClient, key: str) -> str:
    entry = ledger_of(client).entry("default", key)
    return entry["state"] if entry else ""


# ── who is let in ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", PATHS)
def test_who_has_not_signed_in_is_led_to_the_sign_in_and_back(locked: FlaskClient, path: str) -> None:
    answer = locked.get(path)
    assert answer.status_code == 303
    assert answer.location.startswith("/sign-in?back=")
    there = locked.post(
        answer.location, data={"token": "api-s3cr3t", TOKEN_FIELD: token_in(locked.get(answer.location))}
    )
    assert (there.status_code, there.location) == (303, path)
    assert locked.get(path).status_code in (200, 404)  # and no more the sign-in


@pytest.mark.parametrize("path", POSTS)
def test_who_has_not_signed_in_can_do_nothing(locked: FlaskClient, path: str) -> None:
    end(locked, "k", failed)
    token = token_in(locked.get("/sign-in"))
    answer = locked.post(path, data={"sure": "yes", TOKEN_FIELD: token})
    assert (answer.status_code, answer.location) == (303, "/sign-in?back=/")
    assert state_of(locked, "k") == "failed"
    assert service_of(locked).pauses.paused() == {}


@pytest.mark.parametrize("path", POSTS)
def test_a_post_without_the_session_s_own_token_does_nothing(signed_in: FlaskClient, path: str) -> None:
    end(signed_in, "k", failed)
    Sweeps(ledger_of(signed_in)).register({"default": "{}"})
    for fields in ({}, {TOKEN_FIELD: ""}, {TOKEN_FIELD: "0" * 64}, {TOKEN_FIELD: "é"}):
        answer = signed_in.post(path, data={"sure": "yes", **fields})
        assert answer.status_code == 400, path
        assert "nothing was done" in text_of(answer)
    assert state_of(signed_in, "k") == "failed"
    assert service_of(signed_in).pauses.paused() == {}
    assert signed_in.get("/").status_code == 200  # still signed in


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_post_from_elsewhere_does_nothing_even_with_the_token(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    end(client, "k", failed)
    token = token_in(client.get("/"))
    assert client.post("/failures/retry", data={TOKEN_FIELD: token}, headers=headers).status_code == 400
    assert state_of(client, "k") == "failed"
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/failures/retry", data={TOKEN_FIELD: token}, headers=own).status_code == 303
    assert state_of(client, "k") == "waiting"


def test_a_proxy_that_replaces_the_host_tells_the_one_that_was_asked_for(signed_in: FlaskClient) -> None:
    token = token_in(signed_in.get("/"))
    headers = {"Origin": "https://copy.example", "X-Forwarded-Host": "copy.example"}
    answer = signed_in.post("/failures/retry", data={TOKEN_FIELD: token}, headers=headers)
    assert answer.status_code == 303


@pytest.mark.parametrize("token", ["", "wrong", "api-s3cr3", "api-s3cr3tt", "é"])
def test_a_wrong_token_signs_nobody_in(locked: FlaskClient, token: str) -> None:
    answer = sign_in(locked, token)
    assert answer.status_code == 401
    assert "not the API_TOKEN" in text_of(answer)
    assert locked.get("/").status_code == 303


def test_many_wrong_tokens_shut_out_nobody_who_has_the_right_one(
    locked: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind a proxy, everybody comes from one address."""
    for _ in range(FAILURES_MAX):
        assert sign_in(locked, "wrong").status_code == 401
    for _ in range(3):
        answer = sign_in(locked, "wrong")
        assert answer.status_code == 429
        assert 0 < int(answer.headers["Retry-After"]) <= FAILURES_S
    assert capsys.readouterr().err.count("sign-in refused") == FAILURES_MAX
    assert sign_in(locked, "wrong", environ_overrides=AFAR).status_code == 401
    assert sign_in(locked).status_code == 303


def test_wrong_tokens_are_forgotten_after_a_while_and_few_addresses_are_remembered() -> None:
    now = [0.0]
    failures = Failures(lambda: now[0])
    for second in range(FAILURES_MAX):
        now[0] = float(second)
        assert failures.wait_s("a") == 0.0
        failures.count("a")
    assert failures.wait_s("a") == FAILURES_S - (FAILURES_MAX - 1)
    assert failures.wait_s("b") == 0.0
    now[0] = FAILURES_S
    assert failures.wait_s("a") == 0.0
    failures.count("a")
    assert failures.wait_s("a") > 0.0  # five within a minute again
    for number in range(PEERS_MAX):
        failures.count(f"peer {number}")
    assert failures.wait_s("a") == 0.0


def test_the_cookie_holds_no_secret_and_stays_in_the_browser(locked: FlaskClient) -> None:
    cookie = sign_in(locked).headers["Set-Cookie"]
    assert not SECRET.search(cookie)
    name, *terms = cookie.split("; ")
    assert name.startswith("replicator=")
    assert {"HttpOnly", "Path=/", "SameSite=Strict", f"Max-Age={SESSION_S}"} <= set(terms)
    assert "Secure" not in terms  # by http, browsers would not keep it
    proxied = {"X-Forwarded-Proto": "https"}
    page = locked.get("/sign-in", headers=proxied)
    fields = {"token": "api-s3cr3t", TOKEN_FIELD: token_in(page)}
    answer = locked.post("/sign-in", data=fields, headers=proxied, base_url="https://localhost")
    cookie = next(each for each in answer.headers.getlist("Set-Cookie") if each.startswith("__Host-"))
    assert "Secure" in cookie.split("; ")


def test_signing_in_makes_a_new_session(locked: FlaskClient) -> None:
    before = token_in(locked.get("/sign-in"))
    sign_in(locked)
    assert token_in(locked.get("/")) != before


def test_signing_out_ends_the_session_in_the_browser(signed_in: FlaskClient) -> None:
    answer = press(signed_in, "/sign-out")
    assert "Sign in" in text_of(answer)
    assert signed_in.get("/").status_code == 303


def test_another_token_signs_everyone_out_and_the_same_one_nobody(make_client: MakeClient) -> None:
    first, second, other = make_client(**TOKENS), make_client(**TOKENS), make_client(API_TOKEN="other-s3cr3t")
    sign_in(first)
    cookie = first.get_cookie("replicator")
    assert cookie is not None
    for replica in (second, other):
        replica.set_cookie("replicator", cookie.value)
    token = token_in(first.get("/"))
    assert second.get("/").status_code == 200
    assert second.post("/failures/retry", data={TOKEN_FIELD: token}).status_code == 303
    assert other.get("/").status_code == 303


def test_a_session_ends_by_itself(signed_in: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import itsdangerous.timed

    now = itsdangerous.timed.time.time()
    monkeypatch.setattr(itsdangerous.timed.time, "time", lambda: now + SESSION_S - 5)
    assert signed_in.get("/").status_code == 200
    monkeypatch.setattr(itsdangerous.timed.time, "time", lambda: now + SESSION_S + 5)
    assert signed_in.get("/").status_code == 303


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: "x" + text, lambda _: "a.b.c", str.upper]
)
def test_a_cookie_that_was_tampered_with_is_none(signed_in: FlaskClient, change: Any) -> None:
    cookie = signed_in.get_cookie("replicator")
    assert cookie is not None
    signed_in.set_cookie("replicator", change(cookie.value))
    assert signed_in.get("/").status_code == 303


def test_a_guest_s_cookie_lets_nobody_in(locked: FlaskClient) -> None:
    locked.get("/sign-in")
    assert locked.get_cookie("replicator") is not None
    assert locked.get("/").status_code == 303


def test_the_api_wants_its_token_from_who_has_signed_in_too(signed_in: FlaskClient) -> None:
    assert signed_in.get("/v1/status").status_code == 401
    assert signed_in.post("/v1/failures/retry").status_code == 401


@pytest.mark.parametrize(
    "back", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "/\n/x", ""]
)
def test_signing_in_leads_nowhere_else(locked: FlaskClient, back: str) -> None:
    page = locked.get("/sign-in", query_string={"back": back})
    fields = {"token": "api-s3cr3t", TOKEN_FIELD: token_in(page)}
    answer = locked.post("/sign-in", query_string={"back": back}, data=fields)
    assert (answer.status_code, answer.location) == (303, "/")


def test_without_a_token_only_this_machine_is_let_in_by_a_name_of_its_own(client: FlaskClient) -> None:
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 401, host
        assert "API_TOKEN" in text_of(answer)
    assert client.get("/", environ_overrides=AFAR).status_code == 401
    for header in PROXY_HEADERS:
        assert client.get("/", headers={header: "203.0.113.7"}).status_code == 401, header


def test_without_a_token_a_post_needs_the_form_s_own_too(client: FlaskClient) -> None:
    end(client, "k", failed)
    client.get("/")
    assert client.post("/failures/retry").status_code == 400
    assert state_of(client, "k") == "failed"
    assert "1 object is tried again" in text_of(press(client, "/failures/retry"))
    assert state_of(client, "k") == "waiting"


def test_without_a_token_there_is_nothing_to_sign_in_with(client: FlaskClient) -> None:
    assert client.get("/sign-in").location == "/"
    assert "Sign out" not in text_of(client.get("/"))


@pytest.mark.parametrize("path", [*PATHS, "/sign-in", "/page/page.css", "/page/page.js"])
def test_every_answer_has_the_headers_that_keep_others_out(signed_in: FlaskClient, path: str) -> None:
    answer = signed_in.get(path)
    answer.close()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    if not path.startswith("/page/"):
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
def test_no_page_has_scripts_styles_or_handlers_of_its_own(signed_in: FlaskClient, path: str) -> None:
    body = signed_in.get(path).text
    assert re.findall(r"<script(?! src=\"/page/page\.js\" defer></script>)", body) == []
    assert "<style" not in body
    assert re.findall(r"\s(?:style|on\w+)=", body) == []
    assert not SECRET.search(body)


# ── what there is to see ─────────────────────────────────────────────────────────────────────────────


def test_the_first_page_says_how_it_stands_and_what_helps(client: FlaskClient) -> None:
    read = text_of(client.get("/"))
    assert "Attention Not proved complete: no process replicates" in read
    assert "python -m webhook.worker" in read


def test_the_first_page_tells_numbers_by_state_and_lane(client: FlaskClient) -> None:
    ledger_of(client).put([Request(rule="default", key=f"k{number}") for number in range(1234)])
    end(client, "bad", failed)
    read = text_of(client.get("/"))
    assert "Lane waiting running settled failed held live 1,234 0 0 1 0 backfill 0 0 0 0 0" in read


def test_the_last_hour_is_drawn_and_told_in_numbers(client: FlaskClient) -> None:
    done = lambda claim: Settled(claim=claim, outcome="replicated", bytes_copied=5000)  # noqa: E731
    for number in range(3):
        end(client, f"k{number}", done)
    found = hour(ledger_of(client))
    assert [chart.name for chart in found.charts] == ["throughput", "lag", "errors"]
    assert len(found.rows) == 60
    assert any(row[1:4] == ["3", "0", "15,000"] for row in found.rows[:2])
    assert "live: at most 3, at " in found.charts[0].summary
    page = client.get("/").text
    assert page.count("<svg") == 3
    for chart in found.charts:
        assert f'role="img" aria-label="{chart.title}, {chart.unit}' in page


def test_workers_and_targets_are_told_with_their_limits(make_client: MakeClient) -> None:
    client = make_client(TARGET_MAX_RPS="1500")
    fleet = Fleet(ledger_of(client))
    for number, limit in enumerate((3, 4, None)):
        fleet.sign(f"host-{number}:1:2:3", threads=16, limits={"filebase": limit})
    read = text_of(client.get("/"))
    assert "host-1 pid 1 alive 16" in read
    assert "Target filebase : slowed down to 7 requests at once, by 2 processes" in read
    assert "Settings: 1,500 requests and any amount of data a second." in read


def test_rules_come_in_pages_those_that_need_a_person_first(make_client: MakeClient, tmp_path: Path) -> None:
    number = PAGE_RULES + 7
    buckets = ", ".join(f'"bucket-{each:03}"' for each in range(number))
    (tmp_path / "rules.toml").write_text(f'[rules.many]\nsource = [{buckets}]\nbucket = "copy"\n')
    client = make_client(RULES_FILE="rules.toml")
    names = lambda page: set(re.findall(r"many\.bucket-\d{3}", page.text))  # noqa: E731
    first, second = client.get("/"), client.get("/", query_string={"from": PAGE_RULES})
    assert f"Rules 1 to {PAGE_RULES} of {number}" in text_of(first)
    assert f"Rules {PAGE_RULES + 1} to {number} of {number}" in text_of(second)
    assert f'href="/?from={PAGE_RULES}"' in first.text
    listed = set(re.findall(r'<th scope="row">(many\.bucket-\d{3})', first.text + second.text))
    assert len(listed) == number
    assert names(first)
    assert client.get("/", query_string={"from": "x"}).status_code == 200


@pytest.mark.parametrize("key", ODD_KEYS)
def test_whatever_a_key_holds_it_is_found_shown_and_copied_again(client: FlaskClient, key: str) -> None:
    done = Settled
    end(client, key, lambda claim: done(claim=claim, outcome="unchanged", size=3))
    for how in ("contains", "begins", "is"):
        found = client.get("/objects", query_string={"q": key, "how": how})
        assert found.status_code == 200
        assert str(words.key(key)) in found.text, how
    link = re.search(r'href="(/object\?[^"]+)"', found.text)
    assert link is not None
    page = client.get(html.unescape(link[1]))
    assert page.status_code == 200
    assert f'<h1 class="long">{words.key(key)}</h1>' in page.text
    form = re.search(r'action="(/object/copy\?[^"]+)"', page.text)
    assert form is not None
    after = client.post(html.unescape(form[1]), data={TOKEN_FIELD: token_in(page)}, follow_redirects=True)
    assert "looked at and copied now" in text_of(after)
    assert state_of(client, key) == "waiting"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\tb\n", "a\\tb\\n"),
        ("a\u00a0b\u3000c", "a\\xa0b\\u3000c"),
        (" a ", "\\x20a\\x20"),
        ("  ", "\\x20\\x20"),
        ("é🪣ש", "é🪣ש"),
        ("\U000e0001", "\\ue0001"),
    ],
)
def test_what_cannot_be_seen_in_a_key_is_written_as_its_code(text: str, shown: str) -> None:
    assert words.key(text).striptags() == shown
    assert words.key("<b>&\"'").startswith('<bdi class="key" dir="ltr">&lt;b&gt;&amp;')


def test_moments_in_prose_are_times_that_the_script_can_read() -> None:
    told = words.sentence("Up to 2026-11-25 06:12:44 UTC (<b>), not 2026-99-99 99:99:99 UTC.")
    assert told == (
        'Up to <time datetime="2026-11-25T06:12:44.000Z">2026-11-25 06:12:44 UTC</time> (&lt;b&gt;), '
        "not 2026-99-99 99:99:99 UTC."
    )


@pytest.mark.parametrize(
    ("count", "told"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**4, "3.0 TiB")],
)
def test_sizes_are_told_in_units(count: int | None, told: str) -> None:
    assert words.size(count) == told


def test_the_story_of_an_object_has_its_attempts_and_what_was_lost(client: FlaskClient) -> None:
    end(client, "k", failed)
    service_of(client).ledger.revive()
    end(
        client,
        "k",
        lambda claim: Settled(
            claim=claim,
            outcome="replicated",
            size=5000,
            source_etag="aaa",
            target_etag="bbb",
            lost=("tag colour",),
            bytes_copied=4096,
        ),
    )
    read = text_of(client.get("/object?rule=default&key=k"))
    assert "settled At the target, copied and verified" in read
    assert "ETag at the source aaa ETag at the target bbb" in read
    assert "Not held by the target tag colour" in read
    assert "Size 4.9 KiB (5,000 bytes)" in read
    assert "error it said <no>" in read
    assert "replicated 4,096 host:1:2:3" in read


def test_of_an_object_that_was_never_copied_nothing_is_said_to_be_at_the_target(client: FlaskClient) -> None:
    end(client, "k", failed)
    assert "ETag at the target – Not held by the target –" in text_of(
        client.get("/object?rule=default&key=k")
    )


def test_an_object_that_nobody_asked_for_can_be_copied(client: FlaskClient) -> None:
    page = client.get("/object?rule=default&key=new")
    assert page.status_code == 404
    assert "not on record" in text_of(page)
    press(client, "/object/copy?rule=default&key=new")
    assert state_of(client, "new") == "waiting"


def test_copying_again_does_not_wait_for_a_back_off_to_end(client: FlaskClient) -> None:
    from webhook.entries import Retried

    end(
        client,
        "k",
        lambda claim: Retried(
            claim=claim, after_s=3000, backoff_s=3000, counts=True, error_code="target_x", error="busy"
        ),
    )
    assert "Tried again in 50 min. busy" in text_of(client.get("/object?rule=default&key=k"))
    press(client, "/object/copy?rule=default&key=k")
    entry = ledger_of(client).entry("default", "k")
    assert entry is not None
    assert entry["due_at"] <= ledger_of(client).clock()


def test_a_search_that_has_not_seen_all_says_how_far_it_came_and_goes_on(client: FlaskClient) -> None:
    ledger = ledger_of(client)
    for first in range(0, SCAN_KEYS, 1000):
        ledger.put([Request(rule="default", key=f"k{number:06}") for number in range(first, first + 1000)])
    ledger.put([Request(rule="default", key="z-needle")])
    first = client.get("/objects?q=needle")
    assert f"Nothing yet. Searched up to k{SCAN_KEYS - 1:06} in rule default" in text_of(first)
    on = re.search(r'href="(/objects\?q=needle[^"]+)"', first.text)
    assert on is not None
    second = text_of(client.get(html.unescape(on[1])))
    assert "z-needle" in second
    assert "That is all." in second
    assert "Exactly this key z-needle" not in second
    assert "Exactly this key" in text_of(client.get("/objects?q=z-needle"))  # at once, on the first page


def test_long_lists_come_in_pages(client: FlaskClient) -> None:
    keys = [f"k{number:03}" for number in range(PAGE_ITEMS + 5)]
    for key in keys:
        end(client, key, failed)
    for path in ("/objects?q=k", "/failures"):
        first = client.get(path)
        on = re.findall(r'href="([^"]*cursor=[^"]+)"', first.text)
        assert len(on) == 1
        second = client.get(html.unescape(on[0]))
        seen = [set(re.findall(r"k\d{3}", text_of(page))) for page in (first, second)]
        assert seen[0] | seen[1] >= set(keys)
        assert len(seen[1]) == 5
    astray = client.get("/objects?q=k&_external=1&_scheme=javascript&_anchor=x&endpoint=y")
    (on,) = re.findall(r'href="([^"]*cursor=[^"]+)"', astray.text)
    assert re.fullmatch(r"/objects\?q=k&amp;cursor=[\w%=-]+", on)


@pytest.mark.parametrize(
    "path",
    [
        *("/objects?q=a&cursor=nonsense", "/objects?q=a%00b", "/failures?cursor=x", "/quarantine?cursor=x"),
        *(
            "/objects?q=" + "k" * 1100,
            "/objects?_external=1&_scheme=javascript&q=a",
            "/objects?q=a&how=x&state=y",
        ),
        *("/object?rule=default", "/object", "/object?rule=%00&key=%00", "/deletes", "/deletes?rule=%00"),
        *("/failures?rule=%00&reason=%00&prefix=%00", "/?from=-1", "/?from=99999999999999999999"),
    ],
)
def test_an_address_that_nobody_gave_gets_a_page_that_says_so(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (200, 400, 404)
    assert answer.mimetype == "text/html"
    assert "<h1" in answer.text
    assert "javascript:" not in answer.text


def test_another_method_is_refused(client: FlaskClient) -> None:
    assert client.post("/").status_code == 405
    assert client.get("/pause?rule=default").status_code == 405


# ── what there is to press ───────────────────────────────────────────────────────────────────────────


def test_failures_are_grouped_and_one_these_or_all_are_retried(client: FlaskClient) -> None:
    other = lambda claim: Buried(claim=claim, error_code="integrity", error="not what was sent")  # noqa: E731
    for key in ("a/1", "a/2", "b/1"):
        end(client, key, failed)
    for key in ("a/3", "b/2"):
        end(client, key, other)
    read = text_of(client.get("/failures"))
    assert "target_refused default 3" in read
    assert "integrity default 2" in read
    narrowed = client.get("/failures?reason=integrity&prefix=b/")
    assert "Retry these 1" in text_of(narrowed)
    assert "a/3" not in text_of(narrowed)
    assert "1 object is tried again." in text_of(press(client, "/failures/retry?rule=default&key=a/1"))
    assert [state_of(client, key) for key in ("a/1", "a/2")] == ["waiting", "failed"]
    press(client, "/failures/retry?reason=integrity&prefix=b/")
    assert [state_of(client, key) for key in ("b/2", "b/1", "a/3")] == ["waiting", "failed", "failed"]
    assert "3 objects are tried again." in text_of(press(client, "/failures/retry"))
    assert "No object has failed" in text_of(client.get("/failures"))


def test_what_was_done_is_said_once(client: FlaskClient) -> None:
    end(client, "k", failed)
    assert "1 object is tried again." in text_of(press(client, "/failures/retry"))
    assert "is tried again." not in text_of(client.get("/failures"))


def test_a_rule_is_paused_and_resumed_before_it_was_ever_swept(client: FlaskClient) -> None:
    assert "default is paused." in text_of(press(client, "/pause?rule=default"))
    assert list(service_of(client).pauses.paused()) == ["default"]
    page = client.get("/")
    assert "paused since" in text_of(page)
    assert 'action="/resume?rule=default"' in page.text
    assert "default is at work again." in text_of(press(client, "/resume?rule=default"))
    assert service_of(client).pauses.paused() == {}


def test_both_sides_are_compared_when_asked_for(client: FlaskClient) -> None:
    assert "are being compared" in text_of(press(client, "/sweep"))
    (asked,) = Sweeps(ledger_of(client)).unfinished()
    assert (asked.rule, asked.cause) == ("default", "request")
    assert "to begin" in text_of(client.get("/"))


def test_a_source_that_does_not_answer_is_said_so(make_client: MakeClient) -> None:
    client = make_client(MINIO_BUCKET="*", FILEBASE_BUCKET="{bucket}-copy")
    answer = press(client, "/sweep")
    assert answer.status_code == 502
    assert "A store does not do what was asked" in text_of(answer)


@pytest.fixture
def held(client: FlaskClient) -> FlaskClient:
    """Three deletes are held back."""
    Sweeps(ledger_of(client)).register({"default": "{}"})
    for key in ("gone/1", "gone/2", "gone/3"):
        hold(client, key)
    service_of(client).deletes.trip("default", "too many")
    return client


def test_deletes_that_are_held_back_lead_to_a_decision(held: FlaskClient) -> None:
    Fleet(ledger_of(held)).sign("host:1:2:3", threads=1)  # else that nobody replicates comes first
    first = held.get("/")
    assert "Decide about the deletes" in text_of(first)
    assert 'href="/deletes?rule=default"' in first.text
    read = text_of(held.get("/deletes?rule=default"))
    assert "3 deletes wait for a person" in read
    assert "too many" in read
    assert "gone/2" in read
    assert "The 3 copies are deleted at the target" in read
    assert "The copies stay at the target" in read


@pytest.mark.parametrize(("word", "state"), [("approve", "waiting"), ("discard", "settled")])
def test_a_decision_is_carried_out_when_it_is_confirmed(held: FlaskClient, word: str, state: str) -> None:
    refused = press(held, f"/deletes/{word}?rule=default")
    assert refused.status_code == 400
    assert state_of(held, "gone/1") == "held"
    answer = text_of(press(held, f"/deletes/{word}?rule=default", sure="yes"))
    assert "default: 3 deletes" in answer
    assert state_of(held, "gone/1") == state
    assert service_of(held).deletes.breakers()["default"].tripped_at is None


@pytest.fixture
def quarantined(client: FlaskClient) -> FlaskClient:
    """Two records that nobody could act on."""
    raw = '{"s3": {"object": {"key": "<b>\u202e"}}, "huge": "' + "x" * 30_000 + '"}'
    misfits = [Misfit(record_id=f"{number:032x}", reason="no <bucket>", raw=raw) for number in (1, 2)]
    ledger_of(client).put([], misfits)
    return client


def test_the_quarantine_shows_the_events_as_they_came(quarantined: FlaskClient) -> None:
    page = quarantined.get("/quarantine")
    assert "no &lt;bucket&gt;" in page.text
    assert '&#34;key&#34;: &#34;&lt;b&gt;<span class="code">\\u202e</span>&#34;' in page.text
    assert "characters more: GET /v1/quarantine has them" in text_of(page)
    assert "2 events that nobody could act on" in text_of(page)


def test_records_of_the_quarantine_are_read_again_or_dropped(quarantined: FlaskClient) -> None:
    answer = text_of(press(quarantined, f"/quarantine/retry?record={1:032x}"))
    assert "0 changes accepted, 0 that no rule wants, 1 record still cannot be used." in answer
    assert "1 record dropped." in text_of(press(quarantined, f"/quarantine/discard?record={1:032x}"))
    assert ledger_of(quarantined).quarantined() == 1
    assert press(quarantined, "/quarantine/discard").status_code == 400  # all: only where it is confirmed
    assert ledger_of(quarantined).quarantined() == 1
    assert "1 record dropped." in text_of(press(quarantined, "/quarantine/discard", sure="yes"))


@pytest.mark.parametrize("path", ["/pause?rule=no", "/sweep?rule=no", "/object/copy?rule=no&key=k", "/pause"])
def test_what_is_not_there_cannot_be_operated(client: FlaskClient, path: str) -> None:
    answer = press(client, path)
    assert answer.status_code in (400, 404)
    assert "<h1" in answer.text
    assert state_of(client, "k") == ""


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_ledger_that_cannot_be_reached_is_said_with_what_to_do(client: FlaskClient, tmp_path: Path) -> None:
    client.get("/")
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("ALTER TABLE entries RENAME TO gone")
    connection.close()
    for path in ("/", "/objects?q=a", "/failures"):
        answer = client.get(path)
        assert answer.status_code == 503, path
        assert "Retry-After" in answer.headers
        read = text_of(answer)
        assert "The ledger does not answer" in read
        assert 'id="trouble"' in answer.text
