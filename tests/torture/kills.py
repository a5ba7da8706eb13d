"""Kill a trace at random instants, resume it, and check every time that nothing recorded was lost or done again.

A trace is killed several times, then left to end; then comes the next one. The loops alternate, so that what one left
the other resumes. Most kills hit a small piece of work in processes that start in milliseconds; some hit the survey, in
processes as a user starts them, with the worker processes that it has.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.torture import small, survey, witness
from tests.torture.forked import Nursery
from tests.torture.piece import Piece
from tests.torture.trial import LOOPS, MEMORY, Task, Trial, Violation
from tests.torture.victim import Kill, Lived, Order, adopt_orphans, run, wait_for_group
from tinyllm import CheckpointDamaged, SQLiteCheckpointStorage, StorageConfig
from tinyllm.actors.dispatch import CREDIT
from tinyllm.graph.payload import decode_payload

MOST_KILLS = 9
"""Of one trace; more would only kill a process that starts."""
START = ("importing", "opening the store", "starting")
"""What a victim does before its first, second and third event."""


@attrs.frozen
class Store:
    """What a store has of the trace: its steps, by node, and the keys of the work that is recorded, one for each."""

    admitted: bool = False
    nodes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return len(self.nodes)


@attrs.frozen
class Handed:
    """What is known of a trace that was killed: it had handed over one of `steps`. `noted`: it has noted which."""

    steps: range = range(1)
    noted: bool = False

    def after(self, lived: Lived) -> Handed:
        """What is known after one more life."""
        for event in lived.of("TraceStarted"):
            told = max(event["kept"], lived.highest_step("NodeFinished"))
            return Handed(range(told, told + 2), bool(lived.of("NodeStarted")))  # a step is noted, and then told
        return Handed(range(self.steps[-1] + 1))  # perhaps it had begun, and noted that it had done nothing yet


@attrs.define
class Tally:
    kills: Counter[str] = attrs.field(factory=Counter)
    resumes: int = 0
    traces: int = 0
    kept: int = 0
    lost: int = 0
    most: int = 0
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
            f"{self.again} activations that had been running, and lost {self.lost} finished steps, at most {self.most} "
            f"at once{f' (unknown {self.unknown} times)' if self.unknown else ''}\n{self._orphans()}"
            "0 recorded activations ran again, 0 results differ"
        )

    def _orphans(self) -> str:
        return (
            f"{self.orphans} worker processes outlived a kill, the longest by {self.slowest * 1000:.0f} ms; "
            f"they wrote {self.late} lines\n"
            if self.orphans
            else ""
        )


class Torture:
    def __init__(self, task: Task, piece: Piece, durability: str | None, nursery: Nursery | None) -> None:
        """`durability`: None: now this, now that. `nursery`: None: a victim is a Python of its own."""
        self.folder = task.folder
        self.seed = task.seed
        self.plant = None if task.plant is None else f"tests.torture.plants:{task.plant}"
        self.piece = piece
        self.durability = durability
        self.nursery = nursery
        self.tally = Tally()
        self.reference = b""
        self.gaps: dict[str, list[float]] = {}
        """By loop: the seconds that an undisturbed victim takes to its first event, and from each to the next."""

    def prepare(self) -> None:
        for loop in LOOPS:
            lived = run(self.order(self.folder / loop, loop), nursery=self.nursery)
            if lived.returncode != 0:
                raise Violation(f"undisturbed, the trace on {loop} ended with {lived.returncode}")
            told = [0.0, *(event["at"] for event in lived.events)]
            self.gaps[loop] = [after - before for before, after in pairwise(told)]
            result = self.piece.result(self.folder / loop, lived)
            if self.reference not in (b"", result):
                raise Violation("the result depends on the loop")
            self.reference = result

    def order(self, folder: Path, loop: str) -> Order:
        piece = self.piece
        return Order(
            graph=piece.graph,
            task=piece.task,
            folder=str(folder),
            backend=loop,
            variables=piece.variables(folder),
            config={"durability": self.durability or "sync"},
        )

    # -- one trace ---------------------------------------------------------------------------------------------

    def trace(self, number: int) -> None:
        """Kill the trace of that number, until it completes."""
        rng = random.Random(f"{self.seed}/{number}")
        durability = self.durability or rng.choice(("sync", "async"))
        config = {"durability": durability, "max_checkpoints_per_trace": rng.choice([3, 100])}
        folder = self.folder / f"trace{number}"
        to_kill = rng.randint(2, MOST_KILLS)
        before, seen, handed = Store(), 0, Handed()
        for attempt in range(to_kill + 1):
            loop = LOOPS[(number + attempt) % len(LOOPS)]
            kill = self.draw(rng, loop, before.step) if attempt < to_kill else None
            order = attrs.evolve(self.order(folder, loop), config=config, plant=self.plant)
            lived = run(order, kill, self.nursery)
            if self.nursery is None:
                self.bury(lived, folder / witness.FILE)
            if lived.hung:
                raise Violation("the trace hangs")
            if lived.returncode != 0 and not lived.killed:
                raise Violation(f"the trace ended with {lived.returncode}: {order.log.read_text()[-1000:]}")
            try:
                after = anyio.run(read, folder / "store", self.piece)
            except CheckpointDamaged as damage:
                raise Violation(f"what is recorded cannot be read: {damage}") from damage
            lines = witness.read(folder / witness.FILE)
            self.check(before, after, lived, lines[:seen], lines[seen:], waits=durability == "sync")
            for event in lived.of("TraceStarted"):
                self.check_told(event, before, handed)
            before, seen = after, len(lines)
            handed = handed.after(lived)
            if lived.returncode == 0:
                break
            self.tally.kills[phase(lived)] += 1
        if before.step != self.piece.steps:
            raise Violation(f"the trace completed with {before.step} steps of {self.piece.steps}")
        if self.piece.result(folder, lived) != self.reference:
            raise Violation("the result differs from the reference")
        self.tally.traces += 1
        shutil.rmtree(folder)

    def draw(self, rng: random.Random, loop: str, step: int) -> Kill:
        """When to kill a victim that resumes at `step`: anywhere between two events, each as likely as any other.

        Spread over time instead, most kills would hit the start of Python and of its worker processes.
        """
        gaps = self.gaps[loop]
        told = rng.randrange(round(len(gaps) * (1 - step / self.piece.steps)) + len(START))
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
        *,
        waits: bool,
    ) -> None:
        """Hold what the victim did against what the store had before and has now. `waits`: what starts, starts when
        what caused it is durable."""
        started = {line.key for line in lines if line.verb == "start"}
        if again := started.intersection(before.keys):
            raise Violation(f"recorded, and run again: {sorted(again)}")
        if twice := [key for key, count in Counter(after.keys).items() if count > 1]:
            raise Violation(f"recorded twice: {twice}")
        if gone := set(before.keys) - set(after.keys):
            raise Violation(f"recorded, and gone: {sorted(gone)}")
        for work in sorted({*started, *after.keys}):
            rests = waits or work in after.keys or self.piece.has_effects(work)
            if rests and (missing := self.piece.causes(work) - set(after.keys)):
                what = "recorded" if work in after.keys else "started"
                raise Violation(f"{work!r} {what} although this was not durable: {sorted(missing)}")
        if len({(line.id, line.key) for line in (*earlier, *lines)}) != len({line.key for line in (*earlier, *lines)}):
            raise Violation("the same work had two activation ids")
        if (said := lived.highest_step("Committed")) > after.step:
            raise Violation(f"step {said} was acknowledged as durable, and only {after.step} are")
        for event in lived.of("NodeFinished"):
            if event["step"] <= after.step and after.nodes[event["step"] - 1] != event["node_id"]:
                raise Violation(f"step {event['step']} was one of {event['node_id']!r}, and is recorded as another")
        if (lost := lived.highest_step("NodeFinished") - after.step) > CREDIT:
            raise Violation(f"a kill cost {lost} steps, more than the {CREDIT} that may be under way")

    def check_told(self, event: Mapping[str, Any], before: Store, handed: Handed) -> None:
        kept, lost, again = event["kept"], event["lost"], event["again"]
        if event["resumed"] != before.admitted or kept != before.step:
            raise Violation(f"the trace says that it kept {kept} steps, and {before.step} are recorded")
        if handed.noted if lost is None else lost not in {max(0, step - kept) for step in handed.steps}:
            steps = f"{handed.steps[0]} to {handed.steps[-1]}"
            raise Violation(f"the trace says that it lost {lost} steps; of {steps} handed over {kept} are recorded")
        self.tally.resumes += event["resumed"]
        self.tally.kept += kept
        self.tally.again += again
        self.tally.lost += lost or 0
        self.tally.most = max(self.tally.most, lost or 0)
        self.tally.unknown += lost is None


async def read(store: Path, piece: Piece) -> Store:
    """What `store` has, read from a copy: the next victim shall find it as the last one left it."""
    if not store.exists():
        return Store()
    with tempfile.TemporaryDirectory(dir=MEMORY) as copy:
        shutil.copytree(store, copy, dirs_exist_ok=True)
        storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=copy))
        await storage.initialize()
        try:
            record = await storage.trace("t")
            if record is None:
                return Store()
            snapshot = await storage.load("t")
            messages = await storage.messages("t", limit=1_000_000)
            steps = await storage.steps("t", limit=1_000_000)
        finally:
            await storage.close()
    if [step.step for step in steps] != list(range(1, record.step + 1)):
        raise Violation(f"the store has steps {[step.step for step in steps]}, and says {record.step}")
    if (snapshot.rev, snapshot.step) != (record.rev, record.step):
        raise Violation(f"the newest checkpoint is of rev {snapshot.rev}, and the trace is at {record.rev}")
    results = [row for row in messages if row.node]
    if Counter(row.node for row in results) != Counter(step.node for step in steps):
        raise Violation("the store has other results than steps")
    keys = tuple(piece.key(row.node, decode_payload(row.body).value) for row in results)
    return Store(True, tuple(step.node for step in steps), keys)


def phase(lived: Lived) -> str:
    """What the victim was doing when it was killed, by the last thing that it said."""
    if len(lived.events) < len(START):
        return START[len(lived.events)]
    nodes = [event["node_id"] for event in lived.events if event["event"] == "NodeStarted"]
    return "closing" if lived.of("TraceEnded") else str(nodes[-1]) if nodes else "starting"


def run_trial(task: Task, durability: str | None) -> str:
    with ExitStack() as stack:
        if durability is None:
            adopt_orphans()
            piece, nursery = survey.piece(task.folder / "input", str(task.seed)), None
        else:
            piece, nursery = small.piece(durability), stack.enter_context(Nursery())
        torture = Torture(task, piece, durability, nursery)
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


_ABOUT = "SIGKILL at random instants of a trace{}, which is resumed until it ends"
TRIALS = (
    Trial("kill", _ABOUT.format(" in sync mode"), 2_000, 20_000, partial(run_trial, durability="sync"), on_disk=True),
    Trial(
        "kill-async", _ABOUT.format(" in async mode"), 500, 5_000, partial(run_trial, durability="async"), on_disk=True
    ),
    Trial("kill-survey", _ABOUT.format(" of the survey"), 40, 2_000, partial(run_trial, durability=None), on_disk=True),
)
