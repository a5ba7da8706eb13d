"""What is done to the processes of a soak: decided from a seed, and then done."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import anyio
import attrs

from tests.soak.processes import Life, Watcher, holds_write_lock, stat
from tests.soak.service import Service

WORKER_SECONDS = 2.0
SUPERVISOR_SECONDS = 20.0
STOPPED_SECONDS = (0.5, 6.0)

STOP_SECONDS = 0.5
"""How long a process may take until it stands still: first it returns from what it asked of the kernel."""


@attrs.frozen
class Torment:
    """`at`: seconds since the beginning. `pick`: which of the workers, from 0 to 1. `seconds`: for how long it is
    stopped."""

    at: float
    what: Literal["kill", "stop", "supervisor"]
    pick: float = 0.0
    seconds: float = 0.0


def plan(seed: int, seconds: float, until: float) -> list[Torment]:
    """Up to `until`. In a run that is shorter than that of a real soak, the supervisor is killed in the middle."""
    chance = random.Random(seed)
    found = []
    for number in range(1, int(until / WORKER_SECONDS) + 1):
        what: Literal["kill", "stop"] = chance.choice(("kill", "stop"))
        found.append(Torment(number * WORKER_SECONDS, what, chance.random(), chance.uniform(*STOPPED_SECONDS)))
    at = min(SUPERVISOR_SECONDS, seconds / 2)
    while at < until:
        found.append(Torment(at + chance.uniform(0, WORKER_SECONDS), "supervisor"))
        at += SUPERVISOR_SECONDS
    return sorted(found, key=lambda torment: torment.at)


@attrs.define(eq=False)
class Stop:
    """A process stood still `since` then, until it was told to go on, or died. `writing`: in the middle of writing to
    the store, which nobody else could do then."""

    life: Life
    since: float
    until: float = float("inf")
    writing: bool = False

    def meets(self, begin: float, end: float) -> bool:
        until = self.until if self.life.died is None else min(self.until, self.life.died)
        return self.since <= end and begin <= until


class Tormentor:
    def __init__(self, service: Service, watcher: Watcher, shared: Path) -> None:
        self._service = service
        self._watcher = watcher
        self._shared = shared
        """The `-shm` file of the store."""
        self.stops: list[Stop] = []
        self.done: Counter[str] = Counter()

    async def torment(self, torments: Sequence[Torment]) -> None:
        """Do all of it; whoever is stopped when this is cancelled goes on."""
        began = anyio.current_time()
        try:
            async with anyio.create_task_group() as tasks:
                for torment in torments:
                    await anyio.sleep_until(began + torment.at)
                    if torment.what == "supervisor":
                        self.done["supervisor killed"] += 1
                        await self._service.replace()
                        continue
                    workers = self._watcher.workers(self._service.life)
                    if not workers:
                        self.done["no worker there"] += 1
                        continue
                    life = workers[int(torment.pick * len(workers))]
                    if torment.what == "kill":
                        self.done["killed"] += 1
                        send(life, signal.SIGKILL)
                    else:
                        self.done["stopped"] += 1
                        tasks.start_soon(self._stop, life, torment.seconds)
        finally:
            for stop in self.stops:
                send(stop.life, signal.SIGCONT)

    async def _stop(self, life: Life, seconds: float) -> None:
        stop, until = Stop(life, time.time()), anyio.current_time() + seconds
        self.stops.append(stop)
        send(life, signal.SIGSTOP)
        with anyio.move_on_after(STOP_SECONDS):
            while (seen := stat(life.pid)) is not None and seen.state != "T":
                await anyio.sleep(0.002)
        stop.writing = holds_write_lock(life.pid, self._shared)
        await anyio.sleep_until(until)
        send(life, signal.SIGCONT)
        stop.until = time.time()


def send(life: Life, number: signal.Signals) -> None:
    """To that process, and to no later one of the same pid."""
    seen = stat(life.pid)
    if seen is not None and seen.started == life.started:
        with suppress(ProcessLookupError):
            os.kill(life.pid, number)
