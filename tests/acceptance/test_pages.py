"""The pages in a real Chromium, used as a person would, before real stores."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, expect

from scripts.local_servers import PostgreSQL, SeaweedFS
from scripts.local_service import API_TOKEN, WEBHOOK_AUTH_TOKEN
from tests.acceptance.conftest import BUCKET, Stack, content, running_stack, until
from tests.browser import BOUND_MS, BOUND_S, WIDER_THAN_THE_SCREEN, NoBrowserError, Visit, chromium
from tests.proxy import Answer, Exchange, Proxy

PHONE = {"width": 360, "height": 740}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": PHONE},
}
ODD_KEY = 'odd/<b>&"quoted" שלום\u202e + %41.txt'
ODD_KEYS = {
    "<script>document.title = 'mine'</script>": "<script>document.title = 'mine'</script>",
    "../../etc/passwd": "../../etc/passwd",
    "a/./b/../c//": "a/./b/../c//",
    "'\"` autofocus onfocus=alert(1) x='": "'\"` autofocus onfocus=alert(1) x='",
    "lines\r\nand\ttabs\x01\x1b[2J\x7f": "lines\\r\\nand\\ttabs\\x01\\x1b[2J\\x7f",
    "\u202efdp.exe\u2066": "\\u202efdp.exe\\u2066",
    " ends with a space ": "\\x20ends with a space\\x20",
    "%2e%2e%2f?key=x&rule=y;#z+": "%2e%2e%2f?key=x&rule=y;#z+",
    "שלום/\u00a0.txt": "שלום/\\xa0.txt",
}
"""Key → how it is to be read."""
SIGN_IN = re.compile("/sign-in")
JAVASCRIPT = pytest.mark.parametrize("javascript", [True, False], ids=["with-script", "without-script"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Without one the tests are skipped, or fail where nobody would notice that."""
    try:
        with chromium() as started:
            yield started
    except NoBrowserError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, seaweed: SeaweedFS) -> Iterator[Stack]:
    """A stack for tests that leave nothing behind that others would stumble over."""
    seaweed.client().make_bucket(bucket_name="pages")
    with running_stack(tmp_path_factory.mktemp("pages"), seaweed, "pages") as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Begins a visit to a stack; keywords are of the browser's context. Nothing may go wrong in the browser
    but what the test expects and takes off the list.
    """
    visits: list[tuple[BrowserContext, Visit]] = []

    def begin(stack: Stack, *, javascript: bool = True, **more: Any) -> Visit:
        context = browser.new_context(java_script_enabled=javascript, **more)
        visits.append((context, Visit(stack.service.url, context.new_page())))
        return visits[-1][1]

    yield begin
    for context, made in visits:
        context.close()
        assert made.complaints == []


def busy(exchange: Exchange) -> None:
    """The target refuses to take it."""
    exchange.answer = Answer(
        403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>"
    )


# ── one after the other, with the script and without ─────────────────────────────────────────────────


@JAVASCRIPT
def test_a_person_signs_in_finds_an_object_copies_it_again_and_signs_out(
    shared: Stack, visit: Callable[..., Visit], javascript: bool
) -> None:
    key, shown = f"{ODD_KEY}.{javascript}", f"{ODD_KEY}.{javascript}".replace("\u202e", "\\u202e")
    shared.put_many([key, f"plain/{javascript}.txt"], content, clients=1)
    is_copied = lambda: shared.entry(quote(key)).get("state") == "settled"  # noqa: E731
    until(is_copied, bound_s=BOUND_S, what="it is copied")
    person = visit(shared, javascript=javascript)
    person.go("/failures")
    expect(person.page).to_have_url(SIGN_IN)
    person.page.get_by_label("API token").fill("wrong")
    person.press("Sign in")
    person.sees("That is not the API_TOKEN of the service.")
    person.complaints.clear()  # Chromium tells of the 401
    person.page.get_by_label("API token").fill(API_TOKEN)
    person.press("Sign in")
    person.sees("No object has failed.")  # where they wanted to go
    person.press("Status")
    person.page.get_by_label("Find an object").fill(f'quoted" שלום\u202e + %41.txt.{javascript}')
    person.page.keyboard.press("Enter")
    person.sees("That is all.")
    assert person.page.get_by_role("table").locator("tbody tr").count() == 1
    person.page.get_by_role("link", name=shown).click()
    expect(person.page.get_by_role("heading", level=1)).to_have_text(shown)
    person.sees("At the target, copied and verified")
    entry = shared.entry(quote(key))
    for etag in (entry["source_etag"], entry["target_etag"]):
        person.sees(etag)
    assert person.page.get_by_role("table").locator("tbody tr").count() == 1
    person.press("Copy again")
    person.sees("It is looked at and copied now.")
    person.follow("At the target; it was found equal")
    assert person.page.get_by_role("table").locator("tbody tr").count() == 2
    person.press("Sign out")
    expect(person.page).to_have_url(SIGN_IN)
    person.go("/")
    expect(person.page).to_have_url(SIGN_IN)


@JAVASCRIPT
def test_a_person_sees_what_failed_and_retries_one_and_all(
    stack: Callable[..., Stack], seaweed: Any, visit: Callable[..., Visit], javascript: bool
) -> None:
    with Proxy(seaweed.endpoint) as proxy:
        proxy.plan("PutObject", busy, times=1000)
        running = stack(FILEBASE_ENDPOINT=proxy.endpoint, MAX_ATTEMPTS="1")
        running.put_many([f"k{number}" for number in range(5)], content, clients=1)
        failed = lambda: len(running.service.get("/v1/failures").json()["failures"])  # noqa: E731
        until(lambda: failed() == 5, bound_s=BOUND_S, what="five objects failed")
        proxy.forget()
        person = visit(running, javascript=javascript)
        person.sign_in()
        person.sees("5 objects failed")
        person.press("See what failed, and retry")
        person.sees("AccessDenied")
        person.press("Retry k3")
        person.sees("1 object is tried again.")
        until(lambda: running.entry("k3")["state"] == "settled", bound_s=BOUND_S, what="k3 is copied")
        person.go("/failures")
        person.press("Retry all 4")
        person.sees("4 objects are tried again.")
        running.wait_until_settled(entries=5, bound_s=BOUND_S)
        person.go("/failures")
        person.sees("No object has failed.")
    assert running.compare().ok


@JAVASCRIPT
def test_a_person_pauses_a_rule_and_resumes_it(
    shared: Stack, visit: Callable[..., Visit], javascript: bool
) -> None:
    key = f"paused-{javascript}"
    person = visit(shared, javascript=javascript)
    person.sign_in()
    person.press("Pause default")
    person.sees("default is paused.")
    person.sees(re.compile("paused since .* UTC"))
    until(lambda: shared.rule()["paused_since"], bound_s=BOUND_S, what="the rule is paused")
    shared.put(key, content(key))
    waiting = lambda: shared.entry(key).get("state") == "waiting"  # noqa: E731
    until(waiting, bound_s=BOUND_S, what="the event is there")
    person.go(f"/object?rule=default&key={key}")
    person.follow("Its rule is paused")
    assert shared.target_etag(key) is None
    person.press("Status")
    person.page.locator("#verdict").get_by_role("button", name="Resume default").click()
    person.sees("default is at work again.")
    until(lambda: shared.target_etag(key), bound_s=BOUND_S, what="it is copied")


@JAVASCRIPT
def test_a_person_decides_about_deletes_and_has_both_sides_compared(
    stack: Callable[..., Stack], visit: Callable[..., Visit], javascript: bool
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="0", DELETE_BREAKER_MAX="2")
    keys = [f"k{number}" for number in range(8)]
    running.put_many(keys, content, clients=2)
    running.wait_until_settled(entries=8, bound_s=BOUND_S)
    person = visit(running, javascript=javascript)
    person.sign_in()
    person.sees("nothing is proved yet")
    person.page.locator("#verdict").get_by_role("button", name="Compare both sides now").click()
    person.follow(re.compile("Complete Target complete up to .*proved by sweep"))
    running.remove_many(keys[:6], clients=1)
    held = lambda: running.rule()["deletes"]["held"]  # noqa: E731
    until(lambda: held() >= 3, bound_s=BOUND_S, what="deletes are held back")
    until(lambda: running.rule()["deletes"]["pending"] == 0, bound_s=BOUND_S, what="none is pending")
    before, number = set(running.target_keys()), held()
    person.go("/")
    person.press("Decide about the deletes")
    person.sees(f"{number} deletes wait for a person")
    person.press("Approve the deletes")  # the box is not ticked: the browser does not send the form
    expect(person.page.get_by_label("I know why they went")).to_be_visible()
    assert set(running.target_keys()) == before
    person.page.get_by_label("I know why they went").check()
    person.press("Approve the deletes")
    person.sees(f"default: {number} deletes approved")
    until(lambda: set(running.target_keys()) == set(keys[6:]), bound_s=BOUND_S, what="the copies are gone")


def test_odd_keys_are_shown_as_they_are_and_can_be_opened_and_copied_again(
    stack: Callable[..., Stack], visit: Callable[..., Visit]
) -> None:
    running = stack()
    tell(running, *(_record(key) for key in ODD_KEYS))
    person = visit(running)
    person.sign_in()
    for key, shown in ODD_KEYS.items():
        person.go("/objects?rule=default")
        person.page.get_by_role("link", name=shown, exact=True).click()
        heading = person.page.get_by_role("heading", level=1)
        assert heading.text_content() == shown
        assert heading.locator(":not(bdi, .code)").count() == 0, "nothing of a key is markup"
        assert parse_qs(urlsplit(person.page.url).query)["key"] == [key]
        person.press("Copy again")
        person.sees("It is looked at and copied now.")
    with closing(sqlite3.connect(running.service.folder / "data" / "replicator.db")) as ledger:
        asked = dict(ledger.execute("SELECT key, generation FROM entries"))
    assert asked == dict.fromkeys(ODD_KEYS, 2)


def _record(key: str) -> dict[str, Any]:
    return {
        "eventName": "s3:ObjectCreated:Put",
        "s3": {"bucket": {"name": BUCKET}, "object": {"key": quote(key)}},
    }


def tell(running: Stack, *records: dict[str, Any]) -> dict[str, Any]:
    """Sends these as MinIO does, one notification each; gives what was answered to the last."""
    headers = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
    answers = [
        running.service.post("/minio/events", json={"Records": [each]}, headers=headers) for each in records
    ]
    return dict(answers[-1].json())


# ── what the script adds ─────────────────────────────────────────────────────────────────────────────


def test_the_page_updates_itself_and_leaves_the_person_where_they_are(
    shared: Stack, visit: Callable[..., Visit]
) -> None:
    before_it = shared.service.settled()
    person = visit(shared, viewport={"width": 900, "height": 500}, timezone_id="Asia/Kolkata")
    person.sign_in()
    page = person.page
    page.evaluate("window.isTheSame = true")
    page.get_by_text("The same in numbers").click()
    pause = page.get_by_role("button", name="Pause default")
    pause.focus()
    page.evaluate("document.activeElement.scrollIntoView({block: 'center', behavior: 'instant'})")
    top = lambda: pause.evaluate("each => each.getBoundingClientRect().top")  # noqa: E731
    before = top()
    old = pause.element_handle()
    shared.put_many([f"k{number}" for number in range(7)], content, clients=1)
    expect(page.get_by_role("link", name=f"{before_it + 7} settled", exact=True)).to_be_visible(
        timeout=BOUND_MS
    )
    assert page.evaluate("window.isTheSame")
    assert not old.evaluate("each => each.isConnected"), "the part with the focus was swapped, too"
    expect(pause).to_be_focused()
    assert abs(top() - before) < 20, "a line may have become a little higher, no more"
    expect(page.get_by_role("region", name="The last hour in numbers")).to_be_visible()
    told = page.locator("#workers .when").first.inner_text()
    utc, here = re.findall(r"(\d\d):(\d\d):\d\d", told)
    assert (int(here[0]) * 60 + int(here[1]) - int(utc[0]) * 60 - int(utc[1])) % 1440 == 330


def test_the_page_says_that_the_service_is_away_and_when_it_is_back(
    stack: Callable[..., Stack], visit: Callable[..., Visit]
) -> None:
    running = stack()
    person = visit(running)
    person.sign_in()
    alert = person.page.get_by_role("alert")
    expect(alert).to_be_hidden()
    running.service.stop()
    expect(alert).to_contain_text("The service cannot be reached. What you see is of", timeout=BOUND_MS)
    assert person.complaints
    running.service.start()
    expect(alert).to_be_hidden(timeout=BOUND_MS)
    person.complaints.clear()  # Chromium told of the failed requests


def test_the_page_says_that_the_session_is_over(shared: Stack, visit: Callable[..., Visit]) -> None:
    person = visit(shared)
    person.page.clock.install()
    person.sign_in()
    person.page.context.clear_cookies()
    person.page.clock.run_for(6000)
    alert = person.page.get_by_role("alert")
    expect(alert).to_contain_text("Your session is over. Load the page again to sign in.", timeout=BOUND_MS)
    person.page.reload()
    expect(person.page).to_have_url(SIGN_IN)


def test_a_ledger_that_is_away_is_told_with_what_to_do(
    stack: Callable[..., Stack], visit: Callable[..., Visit], tmp_path: Path
) -> None:
    with PostgreSQL(tmp_path / "postgresql") as server:
        person = visit(stack(DATABASE_URL=server.create_database("pages")))
        person.sign_in()
        server.stop()
        alert = person.page.get_by_role("alert")
        expect(alert).to_contain_text("The ledger does not answer", timeout=BOUND_MS)
        expect(person.page.locator("#verdict")).to_be_visible()  # what was known stays
        person.go("/failures")
        person.sees("Trouble The ledger does not answer")
        person.sees("DATABASE_URL")
        server.start()
        person.press("Status page")
        expect(person.page.locator("#verdict")).to_be_visible(timeout=BOUND_MS)
        person.complaints.clear()  # Chromium told of 503


def test_the_page_asks_nothing_while_nobody_looks_and_when_it_is_told_to_stop(
    shared: Stack, visit: Callable[..., Visit]
) -> None:
    person = visit(shared)
    page = person.page
    page.clock.install()
    person.sign_in()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_request("**/"):
        page.clock.run_for(6000)
    page.wait_for_load_state("networkidle")
    show = """hidden => {
        Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(show, True)
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_request("**/"):  # at once
        page.evaluate(show, False)
    page.wait_for_load_state("networkidle")
    page.get_by_label("Update every 5 s").uncheck()
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []


# ── for everybody ────────────────────────────────────────────────────────────────────────────────────


def _trouble(running: Stack, proxy: Proxy) -> None:
    """Something of everything: settled, failed, held, in quarantine, swept, paused."""
    keys = [f"folder/{number:02}.txt" for number in range(6)]
    running.put_many(keys, content, clients=1)
    running.wait_until_settled(entries=6, bound_s=BOUND_S)
    running.sweep()
    proxy.plan("PutObject", busy, times=1000)
    running.put_many([ODD_KEY, "x" * 300], content, clients=1)
    running.remove_many(keys[:4], clients=1)
    of = lambda state: sum(running.service.get("/v1/status").json()["entries"][state].values())  # noqa: E731
    until(lambda: of("failed") == 2 and of("held") >= 2, bound_s=BOUND_S, what="failed and held")
    assert tell(running, {"eventName": "s3:ObjectCreated:Put", "s3": {}})["quarantined"] == 1


def pages_of(running: Stack) -> list[str]:
    """All that can be seen."""
    odd = quote(ODD_KEY, safe="")
    story = [f"/object?rule=default&key={key}" for key in (odd, "folder/05.txt", "nobody")]
    lists = ["/", "/objects", "/objects?q=folder", "/failures", "/quarantine", "/deletes?rule=default"]
    return [*lists, *story]


def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    stack: Callable[..., Stack], seaweed: Any, visit: Callable[..., Visit]
) -> None:
    with Proxy(seaweed.endpoint) as proxy:
        breaker = {"REPLICATE_DELETES": "true", "DELETE_GRACE_S": "0", "DELETE_BREAKER_MAX": "1"}
        running = stack(FILEBASE_ENDPOINT=proxy.endpoint, MAX_ATTEMPTS="1", **breaker)
        _trouble(running, proxy)
        wrong = {
            name: found for name, more in LOOKS.items() if (found := _found(visit(running, **more), running))
        }
    assert wrong == {}


