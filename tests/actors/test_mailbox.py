"""Sending to a bounded mailbox, and taking from one."""

from __future__ import annotations

import anyio
import pytest

from tinyllm.actors.mailbox import post, reply, take
from tinyllm.actors.protocol import Answer
from tinyllm.storage.contract import Done

pytestmark = pytest.mark.anyio


async def test_posting_waits_only_for_room_and_is_not_cut_off_by_a_cancellation() -> None:
    send, receive = anyio.create_memory_object_stream[int](1)
    with send, receive:
        await post(send, 1)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(post, send, 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.wait_all_tasks_blocked()
                    assert await receive.receive() == 1
        assert await receive.receive() == 2


async def test_posting_to_nobody_is_told() -> None:
    send, receive = anyio.create_memory_object_stream[int](0)
    with send, receive:
        async with anyio.create_task_group() as tasks:

            async def waiting() -> None:
                with pytest.raises(anyio.BrokenResourceError):
                    await post(send, 1)

            tasks.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            receive.close()


async def test_an_answer_to_somebody_who_has_gone_is_no_harm() -> None:
    send, receive = anyio.create_memory_object_stream[int](1)
    reply(send, 1)
    assert receive.receive_nowait() == 1
    receive.close()
    reply(send, 2)
    assert send.statistics().current_buffer_used == 0
    send.close()
    reply(send, 3)


async def test_taking_gives_all_that_has_come_in_order() -> None:
    send, receive = anyio.create_memory_object_stream[int](10)
    with send, receive:
        for number in range(5):
            send.send_nowait(number)
        assert await take(receive, None) == [0, 1, 2, 3, 4]
        send.send_nowait(5)
        assert await take(receive, anyio.current_time() + 60) == [5]
        assert await take(receive, anyio.current_time()) == []
        send.send_nowait(6)
        send.close()
        assert await take(receive, None) == [6]
        with pytest.raises(anyio.EndOfStream):
            await take(receive, anyio.current_time() + 60)


async def test_an_answer_is_a_value_or_an_exception() -> None:
    good, bad = Answer(), Answer()
    good.settle(Done())
    bad.settle(ValueError("boom"))
    assert await good.wait() == Done()
    with pytest.raises(ValueError, match="boom"):
        await bad.wait()
