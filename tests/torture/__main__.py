"""Make tinyllm fail in every way that can be thought of, and see that nothing acknowledged is lost.

    python -m tests.torture [TRIAL ...] [--seed N] [--runs N] [--only N] [--plant BUG]

A violation ends it with exit code 1, and says how to see it again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.torture import beginnings, cancels, faults, kills, power, zombies
from tests.torture.trial import Task, Trial, Violation

TRIALS = {
    trial.name: trial for module in (kills, zombies, power, faults, beginnings, cancels) for trial in module.TRIALS
}


def carry_out(trial: Trial, task: Task) -> bool:
    began = time.monotonic()
    print(f"{trial.name}: {trial.about}", flush=True)
    try:
        told = trial.run(task)
    except Violation as violation:
        again = f"python -m tests.torture {trial.name} --seed {task.seed} --only {task.under_way}"
        again += f" --plant {task.plant}" if task.plant else ""
        print(f"\nVIOLATION in run {task.under_way} of {trial.name}: {violation}")
        print(f"what is left of it: {task.folder}\nto see it again: {again}")
        return False
    print(f"  {told}\n  seed {task.seed}, {time.monotonic() - began:.0f} s", flush=True)
    return True


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
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.trials if name not in TRIALS]:
        parser.error(f"there is no trial {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    for name in chosen.trials or TRIALS:
        trial = TRIALS[name]
        folder = Path(tempfile.mkdtemp(prefix=f"tinyllm-{name}-"))
        runs = chosen.runs or (trial.long if chosen.long else trial.runs)
        if not carry_out(trial, Task(folder, chosen.seed, runs, chosen.only, chosen.plant)):
            return 1
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
