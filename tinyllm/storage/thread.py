"""A thread of one's own: what must happen in order, and must not be cancelled, happens there.

The one module that names the event loops. A thread pool (`anyio.to_thread`) costs more per hop, gives no order, and
lets a native asyncio cancellation abandon a call whose outcome then nobody knows.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar, TypeVarTuple

import attrs

from tinyllm.errors import StorageError, StorageNotOpen

T = TypeVar("T")
Args = TypeVarTuple("Args")


class _Caller(Protocol):
    """Whoever made a call. `wake` may be called from any thread, and more than once."""

    def wake(self) -> None: ...


class _Waiter(_Caller, Protocol):
    """The task that made a call."""

    async def wait(self, job: _Job) -> None: ...


@attrs.define(eq=False)
class _Job:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    caller: _Caller
    begun: bool = False
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class _Line:
    """Jobs in their order, each in its place until it is done. (Out of a queue alone, one would be lost when something
    is thrown into the thread as it takes it.)"""

    def __init__(self) -> None:
        self.jobs: deque[_Job | None] = deque()
        self.thrown: BaseException | None = None
        """What was last thrown into the thread."""
        self._bell: SimpleQueue[None] = SimpleQueue()

    def put(self, job: _Job | None) -> None:
        self.jobs.append(job)
        self._bell.put(None)

    def wait(self) -> None:
        while not self.jobs:
            self._bell.get()


class DedicatedThread:
    """Runs calls one after the other, in the order in which they were made, from any number of event loops.

    A call is not cancellable: it returns, or raises, what the function did, and a cancellation that came meanwhile
    takes effect at the caller's next checkpoint. A child that was forked off has no such thread, and is refused.
    `store` is what a refusal says cannot be used: the thread's own name unless it is given.
    """

    def __init__(self, name: str, *, store: str | None = None) -> None:
        self.name = name
        self._store = store or name
        self._line = _Line()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread. A second call does nothing."""
        with self._lock:
            if self._thread is None:
                self._pid = os.getpid()
                self._line = _Line()
                # A daemon, so that a program that forgets to close does not hang at its end. What it interrupts is a
                # transaction: it is there afterwards, or not.
                self._thread = threading.Thread(
                    target=_serve, args=(self._line, self._store), name=self.name, daemon=True
                )
                self._thread.start()

    async def call(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Run `function(*args)` in the thread; what it returns or raises.

        :raises StorageError: something that is no `Exception` ended it, as a SystemExit does.
        :raises StorageNotOpen: the thread was not started, was stopped, or belongs to the parent process.
        """
        waiter = _here()
        job = _Job(function, args, waiter)
        self._put(job)
        await waiter.wait(job)
        result: T = _settled(job)
        return result

    def call_now(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """As `call`, for code that cannot wait otherwise: the calling thread stands still until it is done."""
        caller = _InThread()
        job = _Job(function, args, caller)
        self._put(job)
        caller.woken.wait()
        result: T = _settled(job)
        return result

    def _put(self, job: _Job) -> None:
        # Before the lock, which another thread may have held when this process was forked off.
        if self._thread is not None and self._pid != os.getpid():
            raise StorageNotOpen(self._store, "it was opened by the parent process; open one in this process")
        with self._lock:  # so that no call is made behind the end of the queue
            if self._thread is None:
                raise StorageNotOpen(self._store, "it is not open; call initialize() first")
            self._line.put(job)

    def stop(self) -> None:
        """End the thread after all calls made before; blocks until then. A second call does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or self._pid != os.getpid():
                return
            self._line.put(None)
        thread.join()

    def __del__(self) -> None:
        if self._thread is not None and self._pid == os.getpid():
            warnings.warn(f"{self.name} was not closed", ResourceWarning, source=self, stacklevel=1)
            self._line.put(None)


def _serve(line: _Line, store: str) -> None:
    """Do the jobs, until there is a None. Another thread may throw something into this one, at any instant: it must not
    end by that, for then nobody who waits would ever hear of it."""
    while True:
        try:
            _work(line, store)
            return
        except BaseException as error:
            line.thrown = error


def _work(line: _Line, store: str) -> None:
    while True:
        line.wait()
        if (job := line.jobs[0]) is None:
            return
        if not job.begun:
            job.begun = True
            try:
                job.result = job.function(*job.args)
            except Exception as error:
                job.error = error
            job.done = True
        elif not job.done:
            # What would end the thread, and perhaps the caller's event loop, is an error like any other to the caller.
            job.error = StorageError(
                f"{store}: its thread was interrupted by {line.thrown!r}; look what was done, or resume"
            )
            job.error.__cause__ = line.thrown
            job.done = True
        job.caller.wake()
        line.jobs.popleft()
        del job  # the last call's arguments would live until the next one


def _settled(job: _Job) -> Any:
    """What the function returned; or what it raised is raised."""
    if job.error is not None:
        try:
            raise job.error
        finally:
            job.error = None  # an exception and its own traceback's frame would keep each other alive
    return job.result


def _here() -> _Waiter:
    """A waiter for the running task."""
    # Where trio was never imported it does not run; importing it to ask would cost an asyncio program 100 ms.
    trio = sys.modules.get("trio")
    return _OnTrio() if trio is not None and trio.lowlevel.in_trio_task() else _OnAsyncio()


async def outlast(wait: Callable[[], Awaitable[T]]) -> T:
    """What `wait()` returns or raises; a cancellation that comes meanwhile takes effect at the next checkpoint.

    A shield holds off anyio's cancellation. A native one of asyncio (`task.cancel()`, `asyncio.timeout`) comes through
    it: then `wait()`, which must only wait, is called again, and the cancellation is made again afterwards, with what
    it said: so whoever counts them counts right, and whoever made it knows it again. It may come in each turn of the
    loop (anyio does so to a task of asyncio that it waits for): once it need not wait, `wait()` must take no turn.
    """
    import anyio

    cancelled: list[tuple[Any, ...]] = []
    try:
        with anyio.CancelScope(shield=True):
            while True:
                try:
                    result = await wait()
                    break
                except anyio.get_cancelled_exc_class() as error:
                    cancelled.append(error.args)
    finally:
        if cancelled:
            _cancel_again(cancelled)
    return result


def _cancel_again(cancelled: Sequence[tuple[Any, ...]]) -> None:
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    for _ in cancelled:
        task.uncancel()
    for said in cancelled:
        task.cancel(*said)


class _InThread:
    def __init__(self) -> None:
        self.woken = threading.Event()

    def wake(self) -> None:
        self.woken.set()


class _OnAsyncio:
    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._woken)

    def _woken(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, job: _Job) -> None:
        await outlast(partial(self._done, job))

    async def _done(self, job: _Job) -> None:
        while not job.done:
            self._future = self._loop.create_future()
            await self._future


