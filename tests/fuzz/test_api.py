"""The whole HTTP API of a service that runs, called as its own description has it, one call after another.

`FUZZ_EXAMPLES=300 pytest -s tests/fuzz/test_api.py` calls for longer, each time something else, and counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounds
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.specs.openapi import checks as agreeing

from scripts.local_service import ANSWER_BOUND_S, API_TOKEN, WEBHOOK_AUTH_TOKEN, Replicator
from tests.fuzz.conftest import BUCKETS
from tests.fuzz.fuzz_events import bodies
from webhook.openapi import document
from webhook.pages.sessions import TOKEN_FIELD

EXAMPLES, STEPS = int(os.environ.get("FUZZ_EXAMPLES", "15")), 12
API = {"Authorization": f"Bearer {API_TOKEN}"}
HOOK = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
EVENTS = "/minio/events"
KEYS = ("hello.txt", "a b+c%20é.txt", "<script>alert(1)</script>.txt")
SCRIPT = "<script>alert(1)</script>"
CORPUS = [body.replace(b'"source"', json.dumps(BUCKETS[0]).encode()) for body in bodies()]
CALLED: Counter[tuple[str, int]] = Counter()
"""Operation and status → how often."""
LINE_MAX = 8190 - 30
"""Of a URL that the server reads at all."""
CHECKS = [
    agreeing.status_code_conformance,
    agreeing.content_type_conformance,
    agreeing.response_headers_conformance,
    agreeing.response_schema_conformance,
]
OPERATIONS = [(method, path) for path, methods in document()["paths"].items() for method in methods]
PAGES = (
    *("/", "/objects", "/failures", "/quarantine", "/deletes", f"/object?rule=default&key={SCRIPT}.txt"),
    *(f"/objects?q={SCRIPT}", f"/objects?how={SCRIPT}&q=a", f"/objects?q=a&state={SCRIPT}"),
    *(f"/objects?rule={SCRIPT}", f"/failures?reason={SCRIPT}", f"/objects?cursor={SCRIPT}"),
    *(
        f"/{SCRIPT}",
        f"/sign-in?back=/{SCRIPT}",
        f"/objects?{SCRIPT}=1",
        f"/object?rule={SCRIPT}&key={SCRIPT}",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def _objects(service: Replicator) -> Iterator[None]:
    """Something to copy, and afterwards the service as it was found: the same, and nothing paused."""
    before, source = service.pid, service._stores[0].client()
    for key in KEYS:
        source.put_object(bucket_name=BUCKETS[0], object_name=key, data=io.BytesIO(b"hello"), length=5)
    yield
    service.post("/v1/resume").raise_for_status()
    assert service.pid == before
    if "FUZZ_EXAMPLES" in os.environ:
        for (label, status), count in sorted(CALLED.items()):
            print(f"{count:7} {label} {status}")  # noqa: T201 - the result of a long run


@pytest.fixture(autouse=True)
def _nothing_unforeseen(service: Replicator) -> Iterator[None]:
    read = service.log_path.stat().st_size
    yield
    log = service.log_path.read_bytes()[read:].decode()
    assert "unexpected error" not in log
    assert "Traceback" not in log


def bounded(examples: int) -> bounds:
    """A bounded number of examples: the same in each run, but for a long one."""
    return bounds(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def assert_answered_in_order(case: Any, response: Any) -> None:
    """As described, no error but those of the stores, and nothing that a browser would run."""
    CALLED[case.operation.label, response.status_code] += 1
    if len(response.request.url) > LINE_MAX:
        return  # gunicorn's own answer
    is_of_store = response.status_code == 502 and case.operation.label == "POST /v1/replicate"
    assert response.status_code < 500 or is_of_store, response.text
    assert_not_run(response)
    case.validate_response(response, checks=CHECKS)


def assert_not_run(response: Any) -> None:
    """No browser takes the answer for a page."""
    headers = {name.lower(): str(value) for name, value in response.headers.items()}
    assert "html" not in headers["content-type"], (response.request.url, response.text)
    assert "nosniff" in headers["x-content-type-options"]


# ── one call after another ───────────────────────────────────────────────────────────────────────────


def test_whatever_is_called_after_whatever_it_is_answered_as_described(service: Replicator) -> None:
    before, wrong = CALLED.copy(), list[str]()
    with contextlib.suppress(FlakyStrategyDefinition):  # one example finds what another has left behind
        machine_for(service, wrong).run(settings=bounded(EXAMPLES))
    assert not wrong
    called = {label for label, status in CALLED - before if status < 300}
    assert len(called) > 2


def machine_for(service: Replicator, wrong: list[str]) -> Any:
    """Calls of what has links in the description, with what earlier answers gave; says what was wrong."""

    class Calls(schemathesis.openapi.from_url(f"{service.url}/openapi.json").as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            make_real(case)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": API, "timeout": ANSWER_BOUND_S}

        def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
            try:
                assert_answered_in_order(case, response)
            except Exception as error:
                wrong.append(f"{case.operation.label}: {error}")
                raise

    return Calls


LINKED = [
    ("post", "/v1/replicate", {"s3_key": KEYS[2]}),
    ("post", "/v1/sweeps", {"rule": "default"}),
    ("post", "/v1/pause", {"rule": "default"}),
    ("get", "/v1/quarantine", None),
]


@pytest.mark.parametrize(("method", "path", "body"), LINKED)
def test_a_link_of_the_description_leads_on_from_the_answer(
    service: Replicator, method: str, path: str, body: dict[str, Any] | None
) -> None:
    requests.post(service.events_url, json={"unusable": True}, headers=HOOK, timeout=ANSWER_BOUND_S)
    service.post("/v1/resume").raise_for_status()
    linked = schemathesis.openapi.from_dict(document())
    responses = document()["paths"][path][method]["responses"].values()
    (link,) = [each["links"]["next"] for each in responses if "links" in each]
    answer = service.get(path) if method == "get" else service.post(path, json=body)
    onward = linked.find_operation_by_id(link["operationId"])
    places = {**link.get("parameters", {}), **link.get("requestBody", {})}
    values = {name: at(answer.json(), place.partition("#/")[2]) for name, place in places.items()}
    url = onward.path.format(**values)
    second = service.get(url) if onward.method == "get" else service.post(url, json=values)
    assert values
    assert second.status_code == 200, second.text


def at(document: Any, place: str) -> Any:
    """What is there, names and numbers parted by slashes."""
    for name in place.split("/"):
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


def make_real(case: Any) -> None:
    """Half of all calls are made to name what is really there, so that more than errors comes of them."""
    choice = zlib.crc32(repr((case.body, case.query, case.path_parameters)).encode("utf-8", "replace"))
    if choice % 2:
        return
    key = KEYS[choice // 2 % len(KEYS)]
    real = {"rule": "default", "key": key, "s3_key": key, "bucket": BUCKETS[0]}
    for sent in (case.body, case.query, case.path_parameters):
        if isinstance(sent, dict):
            sent.update({name: real[name] for name in real if isinstance(sent.get(name), str)})
    if case.operation.label == f"POST {EVENTS}":
        case.body = json.loads(CORPUS[choice // 2 % len(CORPUS)])


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_is_sent_it_is_answered_as_described(service: Replicator, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{service.url}/openapi.json")[path][method.upper()]

    @bounded(EXAMPLES)
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        make_real(case)
        headers = HOOK if path == EVENTS else API
        response = case.call(headers=headers, timeout=ANSWER_BOUND_S)
        assert_answered_in_order(case, response)

    ask()


# ── without the token ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_without_the_token_whatever_is_sent_is_refused(service: Replicator, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{service.url}/openapi.json")[path][method.upper()]
    wants = bool(document()["paths"][path][method]["security"])
    statuses = set()

    @bounded(4)
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        is_probe = case.operation.label == f"POST {EVENTS}" and not isinstance(case.body, dict | list)
        for header in ("", "Bearer", "Bearer wrong", f"Basic {API_TOKEN}", f"bearer {API_TOKEN} "):
            case.headers = {"Authorization": header}
            response = case.call(timeout=ANSWER_BOUND_S)
            assert_not_run(response)
            if not is_probe:
                statuses.add(response.status_code)

    ask()
    assert statuses <= ({401} if wants else {200})


# ── scripts ──────────────────────────────────────────────────────────────────────────────────────────


def fields_of(method: str, path: str) -> list[str]:
    """What an operation takes in its body, whichever of its forms."""
    content = document()["paths"][path][method].get("requestBody", {}).get("content", {})
    return sorted(set(re.findall(r"'(\w+)': \{", repr(content))) - {"schema", "properties", "application"})


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_script_that_is_sent_is_no_part_of_a_page(service: Replicator, method: str, path: str) -> None:
    headers = HOOK if path == EVENTS else API
    names = [each["name"] for each in document()["paths"][path][method]["parameters"]]
    url = service.url + path.format(rule=SCRIPT, key=SCRIPT, number=SCRIPT)
    sent: list[dict[str, Any]] = [{"params": {name: SCRIPT}} for name in (*names, SCRIPT)]
    sent.append({"headers": {"Authorization": SCRIPT}})
    if method == "post":
        sent += [{"json": {name: SCRIPT}} for name in (*fields_of(method, path), SCRIPT)]
        sent += [{"data": SCRIPT}, {"data": SCRIPT, "headers": {**headers, "Content-Type": SCRIPT}}]
    for each in sent:
        more = {"headers": headers, **each}
        response = requests.request(method, url, timeout=ANSWER_BOUND_S, **more)
        assert response.status_code < 500, response.text
        assert_not_run(response)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("has_signed_in", [True, False])
def test_a_page_shows_a_script_and_does_not_run_it(
    service: Replicator, path: str, has_signed_in: bool
) -> None:
    scripted = {"Records": [{"s3": {"bucket": {"name": SCRIPT}}, SCRIPT: SCRIPT, "eventName": SCRIPT}]}
    requests.post(service.events_url, json=scripted, headers=HOOK, timeout=ANSWER_BOUND_S).raise_for_status()
    service.post("/v1/replicate", json={"s3_key": KEYS[2], "wait": False}).raise_for_status()
    with requests.Session() as browser:
        if has_signed_in:
            sign_in(browser, service)
        response = browser.get(service.url + path, timeout=ANSWER_BOUND_S)
        assert response.status_code < 500
        assert SCRIPT not in response.text
        if "html" in response.headers["Content-Type"]:
            assert "nosniff" in response.headers["X-Content-Type-Options"]
            assert "'unsafe-inline'" not in response.headers["Content-Security-Policy"]
        else:
            assert_not_run(response)
        if has_signed_in and path in (f"/objects?q={SCRIPT}", "/quarantine"):
            assert "&lt;script&gt;" in response.text


def sign_in(browser: requests.Session, service: Replicator) -> None:
    """As a person does it."""
    form = browser.get(f"{service.url}/sign-in", timeout=ANSWER_BOUND_S).text
    found = re.search(f'name="{TOKEN_FIELD}" value="([0-9a-f]+)"', form)
    assert found
    data = {"token": API_TOKEN, TOKEN_FIELD: found[1]}
    done = browser.post(f"{service.url}/sign-in", data=data, timeout=ANSWER_BOUND_S, allow_redirects=False)
    assert done.status_code == 303