def _found(person: Visit, running: Stack) -> dict[str, list[Any]]:
    """What is wrong with each page."""
    person.go("/sign-in")
    found = {"/sign-in": _violations(person)}
    person.sign_in()
    for path in pages_of(running):
        person.go(path)
        found[path] = _violations(person)
        if wider := person.page.evaluate(WIDER_THAN_THE_SCREEN):
            found[path].append(f"{wider} pixels wider than the screen")
    person.page.close()
    person.complaints.clear()  # Chromium tells of the object that is not on record: 404
    return {path: wrong for path, wrong in found.items() if wrong}


def _violations(person: Visit) -> list[Any]:
    found = Axe().run(person.page).response["violations"]
    return [(each["id"], each["impact"], [node["html"] for node in each["nodes"]]) for each in found]


def test_the_quarantine_is_looked_at_and_emptied_by_keyboard_alone(
    shared: Stack, visit: Callable[..., Visit]
) -> None:
    assert tell(shared, {"eventName": "s3:ObjectCreated:Put", "s3": {}})["quarantined"] == 1
    person = visit(shared)
    person.sign_in()
    _tab_to(person, "Quarantine")
    person.page.keyboard.press("Enter")
    person.sees('"eventName": "s3:ObjectCreated:Put"')
    assert _tab_to(person, "Skip to the content") == 1
    person.page.keyboard.press("Enter")
    assert _tab_to(person, "I have looked at all of them") == 2
    person.page.keyboard.press("Space")
    assert _tab_to(person, "Drop all") == 1
    person.page.keyboard.press("Enter")
    person.sees("1 record dropped.")
    person.sees("Every event could be acted on.")


def test_a_rule_is_paused_and_resumed_by_keyboard_alone(shared: Stack, visit: Callable[..., Visit]) -> None:
    person = visit(shared)
    person.sign_in()
    _tab_to(person, "Pause default")
    person.page.keyboard.press("Space")
    person.sees("default is paused.")
    assert shared.rule()["paused_since"]
    _tab_to(person, "Resume default")
    person.page.keyboard.press("Enter")
    person.sees("default is at work again.")
    assert not shared.rule()["paused_since"]


NAME = "each => each.ariaLabel || each.labels?.[0]?.innerText || each.innerText"


def _tab_to(person: Visit, name: str) -> int:
    """Presses Tab until what has that name is focused, and can be seen to be; gives how often."""
    focused = person.page.locator(":focus")
    for presses in range(1, 60):
        person.page.keyboard.press("Tab")
        if focused.count() and focused.evaluate(NAME).strip() == name:
            outline = focused.evaluate("each => getComputedStyle(each).outlineStyle")
            assert outline != "none", f"nothing shows that {name} is focused"
            return presses
    raise AssertionError(f"{name} cannot be reached by Tab")
