"""Steps of tasks: something is called whenever a task has run and gives the loop back, which is where it can be
cancelled. And loops in which the same happens each time: threads work while the loop stands still, and time passes only
while nobody has anything to do."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import anyio
import attrs

from tinyllm.storage.thread import DedicatedThread, _Caller, _InThread, _Job, loop_caller


@contextmanager
def after_each_step(call: Callable[[bool], None]) -> Iterator[None]:
    """Have `call` called whenever a task, of those begun from now on, has run and gives the loop back; with whether it
    has ended by that.

    Finer than turns of the loop, and the same number each time: waiting for a thread is no step.
    """
    if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_task():
        import trio

        class Steps(trio.abc.Instrument):
            def after_task_step(self, task: Any) -> None:
                call(task.coro.cr_frame is None)

        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(steps)
        return
    loop = asyncio.get_running_loop()

    def counted(loop: asyncio.AbstractEventLoop, coroutine: Any, **keys: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_stepping(coroutine, call), loop=loop, **keys)

    loop.set_task_factory(counted)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def _stepping(coroutine: Coroutine[Any, Any, Any], call: Callable[[bool], None]) -> Any:
    return await _driven(coroutine, call)


@types.coroutine
def _driven(coroutine: Coroutine[Any, Any, Any], call: Callable[[bool], None]) -> Generator[Any, Any, Any]:
    sent, thrown = None, None
    while True:
        try:
            waited_for = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
        except BaseException as end:
            call(True)
            if isinstance(end, StopIteration):
                return end.value
            raise
        call(False)
        sent, thrown = None, None
        try:
            sent = yield waited_for
        except BaseException as error:
            thrown = error


# -- a loop in which the same happens each time ------------------------------------------------------------------


def run(backend: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """What `anyio.run` returns, with time that does not pass while anything can be done. Nothing in `function` may wait
    for a thread but by `DedicatedThread`."""
    options: dict[str, Any]
    if backend == "trio":
        import trio.testing

        # Tasks that can run at once run in an order by chance, which is this one's.
        trio._core._run._r.seed(0)
        options = {"clock": trio.testing.MockClock(autojump_threshold=0)}
    else:
        options = {"loop_factory": _Loop}
    with _threads_in_turn(), patch.object(time, "perf_counter", lambda: 0.0):
        return anyio.run(function, *args, backend=backend, backend_options=options)


@contextmanager
def _threads_in_turn() -> Iterator[None]:
    """A thread does what it is called for when whoever calls it waits already, and while the loop stands still."""
    put, stop = DedicatedThread._put, DedicatedThread.stop
    gates: dict[DedicatedThread, list[threading.Event]] = defaultdict(list)

    def put_in_turn(self: DedicatedThread, job: _Job) -> None:
        if self._thread is None or isinstance(job.caller, _InThread):
            put(self, job)
            return
        gate, done = threading.Event(), threading.Event()
        job.function = partial(_when_open, gate, job.function)
        job.caller = _Heard(job.caller, done)
        put(self, job)
        gates[self].append(gate)

        def open_it() -> None:
            gate.set()
            done.wait()

        loop_caller()(open_it)

    def stop_at_once(self: DedicatedThread) -> None:
        for gate in gates.pop(self, ()):
            gate.set()
        stop(self)

    with patch.object(DedicatedThread, "_put", put_in_turn), patch.object(DedicatedThread, "stop", stop_at_once):
        yield


def _when_open(gate: threading.Event, function: Callable[..., Any], *args: Any) -> Any:
    gate.wait()
    return function(*args)


@attrs.frozen
class _Heard:
    caller: _Caller
    done: threading.Event

    def wake(self) -> None:
        self.caller.wake()
        self.done.set()


class Hangs(Exception):
    """Nobody will ever do anything again."""


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def jump(timeout: float | None) -> Any:
            if timeout is None:
                raise Hangs
            if not timeout:
                return select(timeout)
            events = select(0)
            if not events:
                self._now += timeout
            return events

        selector.select = jump

    def time(self) -> float:
        return self._now
