"""Chromium, and a person who uses the pages of a service in it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from scripts.local_service import API_TOKEN
from scripts.local_tools import find_chromium

BOUND_S = 60.0
BOUND_MS = BOUND_S * 1000
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WIDER_THAN_THE_SCREEN = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class NoBrowserError(Exception):
    """There is no Chromium; the message says how to have one."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window, with a profile of its own. Raises: NoBrowserError."""
    path = find_chromium()
    if path is None:
        raise NoBrowserError("Chromium is not here; scripts/get_chromium.sh fetches it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A person before the pages of a service."""

    url: str
    page: Page
    complaints: list[str] = field(default_factory=list)
    """What the browser wrote to its console: refused scripts and styles, errors of the script."""

    def __post_init__(self) -> None:
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

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
        deadline = time.monotonic() + BOUND_S
        while not self._reads(text):
            assert time.monotonic() < deadline, f"not within {BOUND_S:.0f} s: {text} on the page"
            time.sleep(0.05)
            self.page.reload()

    def _reads(self, text: str | re.Pattern[str]) -> bool:
        found = " ".join(self.page.locator("main").inner_text().split())
        return bool(text.search(found)) if isinstance(text, re.Pattern) else text in found

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)
