"""Kill the survey at random instants, resume it, and check every time that nothing recorded was lost or done again.

A trace is killed several times, then left to end; then comes the next one. The loops alternate, so that what one left
the other resumes.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.torture import survey, witness
from tests.torture.trial import Task, Trial, Violation
from tests.torture.victim import Kill, Lived, Order, adopt_orphans, run, wait_for_group
from tinyllm import SQLiteCheckpointStorage, StorageConfig
from tinyllm.graph.payload import decode_payload

LOOPS = ("asyncio", "trio")
FILES, BATCH = 60, 2
BATCHES = FILES // BATCH
STEPS = BATCHES + 4
MOST_KILLS = 9
"""Of one trace; more would only kill a process that starts."""
START = ("importing", "opening the store", "starting")
"""What a victim does before its first, second and third event."""


@attrs.frozen
class Store:
    """What a store has of the trace: its step, and the keys of the work that is recorded, one for each step."""

    step: int = 0
    admitted: bool = False
    keys: tuple[str, ...] = ()


@attrs.define
class Tally:
    kills: Counter[str] = attrs.field(factory=Counter)
    resumes: int = 0
    traces: int = 0
    kept: int = 0
    lost: int = 0
    unknown: int = 0
    again: int = 0
    orphans: int = 0
    late: int = 0
    slowest: float = 0.0

    def __str__(self) -> str:
        where = ", ".join(f"{phase} {count}" for phase, count in self.kills.most_common())
        return (
            f"{self.kills.total()} kills ({where})\n"
            f"{self.traces} traces completed after {self.resumes} resumes, which kept {self.kept} steps, ran again "
            f"{self.again} activations that had been running, and lost {self.lost} finished steps"
            f"{f' (unknown {self.unknown} times)' if self.unknown else ''}\n"
            f"{self.orphans} worker processes outlived a kill, the longest by {self.slowest * 1000:.0f} ms; "
            f"they wrote {self.late} lines\n"
            "0 recorded activations ran again, 0 reports differ"
        )


class Torture:
    def __init__(self, folder: Path, seed: int, plant: str | None, durability: str) -> None:
        self.folder = folder
        self.seed = seed
        self.plant = plant
        self.durability = durability
        self.tally = Tally()
        self.reference = b""
        self.gaps: dict[str, list[float]] = {}
        """By loop: the seconds that an undisturbed victim takes to its first event, and from each to the next."""

    def prepare(self) -> None:
        survey.make_input(self.folder / "input", FILES, str(self.seed))
        for loop in LOOPS:
            lived = run(self.order(self.folder / loop, loop))
            if lived.returncode != 0:
                raise Violation(f"an undisturbed survey on {loop} ended with {lived.returncode}")
            told = [0.0, *(event["at"] for event in lived.events)]
            self.gaps[loop] = [after - before for before, after in pairwise(told)]
            report = self.report(self.folder / loop)
            if self.reference not in (b"", report):
                raise Violation("the report depends on the loop")
            self.reference = report

    def order(self, folder: Path, loop: str) -> Order:
        return Order(
            graph="tests.torture.survey:survey",
            task=str(self.folder / "input"),
            folder=str(folder),
            backend=loop,
            variables={"batch_size": BATCH, "out": str(folder / "out"), witness.FILE: str(folder / "witness")},
        )

    @staticmethod
    def report(folder: Path) -> bytes:
        return b"".join((folder / "out" / name).read_bytes() for name in ("report.md", "report.json"))

    # -- one trace ---------------------------------------------------------------------------------------------

    def trace(self, number: int) -> None:
        """Kill the trace of that number, until it completes."""
        rng = random.Random(f"{self.seed}/{number}")
        config = {"durability": self.durability, "max_checkpoints_per_trace": rng.choice([3, 100])}
        folder = self.folder / f"trace{number}"
        to_kill = rng.randint(2, MOST_KILLS)
        before, seen, finished = Store(), 0, 0
        for attempt in range(to_kill + 1):
            loop = LOOPS[(number + attempt) % len(LOOPS)]
            kill = self.draw(rng, loop, before.step) if attempt < to_kill else None
            lived = run(attrs.evolve(self.order(folder, loop), config=config, plant=self.plant), kill)
            self.bury(lived, folder / "witness")
            if lived.hung:
                raise Violation("the survey hangs")
            if lived.returncode != 0 and not lived.killed:
                raise Violation(f"the survey ended with {lived.returncode}")
            after = anyio.run(read, folder / "store")
            lines = witness.read(folder / "witness")
            self.check(before, after, lived, lines[:seen], lines[seen:], finished)
            before, seen = after, len(lines)
            if lived.of("TraceStarted"):  # else what its predecessor left is still to be told
                finished = lived.highest_step("NodeFinished")
            if lived.returncode == 0:
                break
            self.tally.kills[phase(lived)] += 1
        if before.step != STEPS:
            raise Violation(f"the survey completed with {before.step} steps of {STEPS}")
        if self.report(folder) != self.reference:
            raise Violation("the report differs from the reference")
        self.tally.traces += 1
        shutil.rmtree(folder)

    def draw(self, rng: random.Random, loop: str, step: int) -> Kill:
        """When to kill a victim that resumes at `step`: anywhere between two events, each as likely as any other.

        Spread over time instead, most kills would hit the start of Python and of its worker processes.
        """
        gaps = self.gaps[loop]
        told = rng.randrange(round(len(gaps) * (1 - step / STEPS)) + len(START))
        gap = gaps[told] if told < len(START) else rng.choice(gaps[len(START) :])
        return Kill(rng.uniform(0, gap), told)

    def bury(self, lived: Lived, path: Path) -> None:
        """Wait until the victim's worker processes have gone too."""
        written = path.stat().st_size if path.exists() else 0
        began = time.monotonic()
        orphans = wait_for_group(lived.pid)
        if orphans:
            self.tally.orphans += orphans
            self.tally.slowest = max(self.tally.slowest, time.monotonic() - began)
        self.tally.late += path.read_bytes()[written:].count(b"\n") if path.exists() else 0

    def check(
        self,
        before: Store,
        after: Store,
        lived: Lived,
        earlier: list[witness.Line],
        lines: list[witness.Line],
        finished: int,
    ) -> None:
        """Hold what the victim did against what the store had before and has now."""
        started = {line.key for line in lines if line.verb == "start"}
        if again := started.intersection(before.keys):
            raise Violation(f"recorded, and run again: {sorted(again)}")
        if twice := [key for key, count in Counter(after.keys).items() if count > 1]:
            raise Violation(f"recorded twice: {twice}")
        if gone := set(before.keys) - set(after.keys):
            raise Violation(f"recorded, and gone: {sorted(gone)}")
        for work in sorted(started):
            causes = survey.causes(work, BATCHES) if self.durability == "sync" or work == "write" else set[str]()
            if missing := causes.difference(after.keys):
                raise Violation(f"{work!r} started although this was not durable: {sorted(missing)}")
        if len({(line.id, line.key) for line in (*earlier, *lines)}) != len({line.key for line in (*earlier, *lines)}):
            raise Violation("the same work had two activation ids")
        if (said := lived.highest_step("Committed")) > after.step:
            raise Violation(f"step {said} was acknowledged as durable, and only {after.step} are")
        for event in lived.of("TraceStarted"):
            self.check_told(event, before, finished)

    def check_told(self, event: Mapping[str, Any], before: Store, finished: int) -> None:
        kept, lost, again = event["kept"], event["lost"], event["again"]
        if event["resumed"] != before.admitted or kept != before.step:
            raise Violation(f"the trace says that it kept {kept} steps, and {before.step} are recorded")
        if lost is not None and not 0 <= lost <= max(0, finished + 1 - kept):  # handed over, and then told
            raise Violation(f"the trace says that it lost {lost} steps; {finished} had finished, {kept} are recorded")
        self.tally.resumes += event["resumed"]
        self.tally.kept += kept
        self.tally.again += again
        self.tally.lost += lost or 0
        self.tally.unknown += lost is None


