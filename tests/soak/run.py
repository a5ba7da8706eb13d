"""A soak: what is done, for how long, and what is told of it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import attrs

from tests.soak.checks import Log, late, read_log, shortened, unfinished
from tests.soak.figures import Seen, Submitted, at_once, timeline, unwatched
from tests.soak.processes import Watcher
from tests.soak.report import report
from tests.soak.service import Ended, Service
from tests.soak.torment import Tormentor, plan
from tests.supervisor.work import journal, run_again, write_graph
from tinyllm import CheckpointStorage, DatabaseLocked, Graph, StorageUnavailable, load_graph, submit
from tinyllm.core.store import opened_storage

CONCURRENCY = 32
HANG_SECONDS = 3
GRACE = 5

NODE_SECONDS = (0.05, 0.4)

SUBMITTING = 0.97
"""The part of the time in which traces are submitted."""

LOOK_SECONDS = 0.5
TELL_SECONDS = 30.0

GRAPH = "chain"


@attrs.frozen
class Settings:
    """`deadline`: how many seconds after `seconds` all traces must have ended."""

    folder: Path
    seed: int
    seconds: float = 600.0
    traces: int = 2000
    nodes: int = 20
    workers: int = 2
    deadline: float = 120.0
    plant: str | None = None


class Soak:
    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._file = write_graph(settings.folder / "graph", nodes=settings.nodes, id_=GRAPH)
        self._store = settings.folder / "store"
        self._log = settings.folder / "log"
        self._submitted: dict[str, Submitted] = {}
        self._violations: list[str] = []

    async def run(self) -> list[str]:
        """Do it; what was violated."""
        given = self._settings
        options = [str(self._file), "--storage", str(self._store), "--workers", str(given.workers)]
        options += ["--concurrency", str(CONCURRENCY), "--hang-after", str(HANG_SECONDS), "--grace", str(GRACE)]
        async with opened_storage(self._store) as storage:
            with Watcher() as watcher, Service(watcher, self._log, options, given.plant) as service:
                tormentor = Tormentor(service, watcher, self._store / "tinyllm.db-shm")
                took = await self._torment(storage, service, tormentor)
                await self._end(service)
            seen = Seen(
                lines=sorted(journal(self._file), key=lambda line: line.at),
                lives=watcher.lives,
                stops=tormentor.stops,
                submitted=self._submitted,
                concurrency=CONCURRENCY,
                last_node=f"n{given.nodes - 1}",
            )
            (given.folder / "timeline").write_text(timeline(seen))
            log = read_log(self._log.read_text(errors="replace"))
            await self._check(storage, seen, log)
        self._say(
            f"it took {took:.0f} s; {', '.join(f'{count} {what}' for what, count in sorted(tormentor.done.items()))}"
        )
        for line in report(seen, log):
            self._say(line)
        return self._violations

    # -- what is done ------------------------------------------------------------------------------------------

    async def _torment(self, storage: CheckpointStorage, service: Service, tormentor: Tormentor) -> float:
        """Until all traces have ended; after how many seconds they had."""
        given = self._settings
        until = given.seconds + given.deadline
        began = time.monotonic()
        with anyio.move_on_after(until):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._submit, storage)
                tasks.start_soon(tormentor.torment, plan(given.seed, given.seconds, until))
                try:
                    await self._all_have_ended(storage, service)
                except Ended as error:
                    self._violations.append(str(error))
                tasks.cancel_scope.cancel()
        return time.monotonic() - began

    async def _submit(self, storage: CheckpointStorage) -> None:
        given = self._settings
        chance = random.Random(given.seed)
        graph = load_graph(self._file)
        began = anyio.current_time()
        for number in range(given.traces):
            task = json.dumps({"seconds": [chance.uniform(*NODE_SECONDS) for _ in range(given.nodes)]})
            await anyio.sleep_until(began + number * given.seconds * SUBMITTING / given.traces)
            trace_id = f"t{number}"
            self._submitted[trace_id] = await submitted(storage, graph, task, trace_id)

    async def _all_have_ended(self, storage: CheckpointStorage, service: Service) -> None:
        """:raises Ended: the supervisor ended, which nobody told it to."""
        told = began = time.monotonic()
        while True:
            await anyio.sleep(LOOK_SECONDS)
            service.check()
            left = await storage.backlog([GRAPH])
            waiting = left.waiting + left.apart + left.later
            if len(self._submitted) == self._settings.traces and not waiting and not left.running:
                return
            if time.monotonic() - told >= TELL_SECONDS:
                told += TELL_SECONDS
                self._say(
                    f"{told - began:.0f} s: {len(self._submitted)} traces submitted, {left.running} running, "
                    f"{waiting} waiting ({left.apart} apart), {left.quarantined} quarantined"
                )

    async def _end(self, service: Service) -> None:
        try:
            wrong = await service.end(GRACE)
        except Ended:  # said already
            return
        self._violations += [wrong] if wrong else []
        self._violations += [f"process {pid} is left" for pid in await service.left()]

    async def _check(self, storage: CheckpointStorage, seen: Seen, log: Log) -> None:
        ids = [f"t{number}" for number in range(self._settings.traces)]
        kinds = (
            await unfinished(GRAPH, storage, ids, self._settings.nodes),
            await run_again(self._file, storage, ids),
            at_once(seen),
            unwatched(seen),
            log.forbidden,
            late(seen),
        )
        for violations in kinds:
            self._violations += shortened(violations)


async def submitted(storage: CheckpointStorage, graph: Graph, task: str, trace_id: str) -> Submitted:
    """Submit a trace, as often as the store is too busy for it; when that was."""
    called = time.time()
    while True:
        try:
            await submit(graph, task, storage, trace_id=trace_id)
            return Submitted(called, time.time())
        except (StorageUnavailable, DatabaseLocked):
            await anyio.sleep(0.1)
