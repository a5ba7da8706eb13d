"""The torture in short, and that it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.victim import ROOT

pytestmark = pytest.mark.timeout(300)


def torture(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it adopts the orphans of those it kills."""
    command = [sys.executable, "-m", "tests.torture", *options]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_nothing_recorded_is_lost_or_runs_again_whenever_it_is_killed(tmp_path: Path) -> None:
    finished = torture(tmp_path, "kill", "--runs", "6")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 recorded activations ran again, 0 reports differ" in finished.stdout


@pytest.mark.parametrize(
    ("trial", "runs"),
    [
        ("power", 200),
        ("power-truncate", 100),
        ("faults", 100),
        ("kill-async", 3),
        ("zombie", 20),
        ("cancel", 20),
        ("beginning", 24),
    ],
)
def test_nothing_acknowledged_is_lost(tmp_path: Path, trial: str, runs: int) -> None:
    finished = torture(tmp_path, trial, "--runs", str(runs))

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "seed" in finished.stdout


@pytest.mark.parametrize(
    ("trial", "runs", "plant", "violation"),
    [
        ("kill", 40, "acknowledge_before_commit", "durable"),
        ("kill", 40, "start_before_commit", "started although this was not durable"),
        ("kill", 40, "forget_an_end", "recorded, and run again"),
        ("power", 100, "normal_for_full", "something acknowledged is gone"),
        ("zombie", 60, "write_without_looking", "the process that had it"),
        ("faults", 1000, "believe_a_failed_commit", "OwnershipLost"),
        ("cancel", 600, "abandoned_cancel", "left the outcome of a commit unknown"),
    ],
)
def test_a_planted_bug_is_found(tmp_path: Path, trial: str, runs: int, plant: str, violation: str) -> None:
    finished = torture(tmp_path, trial, "--runs", str(runs), "--plant", plant)

    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "VIOLATION" in finished.stdout
    assert violation in finished.stdout
    assert f"--plant {plant}" in finished.stdout