async def read(store: Path) -> Store:
    """What `store` has, read from a copy: the next victim shall find it as the last one left it."""
    if not store.exists():
        return Store()
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(store, copy, dirs_exist_ok=True)
        storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=copy))
        await storage.initialize()
        try:
            record = await storage.trace("t")
            if record is None:
                return Store()
            messages = await storage.messages("t", limit=1_000_000)
            steps = await storage.steps("t", limit=1_000_000)
        finally:
            await storage.close()
    if [step.step for step in steps] != list(range(1, record.step + 1)):
        raise Violation(f"the store has steps {[step.step for step in steps]}, and says {record.step}")
    results = [row for row in messages if row.node]
    if Counter(row.node for row in results) != Counter(step.node for step in steps):
        raise Violation("the store has other results than steps")
    return Store(record.step, True, tuple(survey.key(row.node, decode_payload(row.body).value) for row in results))


def phase(lived: Lived) -> str:
    """What the victim was doing when it was killed, by the last thing that it said."""
    if len(lived.events) < len(START):
        return START[len(lived.events)]
    nodes = [event["node_id"] for event in lived.events if event["event"] == "NodeStarted"]
    return "closing" if lived.of("TraceEnded") else str(nodes[-1]) if nodes else "starting"


def run_trial(task: Task, durability: str) -> str:
    adopt_orphans()
    plant = None if task.plant is None else f"tests.torture.plants:{task.plant}"
    torture = Torture(task.folder, task.seed, plant, durability)
    number = task.only or 0
    try:
        torture.prepare()
        while torture.tally.kills.total() < task.runs:
            task.begin(number, torture.tally.kills.total())
            torture.trace(number)
            if task.only is not None:
                break
            number += 1
    except TimeoutError as error:
        raise Violation(str(error)) from error
    return str(torture.tally)


TRIALS = tuple(
    Trial(
        name,
        f"SIGKILL at random instants of a trace in {durability} mode, which is resumed until it ends",
        runs,
        long,
        partial(run_trial, durability=durability),
    )
    for name, durability, runs, long in (("kill", "sync", 80, 20_000), ("kill-async", "async", 30, 5_000))
)
