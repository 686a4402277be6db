"""The pages in a real Chromium, used as a person would, before real stores."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from scripts.local_service import API_TOKEN, WEBHOOK_AUTH_TOKEN
from scripts.local_tools import find_chromium
from tests.acceptance.conftest import Stack, content, until
from tests.proxy import Answer, Exchange, Proxy

BOUND_S = 60.0
BOUND_MS = BOUND_S * 1000
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PHONE = {"width": 360, "height": 740}
ODD_KEY = 'odd/<b>&"quoted" שלום\u202e + %41.txt'
SIGN_IN = re.compile("/sign-in")
JAVASCRIPT = pytest.mark.parametrize("javascript", [True, False], ids=["with-script", "without-script"])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own."""
    path = find_chromium()
    if path is None:
        reason = "Chromium is not here; scripts/get_chromium.sh fetches it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A person before the pages of a service."""

    url: str
    page: Page
    complaints: list[str] = field(default_factory=list)
    """What the browser wrote to its console: refused scripts and styles, errors of the script."""

    def go(self, path: str) -> None:
        """Types an address."""
        self.page.goto(self.url + path)

    def sign_in(self) -> None:
        """With the right token, by keyboard alone."""
        self.go("/")
        expect(self.page.get_by_label("API token")).to_be_focused()
        self.page.keyboard.type(API_TOKEN)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#verdict")).to_be_visible()

    def press(self, name: str, *, exact: bool = True) -> None:
        """A button or a link that looks like one."""
        button = self.page.get_by_role("button", name=name, exact=exact)
        link = self.page.get_by_role("link", name=name, exact=exact)
        button.or_(link).first.click()

    def sees(self, text: str | re.Pattern[str]) -> None:
        """Waits until it is there."""
        expect(self.page.locator("main")).to_contain_text(text, timeout=BOUND_MS)

    def follow(self, text: str | re.Pattern[str]) -> None:
        """The same where the page may not update itself: loads it again until it is there."""
        until(lambda: self._reads(text), bound_s=BOUND_S, what=f"{text} on the page")

    def _reads(self, text: str | re.Pattern[str]) -> bool:
        found = " ".join(self.page.locator("main").inner_text().split())
        if text.search(found) if isinstance(text, re.Pattern) else text in found:
            return True
        self.page.reload()
        return False


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    """Begins a visit to a stack; keywords are of the browser's context. Nothing may go wrong in the browser
    but what the test expects and takes off the list.
    """
    visits: list[tuple[BrowserContext, Visit]] = []

    def begin(stack: Stack, *, javascript: bool = True, **more: Any) -> Visit:
        context = chromium.new_context(java_script_enabled=javascript, **more)
        made = Visit(stack.service.url, context.new_page())
        made.page.on("console", lambda message: _note(made, message))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        visits.append((context, made))
        return made

    yield begin
    for context, made in visits:
        context.close()
        assert made.complaints == []


def _note(visit: Visit, message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        visit.complaints.append(message.text)


def busy(exchange: Exchange) -> None:
    """The target refuses to take it."""
    exchange.answer = Answer(
        403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>"
    )


# ── one after the other, with the script and without ─────────────────────────────────────────────────


@JAVASCRIPT
def test_a_person_signs_in_finds_an_object_copies_it_again_and_signs_out(
    stack: Callable[..., Stack], visit: Callable[..., Visit], javascript: bool
) -> None:
    running = stack()
    keys = [ODD_KEY, "plain/1.txt", "plain/2.txt"]
    running.put_many(keys, content, clients=1)
    running.wait_until_settled(entries=3, bound_s=BOUND_S)
    person = visit(running, javascript=javascript)
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
    person.page.get_by_label("Find an object").fill("quoted")
    person.page.keyboard.press("Enter")
    person.sees("That is all.")
    shown = ODD_KEY.replace("\u202e", "\\u202e")
    person.page.get_by_role("link", name=shown).click()
    expect(person.page.get_by_role("heading", level=1)).to_have_text(shown)
    person.sees("At the target, copied and verified")
    entry = running.entry(quote(ODD_KEY))
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
    stack: Callable[..., Stack], visit: Callable[..., Visit], javascript: bool
) -> None:
    running = stack()
    person = visit(running, javascript=javascript)
    person.sign_in()
    person.press("Pause default")
    person.sees("default is paused.")
    person.sees(re.compile("paused since .* UTC"))
    until(lambda: running.rule()["paused_since"], bound_s=BOUND_S, what="the rule is paused")
    running.put_many(["a", "b"], content, clients=1)
    waiting = lambda: running.entry("b").get("state") == "waiting"  # noqa: E731
    until(waiting, bound_s=BOUND_S, what="the event is there")
    person.go("/object?rule=default&key=b")
    person.follow("Its rule is paused")
    assert running.target_keys() == {}
    person.press("Status")
    person.page.locator("#verdict").get_by_role("button", name="Resume default").click()
    person.sees("default is at work again.")
    running.wait_until_settled(entries=2, bound_s=BOUND_S)
    assert set(running.target_keys()) == {"a", "b"}


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


