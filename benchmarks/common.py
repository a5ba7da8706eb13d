"""What every script here shares: its arguments, its clock, and one line of JSON as its result.

A script measures one workload on one system. It runs in that system's own venv, so this needs the standard library
alone. `bench.py` runs the scripts, alternately; one of them by hand:

    PYTHONPATH=benchmarks PYTHON benchmarks/w1_chain/on_langgraph.py --mode async --n 1000
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "tinyllm-runtime",
    "anyio",
    "trio",
    "uvloop",
    "langgraph",
    "langgraph-checkpoint-sqlite",
    "aiosqlite",
    "dbos",
    "apache-burr",
    "pysqlite3",
)


@dataclass(frozen=True)
class Case:
    """One measurement: `mode` is how durable (the script says which modes it knows), `loop` the event loop, `n` the
    size of the workload, `folder` an empty directory for the store."""

    mode: str
    loop: str
    n: int
    folder: Path


Figures = dict[str, float | str]
"""What was measured, by name: `us_per_node`, `disk_bytes`, ...; text is for facts like pragmas."""


def main(measure: Callable[[Case], Figures]) -> None:
    """Run one case as the command line says, and print its figures.

    `measure` warms up by itself, with a small case in a store of its own, before it starts its clock.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="async")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--n", type=int, default=1000, help="the size of the workload")
    parser.add_argument("--folder", type=Path, help="where the store is made; a temporary directory if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Case(options.mode, options.loop, options.n, Path(folder)))
    figures["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"figures": figures, "python": sys.version.split()[0], "versions": versions()}))


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def disk_bytes(folder: Path) -> int:
    """Bytes of all files of a store, once it is closed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of `values`."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Clock:
    """Seconds between entering and leaving a block."""

    seconds = 0.0

    def __enter__(self) -> Clock:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
