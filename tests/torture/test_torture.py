"""The torture in short, and that it can fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.forked import ROOT

pytestmark = pytest.mark.timeout(300)


def torture(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, for it is changed for good: it adopts orphans, and bugs are planted in it."""
    command = [sys.executable, "-m", "tests.torture", *options]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_nothing_recorded_is_lost_or_runs_again_whenever_it_is_killed(tmp_path: Path) -> None:
    finished = torture(tmp_path, "kill", "--runs", "40")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 recorded activations ran again, 0 results differ" in finished.stdout


@pytest.mark.parametrize(
    ("trial", "runs"),
    [
        ("kill-async", 20),
        ("kill-survey", 2),
        ("power", 150),
        ("power-truncate", 75),
        ("faults", 50),
        ("zombie", 20),
        ("race", 20),
        ("flips", 40),
        ("simulate", 100),
        ("hostile", 3),
        ("outage", 2),
        ("fsync-truncate", 10),
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
        ("kill", 40, "forget_an_end", "recorded, and run again|cannot be read"),
        ("power", 100, "normal_for_full", "something acknowledged is gone"),
        ("zombie", 60, "write_without_looking", "the process that had it"),
        ("race", 100, "check_then_write", "of two that resumed one trace"),
        ("faults", 1000, "believe_a_failed_commit", "OwnershipLost|was to be|cannot be read|are missing"),
        ("model", 1000, "prune_ignoring_a_pin", "Pruned"),
        ("flips", 200, "no_checksum", "of flips"),
        ("flips", 400, "fall_back_past_effects", "ran something with effects again, unasked"),
        ("simulate", 2000, "counter_activation_ids", " id "),
        ("simulate", 2000, "prune_ignoring_a_pin", "checkpoint"),
        ("simulate", 2000, "lose_an_arrival", "arrivals"),
        ("simulate", 2000, "fire_when_anything_has_arrived", "VIOLATION in run"),
        ("simulate", 2000, "start_before_commit", "not committed"),
        ("hostile", 60, "believe_every_row", "Traceback"),
        ("outage", 20, "acknowledge_what_is_held", "durable up to"),
        ("outage", 20, "skip_the_first_when_trying_again", "of outage"),
        ("cancel", 600, "abandoned_cancel", "left the outcome of a commit unknown"),
    ],
)
def test_a_planted_bug_is_found(tmp_path: Path, trial: str, runs: int, plant: str, violation: str) -> None:
    finished = torture(tmp_path, trial, "--runs", str(runs), "--plant", plant)

    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "VIOLATION" in finished.stdout
    assert ("Traceback" in finished.stdout) == (violation == "Traceback"), finished.stdout  # and not the harness broke
    assert re.search(violation, finished.stdout)
    assert f"--plant {plant}" in finished.stdout


def test_trials_are_made_side_by_side(tmp_path: Path) -> None:
    finished = torture(tmp_path, "race", "power", "--runs", "2", "--seed", "7", "--jobs", "2")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 races" in finished.stdout
    assert "2 power cuts" in finished.stdout
    assert finished.stdout.count("seed 7") == 2


def test_after_a_violation_no_other_trial_begins(tmp_path: Path) -> None:
    finished = torture(tmp_path, "power", "race", "--runs", "100", "--plant", "normal_for_full", "--jobs", "1")

    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "of power" in finished.stdout
    assert "100 races" not in finished.stdout
