"""Make tinyllm fail in every way that can be thought of, and see that nothing acknowledged is lost.

    python -m tests.torture [TRIAL ...] [--seed N] [--runs N] [--only N] [--plant BUG] [--jobs N]

Several trials are made side by side, each in a process of its own, and say what they saw when they have ended. A
violation ends it with exit code 1, and says how to see it again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.torture import (
    beginnings,
    cancels,
    faults,
    flips,
    hostile,
    kills,
    model,
    outage,
    power,
    races,
    simulation,
    unsynced,
    zombies,
)
from tests.torture.trial import MEMORY, Task, Trial, Violation

# What takes longest comes first: at the end nothing long is left alone.
MODULES = (
    *(model, kills, power, faults, outage, unsynced, flips),
    *(simulation, cancels, beginnings, hostile, races, zombies),
)
TRIALS = {trial.name: trial for module in MODULES for trial in module.TRIALS}


def carry_out(trial: Trial, task: Task) -> bool:
    began = time.monotonic()
    print(f"{trial.name}: {trial.about}", flush=True)
    try:
        told = trial.run(task)
    except Exception as error:
        again = f"python -m tests.torture {trial.name} --seed {task.seed} --only {task.under_way}"
        again += f" --plant {task.plant}" if task.plant else ""
        what = str(error) if isinstance(error, Violation) else traceback.format_exc()
        print(f"\nVIOLATION in run {task.under_way} of {trial.name}: {what}")
        print(f"what is left of it: {task.folder}\nto see it again: {again}")
        return False
    print(f"  {told}\n  seed {task.seed}, {time.monotonic() - began:.0f} s", flush=True)
    return True


def side_by_side(names: list[str], options: list[str], jobs: int) -> bool:
    """Make so many trials at a time. After a violation none begins any more; those that have begun are heard out."""
    violated: list[str] = []

    def make(name: str) -> str:
        if violated:
            return ""
        command = [sys.executable, "-m", "tests.torture", name, *options]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if made.returncode != 0:
            violated.append(name)
        return made.stdout

    print(f"{len(names)} trials, {jobs} at a time: {', '.join(names)}", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for ended in as_completed([pool.submit(make, name) for name in names]):
            print(ended.result(), end="", flush=True)
    return not violated


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__.splitlines()[0],
        epilog="; ".join(f"{name}: {trial.about}" for name, trial in TRIALS.items()),
    )
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)}; all, if none is named")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--runs", type=int, help="instead of the usual number")
    parser.add_argument("--only", type=int, metavar="N", help="the run of that number alone")
    parser.add_argument("--plant", metavar="BUG", help="a bug to begin with: a function of tests/torture/plants.py")
    parser.add_argument("--long", action="store_true", help="many times as much, for a night")
    jobs = (os.cpu_count() or 1) + 1  # some of them wait
    parser.add_argument("--jobs", type=int, default=jobs, help="so many trials at a time; as a rule one more than CPUs")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.trials if name not in TRIALS]:
        parser.error(f"there is no trial {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    names = chosen.trials or list(TRIALS)
    if len(names) > 1:
        given = [("--seed", chosen.seed), ("--runs", chosen.runs), ("--only", chosen.only), ("--plant", chosen.plant)]
        options = [str(part) for option in given if option[1] is not None for part in option]
        return 0 if side_by_side(names, options + ["--long"] * chosen.long, max(1, chosen.jobs or 1)) else 1
    trial = TRIALS[names[0]]
    place = None if trial.on_disk or "TMPDIR" in os.environ else MEMORY
    folder = Path(tempfile.mkdtemp(prefix=f"tinyllm-{trial.name}-", dir=place))
    runs = chosen.runs or (trial.long if chosen.long else trial.runs)
    if not carry_out(trial, Task(folder, chosen.seed, runs, chosen.only, chosen.plant)):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
