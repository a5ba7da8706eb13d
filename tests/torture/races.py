"""Two processes resume one trace at the same instant: one executes it, the other is told who does."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs

from tests.torture.forked import Forked, Nursery
from tests.torture.trial import LOOPS, Task, Trial, Violation
from tests.torture.victim import PATIENCE
from tinyllm import Executor, ExecutorConfig, Graph, GraphBuilder
from tinyllm.errors import TinyLLMError, TraceOwned


@attrs.frozen
class Racer:
    """What a process does: `execute` or `resume` the trace `t` of the store in `folder`."""

    folder: str
    loop: str
    how: str
    plant: str | None


def run_trial(task: Task) -> str:
    won: Counter[str] = Counter()
    task.folder.mkdir(exist_ok=True)
    with Nursery() as nursery:
        left = task.folder / "left"
        left.mkdir()
        leave(nursery, left)
        for number in task.numbers():
            rng = random.Random(f"{task.seed}/{number}")
            folder = task.folder / "race"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(left, folder)
            how = ("execute", "resume")
            racers = [Racer(str(folder), rng.choice(LOOPS), rng.choice(how), task.plant) for _ in range(2)]
            won[race(nursery, folder, racers)] += 1
    which = ", ".join(f"{count:,} by {loops}" for loops, count in won.most_common())
    return f"{won.total():,} races ({which}): 1 process executed the trace, the other named it"


def leave(nursery: Nursery, folder: Path) -> None:
    """Have a process begin the trace, and die of it."""
    with start(nursery, Racer(str(folder), "asyncio", "execute", None)) as process:
        if [hear(process)["event"] for _ in range(2)] != ["ready", "running"]:
            raise Violation(f"the trace was not begun: {log(folder).read_text()}")


def race(nursery: Nursery, folder: Path, racers: list[Racer]) -> str:
    """Returns on which loop the winner ran, against which."""
    began = time.time()
    with ExitStack() as stack:
        end = stack.enter_context(ExitStack())
        end.enter_context(closed(folder / "end"))
        with closed(folder / "start"):
            processes = [stack.enter_context(start(nursery, racer)) for racer in racers]
            for process in processes:
                if hear(process) != {"event": "ready"}:
                    raise Violation("a process cannot begin")
        told = [hear(process) for process in processes]
        if [each["event"] for each in told].count("running") != 1:
            raise Violation(f"of two that resumed one trace, these were the outcomes: {told}")
        winner = next(at for at, each in enumerate(told) if each["event"] == "running")
        check_told(told[1 - winner], processes[winner].pid, began)
        end.close()
        if (ended := hear(processes[winner])) != {"event": "ended", "status": "completed"}:
            raise Violation(f"the one that executed the trace says {ended}")
    return f"{racers[winner].loop} against {racers[1 - winner].loop}"


def check_told(told: dict[str, Any], pid: int, began: float) -> None:
    if told["event"] != TraceOwned.__name__:
        raise Violation(f"the one that does not execute the trace was not told who does: {told}")
    since = time.mktime(time.strptime(told["since"], "%Y-%m-%d %H:%M:%S"))
    if (told["host"], told["pid"]) != (socket.gethostname(), pid) or not began - 1 <= since <= time.time():
        raise Violation(f"the trace is executed by process {pid} of {socket.gethostname()}, and told was {told}")


def hear(process: Forked) -> dict[str, Any]:
    """The next that it says."""
    if not select.select([process.stdout], [], [], PATIENCE)[0]:
        raise Violation("a process hangs")
    line = process.stdout.readline()
    if not line:
        raise Violation(f"a process ended with {process.wait()}")
    return dict(json.loads(line))


def start(nursery: Nursery, racer: Racer) -> Forked:
    return nursery.start(f"{__name__}:live", attrs.asdict(racer), log(Path(racer.folder)))


def log(folder: Path) -> Path:
    return folder / "log"


# -- gates -------------------------------------------------------------------------------------------------------


@contextmanager
def closed(gate: Path) -> Iterator[None]:
    """Nobody passes the gate before this ends; then all who wait pass at once: they read the end of a FIFO."""
    os.mkfifo(gate)
    file = os.open(gate, os.O_RDWR)
    try:
        yield
    finally:
        os.close(file)


def wait_at(gate: Path, event: str) -> None:
    """Stand at the gate, say so, and pass when it opens."""
    file = os.open(gate, os.O_RDONLY)
    tell(event=event)
    os.read(file, 1)
    os.close(file)


# -- the process -------------------------------------------------------------------------------------------------


def tell(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def gated(folder: Path) -> Graph:
    """One node, which ends when the gate `end` opens. The first that runs it finds no gate, and dies."""

    def work(task: str) -> str:
        if not (folder / "end").exists():
            tell(event="running")
            os._exit(1)
        wait_at(folder / "end", "running")
        return task

    return GraphBuilder("gated").node(work).build()


def live(given: dict[str, Any]) -> None:
    racer = Racer(**given)
    folder = Path(racer.folder)
    Task(folder, 0, 0, plant=racer.plant).plant_it()

    async def execute() -> None:
        async with Executor(gated(folder), ExecutorConfig(), folder / "store") as executor:
            if (folder / "start").exists():
                wait_at(folder / "start", "ready")
            else:
                tell(event="ready")
            try:
                if racer.how == "execute":
                    response = await executor.execute("task", trace_id="t")
                else:
                    response = await executor.resume_from_checkpoint("t")
                tell(event="ended", status=response.status)
            except TraceOwned as error:
                tell(event=type(error).__name__, host=error.host, pid=error.pid, since=error.since)
            except TinyLLMError as error:
                tell(event=type(error).__name__, error=str(error))

    anyio.run(execute, backend=racer.loop)


TRIALS = (Trial("race", "two processes resume one trace at the same instant", 500, 10_000, run_trial),)
