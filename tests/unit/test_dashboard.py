"""The dashboard and the alerts ask for nothing that GET /metrics does not tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.unit.test_metrics import client, lively, make_client, proved, samples  # noqa: F401 - two are fixtures
from webhook.metrics import PREFIX

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARD = CONFIG / "grafana-dashboard.json"
ALERTS = CONFIG / "alerts.yml"
OF_SWEEPS = PREFIX + "sweep_differences_total"
"""Told once a sweep found a difference: tests/acceptance/test_metrics.py has one."""


def expressions() -> list[str]:
    """All that the dashboard and the alerts ask for."""
    board = json.loads(DASHBOARD.read_text())
    found = [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    found += [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += re.findall(r"^ +expr: (.+)$", ALERTS.read_text(), re.MULTILINE)
    return found


def asked_for() -> set[tuple[str, frozenset[str]]]:
    """(metric, names of the labels that are asked for with it)."""
    found = set()
    for text in expressions():
        for name, labels in re.findall(rf"({PREFIX}\w+)(\{{[^}}]*\}})?", text):
            found.add((name, frozenset(re.findall(r"(\w+)=", labels))))
    return found


def test_every_metric_and_label_that_is_asked_for_is_there(client: FlaskClient) -> None:  # noqa: F811
    lively(client)
    proved(client)
    told: dict[str, set[str]] = {}
    for name, labels in samples(client):
        told.setdefault(name, set()).update(dict(labels))
    asked = asked_for()
    assert len(asked) > 20
    for name, labels in asked:
        if name == OF_SWEEPS:
            continue
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


def test_promtool_finds_nothing_wrong_with_the_alerts() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on PATH: the syntax of the alerts is not checked")
    done = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