# ── what the script adds ─────────────────────────────────────────────────────────────────────────────


def test_the_page_updates_itself_and_leaves_the_person_where_they_are(
    stack: Callable[..., Stack], visit: Callable[..., Visit]
) -> None:
    running = stack()
    person = visit(running, viewport={"width": 900, "height": 500}, timezone_id="Asia/Kolkata")
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
    running.put_many([f"k{number}" for number in range(7)], content, clients=1)
    running.wait_until_settled(entries=7, bound_s=BOUND_S)
    expect(page.get_by_role("link", name="7 settled")).to_be_visible(timeout=BOUND_MS)
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


def test_the_page_asks_nothing_while_nobody_looks_and_when_it_is_told_to_stop(
    stack: Callable[..., Stack], visit: Callable[..., Visit]
) -> None:
    person = visit(stack())
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


@pytest.fixture
def troubled(stack: Callable[..., Stack], seaweed: Any) -> Iterator[Stack]:
    """A stack with something of everything: settled, failed, held, waiting, in quarantine, swept."""
    with Proxy(seaweed.endpoint) as proxy:
        running = stack(
            FILEBASE_ENDPOINT=proxy.endpoint,
            MAX_ATTEMPTS="1",
            REPLICATE_DELETES="true",
            DELETE_GRACE_S="0",
            DELETE_BREAKER_MAX="1",
        )
        keys = [f"folder/{number:02}.txt" for number in range(6)]
        running.put_many(keys, content, clients=1)
        running.wait_until_settled(entries=6, bound_s=BOUND_S)
        running.sweep()
        proxy.plan("PutObject", busy, times=1000)
        running.put_many([ODD_KEY, "x" * 300], content, clients=1)
        running.remove_many(keys[:4], clients=1)
        of = lambda state: sum(running.service.get("/v1/status").json()["entries"][state].values())  # noqa: E731
        until(lambda: of("failed") == 2 and of("held") >= 2, bound_s=BOUND_S, what="failed and held")
        answer = running.service.post(
            "/minio/events",
            json={"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": {}}]},
            headers={"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"},
        )
        assert answer.json()["quarantined"] == 1
        yield running


def pages_of(running: Stack) -> list[str]:
    """All that can be seen."""
    odd = quote(ODD_KEY, safe="")
    story = [f"/object?rule=default&key={key}" for key in (odd, "folder/05.txt", "nobody")]
    lists = ["/", "/objects", "/objects?q=folder", "/failures", "/quarantine", "/deletes?rule=default"]
    return [*lists, *story]


@pytest.mark.parametrize(("scheme", "viewport"), [("light", None), ("dark", None), ("light", PHONE)])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    troubled: Stack, visit: Callable[..., Visit], scheme: str, viewport: dict[str, int] | None
) -> None:
    size = {"viewport": viewport} if viewport else {}
    person = visit(troubled, color_scheme=scheme, **size)
    person.go("/sign-in")
    found = {"/sign-in": Axe().run(person.page).response["violations"]}
    person.sign_in()
    for path in pages_of(troubled):
        person.go(path)
        found[path] = Axe().run(person.page).response["violations"]
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert person.page.evaluate(wide) == 0, path
    wrong = {
        path: [(each["id"], each["impact"], [node["html"] for node in each["nodes"]]) for each in violations]
        for path, violations in found.items()
        if violations
    }
    assert wrong == {}
    person.complaints.clear()  # Chromium tells of the object that is not on record: 404


def test_the_quarantine_is_looked_at_and_emptied_by_keyboard_alone(
    troubled: Stack, visit: Callable[..., Visit]
) -> None:
    person = visit(troubled)
    person.sign_in()
    person.go("/quarantine")
    person.sees('"eventName": "s3:ObjectCreated:Put"')
    keyboard, focused = person.page.keyboard, person.page.locator(":focus")
    keyboard.press("Tab")
    expect(focused).to_have_text("Skip to the content")
    keyboard.press("Enter")
    for name in ("Read all again", "I have looked at all of them", "Drop all"):
        keyboard.press("Tab")
        if name.startswith("I have"):
            keyboard.press("Space")
        else:
            expect(focused).to_have_accessible_name(name)
    keyboard.press("Enter")
    person.sees("1 record dropped.")
    person.sees("Every event could be acted on.")
