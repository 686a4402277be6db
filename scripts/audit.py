"""Looks for known vulnerabilities in the packages that the service installs, for `make check`.

pip-audit asks for them. Where it gets no answer, it skips packages and ends well: this tells of those.
Exit status: 1 where one is vulnerable, else 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
OPTIONS = ("--disable-pip", "--require-hashes", "--format=json", "--progress-spinner=off", "--timeout=10")
BOUND_S = 120.0


def report_of(command: Sequence[str], *, bound_s: float = BOUND_S) -> dict[str, Any] | str:
    """What pip-audit found, or why it found nothing out."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=bound_s)
    except subprocess.TimeoutExpired:
        return f"no end within {bound_s:.0f} s"
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]
    return found


def verdict(report: Mapping[str, Any] | str) -> tuple[list[str], int]:
    """Lines to be said, and the exit status."""
    if isinstance(report, str):
        return [f"vulnerabilities were NOT looked for: {report}"], 0
    packages = report["dependencies"]
    skipped = [each for each in packages if "skip_reason" in each]
    bad = [
        f"{each['name']} {each['version']}: {vuln['id']}, mended in {vuln['fix_versions'] or 'none'}"
        for each in packages
        for vuln in each.get("vulns", ())
    ]
    checked = len(packages) - len(skipped)
    if not checked:
        return [f"vulnerabilities were NOT looked for: no answer for any of {len(packages)} packages"], 0
    lines = [*bad, f"{checked} packages were looked up, {len(bad)} known vulnerabilities"]
    if skipped:
        names = ", ".join(each["name"] for each in skipped)
        lines.append(f"vulnerabilities of {len(skipped)} packages were NOT looked for: {names}")
    return lines, 1 if bad else 0


def main() -> int:
    """Gives the exit status."""
    report = report_of([sys.executable, "-m", "pip_audit", *OPTIONS, "--requirement", str(REQUIREMENTS)])
    lines, status = verdict(report)
    print("\n".join(f"audit: {line}" for line in lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
