"""The dashboard and the alerts ask for nothing that GET /metrics does not tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from flask.testing import FlaskClient

from tests.unit.test_metrics import lively, proved, samples
from webhook.metrics import PREFIX

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARD = CONFIG / "grafana-dashboard.json"
ALERTS = CONFIG / "alerts.yml"


def expressions() -> list[str]:
    """All that the dashboard and the alerts ask for."""
    board = json.loads(DASHBOARD.read_text())
    found = [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    found += [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return found + [alert["expr"] for alert in alerts()]


def alerts() -> list[dict[str, Any]]:
    """All rules of config/alerts.yml."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def asked_for() -> set[tuple[str, frozenset[str]]]:
    """(metric, names of the labels that are asked for with it, or that it is gathered by)."""
    found = set()
    for text in expressions():
        for by, name in re.findall(rf"by \(([\w, ]+)\) \((?:\w+\()?({PREFIX}\w+)", text):
            found.add((name, frozenset(by.split(", "))))
        for name, labels in re.findall(rf"({PREFIX}\w+)(\{{[^}}]*\}})?", text):
            found.add((name, frozenset(re.findall(r"(\w+)=", labels))))
    return found


def test_every_metric_and_label_that_is_asked_for_is_there(client: FlaskClient) -> None:
    lively(client)
    proved(client)
    told: dict[str, set[str]] = {}
    for name, labels in samples(client):
        told.setdefault(name, set()).update(dict(labels))
    asked = asked_for()
    assert len(asked) > 20
    for name, labels in asked:
        assert name in told, name
        assert labels <= told[name], name


def test_the_dashboard_is_whole() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels: list[dict[str, Any]] = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
    places = {(place["x"], place["y"]) for panel in panels for place in [panel["gridPos"]]}
    assert len(places) == len(panels), "no panel lies on another"


def test_what_is_added_up_is_first_taken_from_one_process_alone() -> None:
    """Each process tells of all: a sum over those that are scraped would count twice."""
    for text in expressions():
        if "sum by" in text:
            assert "(max by" in text, text


def test_all_is_promql() -> None:
    for text in expressions():
        if not text.startswith("label_values("):  # Grafana's own
            promql_parser.parse(text.replace("$__rate_interval", "5m"))


def test_each_alert_is_whole() -> None:
    assert len({alert["alert"] for alert in alerts()}) == len(alerts()) > 0
    for alert in alerts():
        assert alert.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}, alert["alert"]
        assert re.fullmatch(r"\d+[mh]", alert.get("for", "1m")), alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}
