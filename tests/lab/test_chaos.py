"""A short run of the lab on each engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.run import run, text

MINUTES = 0.6
LONGEST_S = 4.0


@pytest.mark.parametrize(("engine", "seed"), [("sqlite", 1), ("postgresql", 2)])
def test_under_faults_nothing_is_lost_and_every_claim_is_true(tmp_path: Path, engine: str, seed: int) -> None:
    report = run(tmp_path, engine=engine, seed=seed, minutes=MINUTES, longest_s=LONGEST_S)
    assert not report.verdict.wrong, text(report)
    assert report.faults, "no fault was played"
    assert report.verdict.objects, "nothing was compared"
