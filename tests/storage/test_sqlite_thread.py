from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from tinyllm.errors import StorageError, StorageNotOpen
from tinyllm.storage import thread as thread_module
from tinyllm.storage.thread import DedicatedThread

pytestmark = pytest.mark.anyio


@pytest.fixture
def thread() -> DedicatedThread:
    started = DedicatedThread("a thread")
    started.start()
    started.start()
    return started


async def test_code_that_is_not_async_stands_still_until_its_call_is_done(thread: DedicatedThread) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert thread.call_now(divmod, 7, 2) == (3, 1)
        assert thread.call_now(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        thread.call_now(divmod, 1, 0)
    thread.stop()
    with pytest.raises(StorageNotOpen):
        thread.call_now(divmod, 7, 2)


async def test_calls_run_in_one_thread_in_the_order_they_were_made(thread: DedicatedThread) -> None:
    order: list[int] = []
    threads = set()

    def note(number: int) -> None:
        order.append(number)
        threads.add(threading.get_ident())

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(thread.call, note, number)
    thread.stop()
    assert sorted(order) == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_what_it_returns_and_raises_comes_back(thread: DedicatedThread) -> None:
    assert await thread.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await thread.call(divmod, 7, 0)
    with pytest.raises(StorageError, match="interrupted by SystemExit") as caught:
        await thread.call(exit, 3)
    assert isinstance(caught.value.__cause__, SystemExit)
    assert await thread.call(int, "5") == 5
    thread.stop()


async def test_stop_lets_earlier_calls_end(thread: DedicatedThread) -> None:
    begun, go_on = threading.Event(), threading.Event()
    results: list[str] = []

    def slow() -> str:
        begun.set()
        go_on.wait()
        return "done"

    async def call() -> None:
        results.append(await thread.call(slow))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        begun.wait()
        threading.Timer(0.01, go_on.set).start()
        thread.stop()
        thread.stop()
    assert results == ["done"]


async def test_a_stopped_thread_is_refused_and_may_start_again(thread: DedicatedThread) -> None:
    thread.stop()
    with pytest.raises(StorageNotOpen, match=r"call initialize\(\) first"):
        await thread.call(int)
    thread.start()
    assert await thread.call(int) == 0
    thread.stop()


async def test_a_cancelled_call_goes_on_and_its_outcome_is_known(thread: DedicatedThread) -> None:
    begun, go_on = threading.Event(), threading.Event()
    known: list[object] = []

    def slow() -> str:
        begun.set()
        go_on.wait()
        return "done"

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                known.append(await thread.call(slow))
                await checkpoint()
                known.append("not cancelled")

            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            begun.wait()
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            assert known == []
            go_on.set()
    assert known == ["done"]
    assert scope.cancelled_caught
    thread.stop()


def test_a_native_cancellation_waits_too_and_is_counted_right() -> None:
    """`task.cancel()` comes through anyio's shields; `asyncio.timeout` must still know its own cancellation."""
    thread = DedicatedThread("a thread")
    thread.start()
    begun, go_on = threading.Event(), threading.Event()
    known: list[object] = []

    def slow() -> str:
        begun.set()
        go_on.wait()
        return "done"

    async def call() -> None:
        try:
            async with asyncio.timeout(None) as timeout:
                timeout.reschedule(0)
                known.append(await thread.call(slow))
                await asyncio.sleep(0)
                known.append("not cancelled")
        except TimeoutError:
            known.append("timed out")

    async def main() -> None:
        task = asyncio.create_task(call())
        while not begun.is_set():
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        await task
        assert task.cancelling() == 0

    asyncio.run(main())
    assert known == ["done", "timed out"]
    thread.stop()


def test_a_task_cancelled_twice_ends_cancelled() -> None:
    thread = DedicatedThread("a thread")
    thread.start()
    begun, go_on = threading.Event(), threading.Event()
    known: list[object] = []

    def slow() -> None:
        begun.set()
        go_on.wait()

    async def call() -> None:
        await thread.call(slow)
        known.append("done")

    async def main() -> None:
        task = asyncio.create_task(call())
        while not begun.is_set():
            await asyncio.sleep(0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 2

    asyncio.run(main())
    assert known == ["done"]
    thread.stop()


def test_the_answer_goes_to_the_loop_that_asked() -> None:
    thread = DedicatedThread("a thread")
    thread.start()

    async def ask() -> int:
        return sum([await thread.call(int, "1") for _ in range(100)])

    answers: list[int] = []
    loops = [
        threading.Thread(target=lambda: answers.append(asyncio.run(ask()))),
        threading.Thread(target=lambda: answers.append(trio.run(ask))),
    ]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    assert answers == [100, 100]
    thread.stop()


async def _waiter() -> thread_module._Waiter:
    return thread_module._here()


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_a_loop_that_ended_is_not_waited_for(
    run: Callable[..., thread_module._Waiter], thread: DedicatedThread
) -> None:
    waiter = run(_waiter) if run is trio.run else run(_waiter())
    left = thread_module._Job(divmod, (7, 2), waiter)
    thread._put(left)
    assert thread.call_now(divmod, 9, 2) == (4, 1)  # the thread lives on, behind the call that nobody waits for
    assert left.result == (3, 1)
    thread.stop()


def test_a_thread_that_was_forgotten_says_so() -> None:
    thread = DedicatedThread("a thread")
    thread.start()
    forgotten = [thread]
    del thread
    with pytest.warns(ResourceWarning, match="a thread was not closed"):
        forgotten.clear()  # its last reference: no cycle keeps it


# -- what is thrown into the thread ----------------------------------------------------------------------------


class Thrown(BaseException):
    """As an asynchronous exception: nothing of ours expects it."""


def throw_into(thread: DedicatedThread) -> None:
    assert thread._thread is not None
    ident = ctypes.c_ulong(thread._thread.ident or 0)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Thrown)) == 1


async def test_what_is_thrown_into_an_idle_thread_takes_no_call_with_it(thread: DedicatedThread) -> None:
    with anyio.fail_after(10):
        for _ in range(20):
            assert await thread.call(int, "1") == 1
            throw_into(thread)
            assert await thread.call(int, "2") == 2
    thread.stop()


async def test_what_is_thrown_into_a_call_is_told_to_its_caller_alone(thread: DedicatedThread) -> None:
    def spin() -> None:
        throw_into(thread)
        for _ in range(1000):
            pass

    with anyio.fail_after(10):
        with pytest.raises(StorageError, match="a thread: its thread was interrupted by Thrown"):
            await thread.call(spin)
        assert await thread.call(int, "1") == 1
        with pytest.raises(StorageError, match="interrupted by Thrown"):
            thread.call_now(spin)
    thread.stop()


async def test_whenever_it_is_thrown_everybody_hears_and_the_thread_goes_on(thread: DedicatedThread) -> None:
    """At whatever instant: from another thread, as fast as it can."""
    over = threading.Event()

    def throw() -> None:
        while not over.is_set():
            throw_into(thread)
            over.wait(0.0005)

    thrower = threading.Thread(target=throw)
    told: list[bool] = []
    thrower.start()
    try:
        with anyio.fail_after(20):
            for _ in range(300):
                try:
                    told.append(await thread.call(sum, range(1000)) == 499500)
                except StorageError:
                    told.append(False)
    finally:
        over.set()
        thrower.join()
    assert len(told) == 300
    assert any(told)
    thread.stop()
