"""A supervisor as a process of its own: what signals mean to it, and what it tells systemd."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

import anyio
from anyio.abc import TaskStatus

from tinyllm.errors import StorageError
from tinyllm.supervisor.notify import Notifier
from tinyllm.supervisor.status import Status
from tinyllm.supervisor.supervisor import Supervisor

STATUS_SECONDS = 10.0
"""How often systemd is told how it is."""


async def serve(supervisor: Supervisor, say: Callable[[str], None]) -> bool:
    """Supervise until a signal, or somebody through its socket, has it drain; whether that came to its end. `say`: what
    a person is told.

    The first SIGTERM or SIGINT drains, the second ends all at once.

    :raises SupervisorGaveUp: workers cannot be kept alive.
    """
    service = _Service(supervisor, Notifier.from_environment(), say)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        await tasks.start(service.heed, name="signals")
        tasks.start_soon(service.tell_of_drain, name="drain for systemd")
        try:
            async with supervisor:
                if not service.told:
                    service.notifier.ready()
                    tasks.start_soon(service.keep_informed, name="status for systemd")
                    tasks.start_soon(service.feed_watchdog, name="watchdog of systemd")
                await supervisor.drained()
        except Exception as error:  # raised below: out of a task group it would come wrapped in a group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return service.told < 2


class _Service:
    def __init__(self, supervisor: Supervisor, notifier: Notifier, say: Callable[[str], None]) -> None:
        self._supervisor = supervisor
        self._say = say
        self.notifier = notifier
        self.told = 0
        """How often it was told to end."""

    async def heed(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                self.told += 1
                if self.told == 1:
                    self._say("draining; once more ends at once, and what runs then is executed again later")
                    self._supervisor.drain()
                else:
                    self._supervisor.kill()

    async def tell_of_drain(self) -> None:
        """As it begins, whoever asked for it."""
        await self._supervisor.draining()
        self.notifier.stopping()

    async def keep_informed(self) -> None:
        if self.notifier.address is None:  # a status counts what waits in the store
            return
        while True:
            try:
                self.notifier.status(_line(await self._supervisor.status()))
            except StorageError as error:
                self.notifier.status(f"the store cannot be read: {error}")
            await anyio.sleep(STATUS_SECONDS)

    async def feed_watchdog(self) -> None:
        """As long as the event loop turns: workers that hang are the supervisor's business, it itself is systemd's."""
        if self.notifier.watchdog_seconds is None:
            return
        while True:
            self.notifier.watchdog()
            await anyio.sleep(self.notifier.watchdog_seconds / 3)


def _line(status: Status) -> str:
    alive = sum(worker.state == "running" for worker in status.workers)
    backlog = status.backlog
    counts: Mapping[str, int] = {
        "running": backlog.running,
        "waiting": backlog.waiting + backlog.apart,
        "later": backlog.later,
        "quarantined": backlog.quarantined,
    }
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in ("running", "waiting"))
    return f"{status.state}: {alive} of {len(status.workers)} workers; traces: {said}"
