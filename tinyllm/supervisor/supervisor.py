"""`Supervisor`: keeps workers alive, and has the traces of those that died adopted."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup

from tinyllm import __version__
from tinyllm.core.config import ExecutorConfig
from tinyllm.core.store import opened_storage
from tinyllm.errors import ConfigError, StorageError, SupervisorGaveUp
from tinyllm.graph.settings import Whole
from tinyllm.storage.contract import CheckpointStorage
from tinyllm.supervisor.absent import Absent
from tinyllm.supervisor.control import Verb, serving
from tinyllm.supervisor.deaths import Cause
from tinyllm.supervisor.estate import disown
from tinyllm.supervisor.life import Life
from tinyllm.supervisor.messages import Assignment, Freed, Ready, Refused, settings_of
from tinyllm.supervisor.restarts import DEATHS, WITHIN_SECONDS, Intensity
from tinyllm.supervisor.slot import Slot
from tinyllm.supervisor.status import REFUSED, Status, to_json

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
"""How often is looked for owners that died, and for traces that are to be executed apart."""

AGAIN_SECONDS = 1.0
"""How long to wait for a store that takes nothing just now."""

KILL_SECONDS = 1.0
"""The end of the grace, in which what has not ended is killed, and what it left disowned."""


class Supervisor(anyio.AsyncContextManagerMixin):
    """Has the traces of `graphs` that wait in a store executed, by worker processes that it keeps alive.

    `async with Supervisor(...) as supervisor:` begins once a worker can execute traces, and at its end drains. Traces
    come from `submit()`, and from processes that died or stopped with one unfinished. Any number of supervisors may
    serve one store.

    :param graphs: paths of graph files, of different ids.
    :param checkpoint_storage: the directory of the SQLite store; None: as for the command line, `$TINYLLM_STORAGE`,
        else `~/.tinyllm/data`.
    :param workers: how many processes.
    :param concurrency: how many traces each executes at once.
    :param limits: by graph id, how many traces of that graph may be executed at once in the whole store.
    :param grace: seconds that running nodes have to end when it drains. What has not ended then is killed, and executed
        again by whoever serves the store next.
    :param hang_seconds: for how long a worker's event loop may stand still before it is ended.
    :param config: of the executors in the workers.
    :param accept_graph_change: as for `resume_from_checkpoint()`, for all traces.
    :raises ConfigError: a setting that is out of its range.
    :raises SupervisorGaveUp: no worker can start, or they die again and again while they execute nothing.
    """

    def __init__(
        self,
        graphs: Sequence[str | os.PathLike[str]],
        checkpoint_storage: str | os.PathLike[str] | None = None,
        *,
        workers: int = 2,
        concurrency: int = 16,
        limits: Mapping[str, int] | None = None,
        grace: float = 30.0,
        hang_seconds: float = 30.0,
        config: ExecutorConfig | None = None,
        accept_graph_change: bool = False,
    ) -> None:
        if isinstance(graphs, str | os.PathLike) or not graphs:
            raise ConfigError("graphs", graphs, "a list of paths of graph files, at least of one")
        if not isinstance(config, ExecutorConfig | None):
            raise ConfigError("config", config, "an ExecutorConfig")
        self._graphs = tuple(os.path.abspath(path) for path in graphs)
        self._limits = dict(limits or {})
        _check(workers, concurrency, self._limits, grace, hang_seconds)
        self._given = checkpoint_storage
        self._workers = workers
        self._concurrency = concurrency
        self._grace = grace
        self._hang_seconds = hang_seconds
        self._config = config or ExecutorConfig()
        self._accept_graph_change = accept_graph_change
        self.id = secrets.token_hex(4)
        self._since = time.time()
        self._storage: CheckpointStorage
        self._tasks: TaskGroup
        self._block: anyio.CancelScope
        """What the host does with this."""
        self._slots: list[Slot] = []
        self._numbers = 0
        self._graph_ids: tuple[str, ...] = ()
        self._burying: set[str] = set()
        self._absent = Absent()
        self._intensity = Intensity()
        self._past: Counter[str] = Counter()
        """What workers executed in slots that are no more."""
        self._restarts = 0
        self._deaths: Counter[str] = Counter()
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._rates: deque[int] = deque(maxlen=round(60 / SWEEP_SECONDS) + 1)
        """How many traces had ended, at each sweep of the last minute."""
        self._ready = anyio.Event()
        self._look = anyio.Event()
        self._drain_asked = anyio.Event()
        self._drained = anyio.Event()
        self._empty = anyio.Event()
        """No slot is left."""
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<Supervisor {self.id} of {', '.join(self._graphs)}>"

    # -- lifecycle ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Supervisor]:
        if self._drained.is_set():
            raise SupervisorGaveUp("it has ended once, and does not begin again; make another")
        error: BaseException | None = None
        async with opened_storage(self._given) as self._storage, anyio.create_task_group() as tasks:
            self._block = tasks.cancel_scope
            try:
                tasks.start_soon(self._run, name=f"supervisor {self.id}")  # not waited for: it only ends by a drain
                await self._ready.wait()
                if self._failure is not None:
                    await anyio.sleep_forever()  # it is cancelled: the block does not begin
                yield self
            except BaseException as raised:
                if isinstance(raised, (anyio.get_cancelled_exc_class(), GeneratorExit, BaseExceptionGroup)):
                    raise
                error = raised  # carried past the task group, which would wrap it in a group
            finally:
                self.drain()
        if self._failure is not None:  # what it led to in the block says less
            raise self._failure from error
        if error is not None:
            raise error

    async def _run(self) -> None:
        """All that goes on here. It ends when it has drained: a cancellation of the host only has it drain."""
        try:
            with anyio.CancelScope(shield=True):  # bounded: by the grace, once it drains
                async with serving(Path(self._storage.name), self.id, self._answer):
                    await self._work()
        except StorageError as error:  # no socket can be made there
            self._failure = error
        finally:
            self._drained.set()
            self._ready.set()  # for whoever waits for that still
            if self._failure is not None:
                self._block.cancel()
            else:
                logger.info("supervisor %s has drained", self.id)

    async def _work(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for _ in range(self._workers):
                self._add_slot()
            tasks.start_soon(self._sweep, name="sweep")
            await self._drain_when_asked()
            tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Claim nothing more, and end when what runs has come to a durable point, at the latest after the grace. A
        second call does nothing."""
        self._drain_asked.set()

    async def draining(self) -> None:
        """Wait until it was told to drain, by whomever."""
        await self._drain_asked.wait()

    async def drained(self) -> None:
        """Wait until it was told to drain, by whomever, and has."""
        await self._drained.wait()

    def kill(self) -> None:
        """End all workers now. What they had not made durable is executed again by whoever serves the store next."""
        self.drain()
        for slot in self._slots:
            if slot.life is not None:
                slot.life.kill()

    def wake(self) -> None:
        """Have the workers look for traces that wait. (Whoever submits one does that by itself.)"""
        for slot in self._slots:
            if slot.life is not None:
                slot.life.wake()

    async def _drain_when_asked(self) -> None:
        await self._drain_asked.wait()
        if self._failure is None:
            logger.info(
                "draining: nothing more is claimed; what runs has %.0f s to come to a durable point", self._grace
            )
        for slot in self._slots:
            if slot.life is not None:
                slot.life.drain()
        if self._slots:
            with anyio.move_on_after(max(self._grace - KILL_SECONDS, self._grace / 2)):
                await self._empty.wait()
        if self._slots:
            logger.warning("the grace is over: what has not ended is killed")
            self.kill()
            with anyio.move_on_after(KILL_SECONDS):
                await self._empty.wait()

    def _give_up(self, reason: str, *, usage: bool = False) -> None:
        """End, with an error for whoever has this in an `async with`."""
        if self._failure is None:
            self._failure = SupervisorGaveUp(reason, usage)
        self.drain()

    # -- workers -----------------------------------------------------------------------------------------------

    def _add_slot(self, *, apart: bool = False) -> None:
        self._numbers += 1
        slot = Slot(self._numbers, apart)
        self._slots.append(slot)
        self._tasks.start_soon(self._keep, slot, name=f"worker {slot.number}")

    async def _keep(self, slot: Slot) -> None:
        """Keep a worker in the slot, until all end; one that executes traces apart, until it finds none."""
        ended = False
        try:
            while not self._drain_asked.is_set():
                life = Life(
                    self._assignment(slot), self._hang_seconds, became_ready=self._became_ready, told=self._heard
                )
                slot.begin(life)
                cause = await self._live(life)
                slot.end()
                wait = await self._after(slot, life, cause)
                if wait is None:
                    break
                slot.wait(wait)
                with anyio.move_on_after(wait):
                    await self._drain_asked.wait()
            ended = True
        finally:
            if not ended:
                self._lost_task()
            self._past += slot.executed
            self._slots.remove(slot)
            if not self._slots:
                self._empty.set()

    def _lost_task(self) -> None:
        """A task ended before its time: asyncio's own cancellation takes one alone, and nobody would notice."""
        if not self._drain_asked.is_set():
            self._give_up("one of its tasks was cancelled")

    async def _live(self, life: Life) -> Cause | None:
        try:
            return await life.live()
        except OSError as error:  # no more processes, or no memory for one
            return Cause(f"it could not be started ({error})")

    async def _after(self, slot: Slot, life: Life, cause: Cause | None) -> float | None:
        """See to what a worker left; seconds until the next one is to start, None if none is."""
        pid = life.pid or 0
        # What a worker says itself, that the store failed, is no trace's fault.
        ran = await self._bury(life.owners, None if life.leaving is not None else cause, pid)
        if self._drain_asked.is_set() or (slot.apart and cause is None):
            return None
        slot.restarts += 1
        self._restarts += 1
        if cause is None:
            logger.info("worker %d (pid %d) ended, as it was told to; another follows", slot.number, pid)
            return 0.0
        self._deaths[cause.text] += 1
        slot.last_death = cause.text
        leaving = life.leaving
        broken = leaving is not None and leaving.reason == "broken"
        if leaving is not None and broken and not self._ready.is_set():
            self._give_up(f"a worker cannot start: {leaving.text}", usage=leaving.usage)
            return None
        if not ran and (cause.within or broken) and self._intensity.exceeded(anyio.current_time()):
            self._give_up(
                f"{DEATHS} workers died within {WITHIN_SECONDS:.0f} s while they executed nothing, at last because "
                f"{cause.text}; what they wrote to stderr may say more"
            )
            return None
        wait = slot.backoff.after(life.lived)
        logger.warning(
            "worker %d (pid %d) died, with %d traces running: %s; another follows %s",
            *(slot.number, pid, ran, cause.text, f"in {wait:.1f} s" if wait else "at once"),
        )
        return wait

    def _assignment(self, slot: Slot) -> Assignment:
        return Assignment(
            graphs=self._graphs,
            path=tuple(sys.path),
            storage=self._storage.name,
            concurrency=1 if slot.apart else self._concurrency,
            limits=self._limits,
            apart=slot.apart,
            grace=self._grace,
            hang_seconds=self._hang_seconds,
            accept_graph_change=self._accept_graph_change,
            settings=settings_of(self._config),
            log_level=logger.getEffectiveLevel(),
        )

    def _became_ready(self, ready: Ready) -> None:
        if unknown := sorted(set(self._limits) - set(ready.graphs)):
            allowed = f"by the id of a graph that is supervised, which are: {', '.join(ready.graphs)}"
            self._failure = ConfigError("limits", unknown[0], allowed)
            self.drain()
            return
        if not self._ready.is_set():
            logger.info("supervisor %s serves %s: graphs %s", self.id, self._storage.name, ", ".join(ready.graphs))
        self._graph_ids = ready.graphs
        self._ready.set()
        self._look.set()

    def _heard(self, message: Refused | Freed) -> None:
        match message:
            case Refused():
                self._refused[message.trace_id] = message.reason
                self._refused.move_to_end(message.trace_id)
                while len(self._refused) > REFUSED:
                    self._refused.popitem(last=False)
            case Freed():
                self.wake()

    # -- what the dead leave -----------------------------------------------------------------------------------

    async def _bury(self, owners: Sequence[str], cause: Cause | None, pid: int) -> int:
        """Have what a worker of ours left wait to be claimed. How many traces ran there."""
        self._burying.update(owners)
        try:
            while True:
                try:
                    ran = await disown(self._storage, owners, self._graph_ids, cause, pid)
                    break
                except StorageError as error:
                    logger.warning("what worker (pid %d) left waits for the store: %s", pid, error)
                    await anyio.sleep(AGAIN_SECONDS)
        finally:
            self._burying.difference_update(owners)
        self.wake()
        self._look.set()
        return ran

    async def _sweep(self) -> None:
        """Disown what died without a parent that would see it, and have workers for what is to be executed apart."""
        try:
            fails = False
            while True:
                self._look = anyio.Event()
                self._rates.append(self._executed.total())
                try:
                    await self._disown_absent()
                    if not self._drain_asked.is_set():
                        await self._serve_apart()
                    fails = False
                except StorageError as error:
                    if not fails:  # it looks every second: once is enough to say so
                        logger.warning("%s: could not look for what died: %s", self._storage.name, error)
                    fails = True
                with anyio.move_on_after(SWEEP_SECONDS):
                    await self._look.wait()
        finally:
            self._lost_task()

    async def _disown_absent(self) -> None:
        ours = self._burying.union(*(slot.life.owners for slot in self._slots if slot.life is not None))
        dead = self._absent.dead(await self._storage.owners(), ours, anyio.current_time())
        for lease in dead if self._graph_ids else ():  # what is seen before a worker says which those are, counts
            # Of what they died nobody here knows; a machine that is booted again is no trace's fault.
            if await disown(self._storage, [lease.id], self._graph_ids, None, 0):
                self.wake()

    async def _serve_apart(self) -> None:
        """Start one more worker for what is to be executed apart, while more waits and no such worker is on its way."""
        cells = [slot for slot in self._slots if slot.apart]
        if (
            not self._graph_ids
            or len(cells) >= self._workers
            or any(slot.life is not None and slot.life.state == "starting" for slot in cells)
        ):
            return
        due = await self._storage.next_due(self._graph_ids, apart=True)
        if due is not None and due <= time.time():
            self._add_slot(apart=True)

    # -- what it says of itself --------------------------------------------------------------------------------

    @property
    def state(self) -> Literal["starting", "running", "draining", "stopping"]:
        if self._drained.is_set():
            return "stopping"
        if self._drain_asked.is_set():
            return "draining"
        return "running" if self._ready.is_set() else "starting"

    async def status(self) -> Status:
        """How it is, and what there is to do.

        :raises StorageError: the store cannot be read.
        """
        backlog = await self._storage.backlog(self._graph_ids)
        now = time.time()
        executed = self._executed
        return Status(
            id=self.id,
            pid=os.getpid(),
            host=socket.gethostname(),
            version=__version__,
            store=self._storage.name,
            since=self._since,
            state=self.state,
            graphs=self._graph_ids,
            workers=tuple(slot.status() for slot in self._slots),
            backlog=backlog,
            lag=None if backlog.oldest is None else max(0.0, now - backlog.oldest),
            completed=executed["completed"],
            failed=executed["failed"],
            per_minute=executed.total() - self._rates[0] if self._rates else 0,
            restarts=self._restarts,
            deaths=dict(self._deaths),
            refused=dict(self._refused),
        )

    @property
    def _executed(self) -> Counter[str]:
        return sum((slot.executed for slot in self._slots), Counter(self._past))

    async def _answer(self, verb: Verb) -> dict[str, Any]:
        match verb:
            case "status":
                return to_json(await self.status())
            case "drain":
                self.drain()
                return {}
            case "wake":
                self.wake()
                return {}


def _check(workers: int, concurrency: int, limits: Mapping[str, int], grace: float, hang_seconds: float) -> None:
    """:raises ConfigError: one of them is out of its range."""
    whole = Whole(1)
    for name, number in (("workers", workers), ("concurrency", concurrency), *limits.items()):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(name, number, whole.allowed)
    for name, seconds, least in (("grace", grace, 1), ("hang_seconds", hang_seconds, 2)):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not least <= seconds < float("inf"):
            raise ConfigError(name, seconds, f"at least {least} (seconds)")
