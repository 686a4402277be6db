"""What the pages must bear, on both engines: links from elsewhere, pages elsewhere, and odd records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.unit.conftest import MakeClient, opened
from tests.unit.test_app import TOKENS, body_of, record
from tests.unit.test_pages import end, failed, hold, ledger_of, press, service_of, sign_in, state_of, text_of
from webhook.entries import Request
from webhook.records import SCAN_KEYS
from webhook.sweeps import Sweeps

FROM_ELSEWHERE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}


@pytest.fixture
def make_client(environ: dict[str, str], tmp_path: Path, database_url: str) -> Iterator[MakeClient]:
    """Makes a client of an application whose environment is extended by keywords."""
    with opened(environ | {"DATABASE_URL": database_url}, tmp_path) as make:
        yield lambda **more: make(**{"DATABASE_URL": database_url, **more})


@pytest.fixture
def client(make_client: MakeClient) -> FlaskClient:
    """A browser on the service's own machine, where no token is set."""
    return make_client()


@pytest.mark.parametrize("path", ["/", "/failures?reason=a&rule=b", "/sign-in?back=/failures"])
def test_a_link_from_elsewhere_signs_nobody_out(make_client: MakeClient, path: str) -> None:
    """The browser keeps back the cookie, so it looks as if nobody had signed in."""
    answer = make_client(**TOKENS).get(path, headers=FROM_ELSEWHERE)
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers
    assert f'content="0;url={path.replace("&", "&amp;")}"' in answer.text


def test_a_link_from_elsewhere_leads_to_the_sign_in_in_the_end(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    client.get("/failures", headers=FROM_ELSEWHERE)
    on = client.get("/failures", headers={"Sec-Fetch-Site": "same-origin"})
    assert (on.status_code, on.location) == (303, "/sign-in?back=/failures")


def test_a_link_from_elsewhere_works_where_the_cookie_comes_along(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    sign_in(client)
    assert "No object has failed" in text_of(client.get("/failures", headers=FROM_ELSEWHERE))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example:8000", "Host": "evil.example:8000"},  # its name was made to lead here
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/failures/retry", "/v1/pause", "/v1/deletes/approve"])
def test_without_a_token_a_page_elsewhere_cannot_use_the_api(
    client: FlaskClient, path: str, headers: dict[str, str]
) -> None:
    end(client, "k", failed)
    answer = client.post(path, data="", headers={"Content-Type": "text/plain", **headers})
    assert answer.status_code == 401
    assert state_of(client, "k") == "failed"
    assert service_of(client).pauses.paused() == {}


def test_without_a_token_nothing_is_told_by_a_name_made_to_lead_here(client: FlaskClient) -> None:
    assert client.get("/v1/failures", headers={"Host": "evil.example:8000"}).status_code == 401
    assert client.get("/v1/failures", headers={"Host": "127.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_event_of_a_time_that_no_clock_shows_hides_nothing(client: FlaskClient, moment: str) -> None:
    answer = client.post("/minio/events", data=body_of(record() | {"eventTime": moment}))
    assert answer.json == {"accepted": 1, "ignored": 0, "quarantined": 0}
    for path in ("/", "/objects?q=k", "/object?rule=default&key=k", "/v1/status", "/metrics"):
        assert client.get(path).status_code == 200, path


def test_held_deletes_are_shown_however_many_other_keys_there_are(client: FlaskClient) -> None:
    ledger = ledger_of(client)
    Sweeps(ledger).register({"default": "{}"})
    for first in range(0, SCAN_KEYS, 1000):
        ledger.put([Request(rule="default", key=f"a{number:06}") for number in range(first, first + 1000)])
    hold(client, "z/gone")
    assert "z/gone" in text_of(client.get("/deletes?rule=default"))


@pytest.mark.parametrize("what", ["retry", "discard"])
def test_a_record_s_id_that_no_ledger_could_hold_is_refused(client: FlaskClient, what: str) -> None:
    assert press(client, f"/quarantine/{what}?record=%00").status_code == 400
