"""Without torment: what idle workers cost, and how soon they begin what is submitted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import attrs

from tests.soak.figures import Spread
from tests.soak.processes import Watcher, threads
from tests.soak.run import submitted
from tests.soak.service import Service
from tests.supervisor.work import journal, write_graph
from tinyllm import CheckpointStorage, TinyLLMError, load_graph
from tinyllm.core.store import opened_storage
from tinyllm.supervisor.control import asked

IDLE_SECONDS = 30.0
IDLE_SHARE = 0.01
"""Of one core: what all processes together may use."""

BEGIN_SECONDS = 0.05
"""How soon idle workers begin what is submitted, 99 times of 100."""

SETTLE_SECONDS = 3.0
"""After its start a worker has something to do still."""

GRACE = 5.0


@attrs.frozen
class Used:
    """By a thread: nanoseconds of a CPU, and how often it woke up."""

    nanoseconds: int
    wakes: int

    @property
    def share(self) -> float:
        """Of a core."""
        return self.nanoseconds / 1e9 / IDLE_SECONDS

    def minus(self, before: Used) -> Used:
        return Used(self.nanoseconds - before.nanoseconds, self.wakes - before.wakes)


def used(pid: int) -> dict[str, Used]:
    """By each thread of a process; the one that it began with is `main`."""
    found = {}
    for thread in threads(pid):
        status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        name = "main" if int(thread.name) == pid else f"thread {thread.name}"
        nanoseconds = int((thread / "schedstat").read_text().split()[0])
        found[name] = Used(nanoseconds, int(status["voluntary_ctxt_switches"]))
    return found


async def idle(folder: Path, workers: int, say: Callable[[str], None]) -> list[str]:
    """What was violated."""
    graph = write_graph(folder / "graph", nodes=1)
    options = [str(graph), "--storage", str(folder / "store"), "--workers", str(workers), "--grace", str(GRACE)]
    async with opened_storage(folder / "store") as storage:
        with Watcher() as watcher, Service(watcher, folder / "log", options) as service:
            await _all_run(storage, service, workers)
            pids = {"supervisor": service.life.pid}
            pids |= {f"worker {at}": life.pid for at, life in enumerate(watcher.workers(service.life), 1)}
            before = {name: used(pid) for name, pid in pids.items()}
            await anyio.sleep(IDLE_SECONDS)
            after = {name: used(pid) for name, pid in pids.items()}
            wrong = await service.end(GRACE)
    total = 0.0
    for name in pids:
        parts = []
        for thread, then in after[name].items():
            spent = then.minus(before[name].get(thread, Used(0, 0)))
            total += spent.share
            if spent.wakes:
                parts.append(f"{thread} {spent.share:.3%} ({spent.wakes / IDLE_SECONDS:.1f} times a second)")
        say(f"{name}: {', '.join(parts)}")
    said = f"idle, a supervisor and {workers} workers use {total:.2%} of a core; {IDLE_SHARE:.0%} is allowed"
    say(said)
    return ([] if total < IDLE_SHARE else [said]) + ([wrong] if wrong else [])


async def latency(folder: Path, workers: int, traces: int, say: Callable[[str], None]) -> list[str]:
    """What was violated."""
    file = write_graph(folder / "graph", nodes=1)
    graph = load_graph(file)
    options = [str(file), "--storage", str(folder / "store"), "--workers", str(workers), "--grace", str(GRACE)]
    times = {}
    async with opened_storage(folder / "store") as storage:
        with Watcher() as watcher, Service(watcher, folder / "log", options) as service:
            await _all_run(storage, service, workers)
            for number in range(traces):
                trace_id = f"t{number}"
                times[trace_id] = await submitted(storage, graph, "{}", trace_id)
                while (record := await storage.trace(trace_id)) is None or record.status != "completed":
                    service.check()
                    await anyio.sleep(0.02)
            wrong = await service.end(GRACE)
    began = {line.trace_id: line.at for line in reversed(journal(file)) if line.what == "began"}
    returned = Spread.of(began[trace_id] - each.returned for trace_id, each in times.items())
    called = Spread.of(began[trace_id] - each.called for trace_id, each in times.items())
    itself = Spread.of(each.returned - each.called for each in times.values())
    say(f"{traces} traces, {workers} idle workers; from submit() returning to the node: {returned.milliseconds()}")
    say(f"  from submit() being called: {called.milliseconds()}; submit() itself: {itself.milliseconds()}")
    late = called.p99 >= BEGIN_SECONDS
    return ([f"p99 is not below {BEGIN_SECONDS * 1e3:.0f} ms"] if late else []) + ([wrong] if wrong else [])


async def _all_run(storage: CheckpointStorage, service: Service, workers: int) -> None:
    """Wait until so many workers can execute traces, and have been left alone for a while."""
    running = 0
    while running < workers:
        service.check()
        with suppress(TinyLLMError):  # the supervisor does not listen yet
            (answer,) = await asked(Path(storage.name), "status")
            running = sum(worker["state"] == "running" for worker in (answer.ok or {}).get("workers", ()))
        await anyio.sleep(0.1)
    await anyio.sleep(SETTLE_SECONDS)
