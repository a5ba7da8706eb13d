"""Kill and stop a supervisor and its workers for ten minutes, while traces are submitted, and see that all complete.

    python -m tests.soak [soak] [--seconds S] [--traces N] [--nodes N] [--workers N] [--seed N] [--keep DIR]
    python -m tests.soak idle       what a supervisor and its idle workers cost
    python -m tests.soak latency    how soon idle workers begin what is submitted

A violation ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import anyio

from tests.soak.quiet import idle, latency
from tests.soak.run import Settings, Soak


def say(text: str) -> None:
    print(text, flush=True)


async def carry_out(chosen: argparse.Namespace, folder: Path) -> list[str]:
    """What was violated."""
    match chosen.what:
        case "idle":
            return await idle(folder, chosen.workers or 8, say)
        case "latency":
            return await latency(folder, chosen.workers or 2, chosen.traces or 200, say)
    say(f"seed {chosen.seed}")
    settings = Settings(
        folder=folder,
        seed=chosen.seed,
        seconds=chosen.seconds,
        traces=chosen.traces or 2000,
        nodes=chosen.nodes,
        workers=chosen.workers or 2,
        deadline=chosen.deadline,
        plant=chosen.plant,
    )
    return await Soak(settings, say).run()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("soak", "idle", "latency"), default="soak")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long it lasts, about; 600")
    parser.add_argument("--traces", type=int, help="how many are submitted; 2000, for `latency` 200")
    parser.add_argument("--nodes", type=int, default=20, help="of each trace; 20")
    parser.add_argument("--workers", type=int, help="2, for `idle` 8")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder, where all that it makes stays")
    parser.add_argument("--plant", metavar="BUG", help="a function of tests/soak/planted.py")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds after that all have ended; 120")
    chosen = parser.parse_args()
    if chosen.keep is not None:
        chosen.keep.mkdir(parents=True)
    folder = Path(chosen.keep or tempfile.mkdtemp(prefix="tinyllm-soak-")).absolute()
    violations = anyio.run(carry_out, chosen, folder)
    for violation in violations:
        say(f"VIOLATION: {violation}")
    if violations:
        say(f"what is left of it: {folder}")
    elif chosen.keep is None:
        shutil.rmtree(folder)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
