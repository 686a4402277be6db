"""What is installed: pinned by hashes as it was asked for, listed whole, and looked up where that works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import audit

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", re.MULTILINE)
Pins = dict[str, str]


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def asked(file: str) -> Pins:
    """Name → version, of a file for people."""
    return {_name(name): version for name, version in re.findall(PIN, (ROOT / file).read_text())}


def locked(file: str) -> dict[str, tuple[str, str]]:
    """Name → version and all the rest that stands below it, of a file of `make lock`."""
    blocks = re.split(r"^(?=[A-Za-z])", (ROOT / file).read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for block in blocks:
        match = PIN.match(block)
        assert match, f"{file} has a line that is not pinned: {block[:80]}"
        found[_name(match[1])] = (match[2], block)
    return found


@pytest.mark.parametrize("part", ["requirements", "requirements-dev"])
def test_what_is_pinned_is_what_was_asked_for(part: str) -> None:
    pins = locked(f"{part}.txt")
    direct = {name: version for name, (version, block) in pins.items() if f"-r {part}.in" in block}
    assert direct == asked(f"{part}.in"), "make lock"
    assert direct


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_everything_is_pinned_by_hashes_and_nothing_says_where_it_comes_from(file: str) -> None:
    for name, (_, block) in locked(file).items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), name
    assert not re.search(r"://|^ *--(?!hash)", (ROOT / file).read_text(), re.MULTILINE)


def test_tests_run_on_the_packages_of_the_service() -> None:
    dev = locked("requirements-dev.txt")
    for name, (version, block) in locked("requirements.txt").items():
        assert (dev[name][0], _hashes(dev[name][1])) == (version, _hashes(block)), name


def _hashes(block: str) -> set[str]:
    return set(re.findall(r"sha256:\w+", block))


def test_all_that_install_insist_on_hashes() -> None:
    for file in ("Makefile", "Dockerfile", "config/minio-replicator.service"):
        text = (ROOT / file).read_text().replace("\\\n", " ")
        installs = [
            line for line in text.splitlines() if re.search(r"\bpip\b.* install .*requirements", line)
        ]
        assert installs, file
        assert all("--require-hashes" in line for line in installs), file


def test_the_bill_of_materials_names_every_package(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"cyclonedx-py (.*)", (ROOT / "Makefile").read_text().replace("\\\n", " "))
    words = recipe.replace("build/sbom.json", str(tmp_path / "sbom.json")).split()
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *words, "--no-validate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "minio-replicator"
    listed = {_name(each["name"]): each["version"] for each in found["components"]}
    assert listed == {name: version for name, (version, _) in locked("requirements.txt").items()}


# ── known vulnerabilities ────────────────────────────────────────────────────────────────────────────


def package(name: str, *vulns: str) -> dict[str, Any]:
    return {"name": name, "version": "1", "vulns": [{"id": each, "fix_versions": ["2"]} for each in vulns]}


SKIPPED = {"name": "b", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "lines", "status"),
    [
        ([package("a")], ["1 packages were looked up, 0 known vulnerabilities"], 0),
        (
            [package("a", "CVE-1"), SKIPPED],
            [
                *("a 1: CVE-1, mended in ['2']", "1 packages were looked up, 1 known vulnerabilities"),
                "vulnerabilities of 1 packages were NOT looked for: b",
            ],
            1,
        ),
        ([SKIPPED], ["vulnerabilities were NOT looked for: no answer for any of 1 packages"], 0),
    ],
)
def test_what_is_vulnerable_fails_and_what_was_not_looked_up_is_told(
    packages: list[Any], lines: list[str], status: int
) -> None:
    program = f"print({json.dumps({'dependencies': packages, 'fixes': []})!r})"
    assert audit.verdict(audit.report_of([sys.executable, "-c", program])) == (lines, status)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit('first\\nConnectionError: no answer')", "ConnectionError: no answer"),
        ("pass", "it said nothing"),
        ("import time; time.sleep(60)", "no end within 1 s"),
    ],
)
def test_an_audit_that_gets_no_answer_is_no_clean_bill(program: str, why: str) -> None:
    report = audit.report_of([sys.executable, "-c", program], bound_s=1 if "sleep" in program else 60)
    assert audit.verdict(report) == ([f"vulnerabilities were NOT looked for: {why}"], 0)
