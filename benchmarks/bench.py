"""Run every benchmark, and write what was measured: `make bench`, or `make bench-quick` for a look within minutes.

Needs Python 3.11 and pip, and nothing installed. Each system gets a venv of its own, with the versions that
`requirements/` pins; each measurement is a process of its own. The variants of a workload run one after another, and
that in rounds: a slow phase of the disk meets all of them, and a ratio of two medians means something.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import report
from plan import TITLES, Variant, variants
from targets import Results, verdicts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
PROBE = Variant("w1", "commit", "sync", "asyncio", 1000, 1000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round; written to build/bench/quick")
    parser.add_argument("--only", default="", help="workloads to run, like w1,w3; they are written to build/bench/some")
    parser.add_argument("--rounds", type=int, help="how often each variant runs (5; with --quick 1)")
    options = parser.parse_args()
    only = set(options.only.split(",")) - {""}
    if unknown := only - set(TITLES):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    chosen = variants(options.quick, only)
    rounds = options.rounds or (1 if options.quick else 5)

    pythons = {name: make_venv(name) for name in sorted({"tinyllm", *(variant.venv for variant in chosen)})}
    bench = Bench(pythons, timeout=120 if options.quick else 600)
    before = bench.probe()
    for workload in TITLES:
        bench.alternate([variant for variant in chosen if variant.workload == workload], rounds)
    breakdown = bench.breakdown() if "w1" in {variant.workload for variant in chosen} else ""
    after = bench.probe()

    result = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "quick": options.quick,
        "rounds": rounds,
        "tree": tree(),
        "machine": machine(),
        "versions": bench.versions,
        "us_per_commit": {"before": before, "after": after},
        "failures": bench.failures,
        "breakdown": breakdown,
        "targets": verdicts(bench.results, {variant.workload for variant in chosen}),
        "results": bench.results,
    }
    folder = BUILD / "quick" if options.quick else BUILD / "some" if only else ROOT / "docs" / "benchmarks"
    report.write(folder, result)
    say(f"written to {folder.relative_to(ROOT)}")
    return 1 if bench.failures else 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """Runs scripts and keeps their figures."""

    def __init__(self, pythons: dict[str, Path], timeout: float) -> None:
        self.results = Results()
        self.versions: dict[str, dict[str, str]] = {}
        self.failures: list[str] = []
        self._pythons = pythons
        self._timeout = timeout

    def alternate(self, chosen: list[Variant], rounds: int) -> None:
        """Every other round runs backwards: what came first does not always come first."""
        for number in range(rounds):
            for variant in reversed(chosen) if number % 2 else chosen:
                found = self.run(variant)
                if found is not None:
                    self.results.add(variant, found)
                    say(f"  {number + 1}/{rounds} {variant}: {report.headline(found)}")

    def probe(self) -> float | None:
        """Microseconds of one committed row, now."""
        found = self.run(PROBE)
        value = found["us_per_commit"] if found else None
        say(f"a commit takes {value:.0f} us" if value else "no commit was measured")
        return value

    def breakdown(self) -> str:
        """Where the time of a node goes, as a table."""
        command = [str(self._pythons["tinyllm"]), str(HERE / "breakdown.py")]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=self._timeout, cwd=BUILD, env=_environ()
        )
        if ended.returncode:
            say(ended.stderr)
            self.failures.append(f"breakdown: exit code {ended.returncode}")
        return ended.stdout

    def run(self, variant: Variant) -> dict[str, Any] | None:
        """The figures of one measurement; None, and a line among the failures, if the script failed."""
        arguments = {"--mode": variant.mode, "--loop": variant.loop, "--n": str(variant.size)}
        with tempfile.TemporaryDirectory(dir=BUILD, prefix="store-") as folder:
            try:
                ended = subprocess.run(
                    [
                        str(self._pythons[variant.venv]),
                        str(HERE / variant.script),
                        *(word for pair in arguments.items() for word in pair),
                        *("--folder", folder),
                    ],
                    capture_output=True,
                    text=True,
                    timeout=self._timeout,
                    cwd=folder,
                    env=_environ(),
                )
            except subprocess.TimeoutExpired:
                self._failed(variant, f"stopped after {self._timeout:.0f} s")
                return None
        if ended.returncode:
            say(ended.stderr)
            self._failed(variant, f"exit code {ended.returncode}")
            return None
        answer = json.loads(ended.stdout.splitlines()[-1])
        self.versions[variant.venv] = {"python": answer["python"]} | answer["versions"]
        figures: dict[str, Any] = answer["figures"]
        return figures

    def _failed(self, variant: Variant, how: str) -> None:
        say(f"FAILED {variant}: {how}")
        self.failures.append(f"{variant}: {how}")


def _environ() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}


def make_venv(system: str) -> Path:
    """The Python of a system's venv, made if it is not there or its requirements are others; tinyllm is always
    installed anew, as this tree has it."""
    folder = BUILD / system
    python = folder / "bin" / "python"
    wanted = HERE / "requirements" / f"{system}.txt"
    constraints = ROOT / "constraints.txt"
    needs = hashlib.sha256(wanted.read_bytes() + constraints.read_bytes() + sys.version.encode()).hexdigest()
    ready = folder / "ready"

    def pip(*arguments: str) -> None:
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*command, *arguments], check=True)

    constrained = ("--constraint", str(constraints)) if system == "tinyllm" else ()
    if not ready.exists() or ready.read_text() != needs:
        say(f"making the venv of {system} ...")
        venv.create(folder, clear=True, with_pip=True)
        pip(*constrained, "--requirement", str(wanted))
        if system == "tinyllm":
            pip(*constrained, "hatchling")  # not every pip can constrain what a build needs
            pip(*constrained, "--no-build-isolation", str(ROOT))
        ready.write_text(needs)
    elif system == "tinyllm":
        pip("--no-build-isolation", "--no-deps", "--force-reinstall", str(ROOT))
    return python


def tree() -> str:
    """The commit that was measured; `-dirty` if the tree has more."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip() or "not a git tree"


def machine() -> dict[str, str]:
    """What the figures depend on, and no name nor path of this machine."""
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "filesystem": _filesystem(BUILD),
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _filesystem(folder: Path) -> str:
    """The type of the filesystem the stores are on: that of the longest mount point above them."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    above = [(len(point), kind) for point, kind in found if folder.is_relative_to(point)]
    return max(above)[1] if above else "unknown"


if __name__ == "__main__":
    sys.exit(main())