class _OnTrio:
    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._task = trio.lowlevel.current_task()
        self._is_woken = False

    def wake(self) -> None:
        import trio

        with suppress(trio.RunFinishedError):  # nobody waits any more
            self._token.run_sync_soon(self._woken)

    def _woken(self) -> None:
        import trio

        if not self._is_woken:
            self._is_woken = True
            trio.lowlevel.reschedule(self._task)

    async def wait(self, job: _Job) -> None:  # noqa: ARG002 - it is woken once, when the job is done
        import trio

        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


def loop_clock() -> Callable[[], float]:
    """What `anyio.current_time` returns in this loop, without looking up each time which loop it is."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        clock: Callable[[], float] = trio.current_time
        return clock
    import asyncio

    return asyncio.get_running_loop().time


def cancellations() -> Callable[[], int]:
    """How many cancellations the running task was sent and has not dealt with, other than by a scope: asyncio's own,
    which trio does not have."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return lambda: 0
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    return task.cancelling


def loop_caller() -> Callable[[Callable[[], object]], object]:
    """A function by which any thread has the loop that runs here call another, soon, without waiting for it.

    That function raises RuntimeError once the loop has ended.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        call_soon: Callable[[Callable[[], object]], object] = trio.lowlevel.current_trio_token().run_sync_soon
        return call_soon
    import asyncio

    return asyncio.get_running_loop().call_soon_threadsafe
