"""Charts of the last hour, as SVG inside the page: drawn by pygal, coloured by the page's own style sheet."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import pygal
from markupsafe import Markup
from pygal.etree import etree
from pygal.style import Style

from webhook import metrics
from webhook.ledger import Ledger
from webhook.progress import Minute, Progress
from webhook.verdict import duration

# pygal adds a finder of plugins, of which there are none here, by an interface that Python has given up
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "pygal"]
etree.to_etree()  # it would take lxml where that happens to be installed, whose elements are not Python's

WIDTH, HEIGHT = 420, 170
LABEL_EVERY_MINUTES = 15
Values = tuple[float | None, ...]
_STYLE = Style(
    font_family="inherit",
    label_font_size=11,
    major_label_font_size=11,
    title_font_size=11,
    no_data_font_size=14,
)
_DROPPED = ("tooltip-overlay", "text-overlay", "legends")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, or the bars of one colour."""

    name: str
    kind: str
    """Its class in the style sheet."""
    values: Values


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Of one hour, minute by minute."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    is_line: bool
    summary: str
    """What it shows, for who does not see it."""
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Hour:
    """The last hour in charts, and the same in numbers, the newest minute first."""

    charts: tuple[Chart, ...]
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = (
        "minute (UTC)",
        "live",
        "backfill",
        "bytes",
        "lag p50",
        "lag p99",
        "retries",
        "failures",
    )


def hour(ledger: Ledger) -> Hour:
    """The last hour of all rules. Raises: LedgerUnavailable."""
    minutes = Progress(ledger).by_minute()
    at = tuple(each.minute for each in minutes)
    retries, failures = (_counted(ledger, name, at) for name in ("retries", "failures"))
    live, backfill = (tuple(float(each.objects[lane]) for each in minutes) for lane in ("live", "backfill"))
    p50, p99 = tuple(each.p50_s for each in minutes), tuple(each.p99_s for each in minutes)
    charts = (
        _chart(
            "throughput", "Settled", "objects a minute", at,
            (Series(name="live", kind="live", values=live),
             Series(name="backfill", kind="backfill", values=backfill)),
        ),
        _chart(
            "lag", "Lag until verified", "seconds", at,
            (Series(name="p50", kind="p50", values=p50), Series(name="p99", kind="p99", values=p99)),
            is_line=True,
        ),
        _chart(
            "errors", "Errors", "attempts a minute", at,
            (Series(name="tried again", kind="retries", values=retries),
             Series(name="failed", kind="failures", values=failures)),
        ),
    )  # fmt: skip
    rows = [_row(each, retries[index], failures[index]) for index, each in enumerate(minutes)]
    return Hour(charts=charts, rows=rows[::-1])


def _counted(ledger: Ledger, name: str, at: Sequence[int]) -> tuple[float, ...]:
    found: Mapping[int, Mapping[Any, float]] = metrics.minutes(ledger, name, since_minute=at[0])
    return tuple(sum(found.get(minute, {}).values()) for minute in at)


def _row(minute: Minute, retries: float, failures: float) -> list[str]:
    lags = ["–" if lag is None else duration(lag) for lag in (minute.p50_s, minute.p99_s)]
    objects = [f"{minute.objects[lane]:,}" for lane in ("live", "backfill")]
    return [clock(minute.minute), *objects, f"{minute.bytes:,}", *lags, f"{retries:,.0f}", f"{failures:,.0f}"]


def clock(minute: int) -> str:
    """ "06:12", in UTC."""
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%H:%M")


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────


def _chart(
    name: str, title: str, unit: str, at: Sequence[int], series: tuple[Series, ...], *, is_line: bool = False
) -> Chart:
    summary = "; ".join(_summary(each, at, is_time=is_line) for each in series)
    svg = _svg(f"{title}, {unit}, of the last hour: {summary}.", unit, at[0], series, is_line)
    return Chart(name=name, title=title, unit=unit, series=series, is_line=is_line, summary=summary, svg=svg)


def _summary(series: Series, at: Sequence[int], *, is_time: bool) -> str:
    known = [(value, minute) for value, minute in zip(series.values, at, strict=True) if value]
    if not known:
        return f"{series.name}: none"
    most, minute = max(known)
    told = duration(most) if is_time else f"{most:,.0f}"
    return f"{series.name}: at most {told}, at {clock(minute)}"


@lru_cache(maxsize=32)
def _svg(text: str, unit: str, first: int, series: tuple[Series, ...], is_line: bool) -> Markup:
    """Drawn anew only where something changed: it takes some 10 ms."""
    kind = pygal.Line if is_line else pygal.StackedBar
    labels = [clock(first + index) for index in range(len(series[0].values))]
    chart = kind(
        width=WIDTH, height=HEIGHT, margin=4, margin_left=18, style=_STYLE, css=[], js=[], show_legend=False,
        y_title=unit, x_title="minute (UTC)", x_labels=labels, show_minor_x_labels=False,
        x_labels_major=[each for each in labels if int(each[3:]) % LABEL_EVERY_MINUTES == 0],
        show_dots=False, truncate_label=-1, min_scale=2, max_scale=5, include_x_axis=True,
        disable_xml_declaration=True,
        value_formatter=_figure, no_data_text="nothing in this hour", spacing=4,
        range=None if any(any(each.values) for each in series) else (0, 1),
    )  # fmt: skip
    for each in series:
        chart.add(each.name, list(each.values))
    chart.add_xml_filter(lambda root: _plain(root, text, series))
    drawn = chart.render(is_unicode=True)
    return Markup(drawn)  # noqa: S704 - of numbers, and words of this module # nosec B704


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _plain(root: Element, text: str, series: Sequence[Series]) -> Element:
    """Without scripts and styles of its own, which the page forbids, and named for who cannot see it."""
    for parent in list(root.iter()):
        for child in list(parent):
            if _is_dropped(child):
                parent.remove(child)
    for element in root.iter():
        for name in ("id", "style"):
            element.attrib.pop(name, None)
        for index, each in enumerate(series):
            if f"serie-{index}" in (element.get("class") or "").split():
                element.set("class", f"{element.get('class')} {each.kind}")
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", text)
    SubElement(root, "title").text = text
    return root


def _is_dropped(element: Element) -> bool:
    """What the page has elsewhere, or not at all; and bars that are none."""
    name = element.get("class") or ""
    is_other = not isinstance(element.tag, str) or element.tag in ("defs", "title", "desc")
    return is_other or any(each in name for each in _DROPPED) or float(element.get("height", 1)) == 0
