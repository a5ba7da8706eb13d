"""Floor: one hop, that is one message sent and received through an anyio memory object stream, between two tasks of
which each waits for the other, as the actors behind a chain of nodes do. The mailboxes have room: nobody waits to send.
"""

from __future__ import annotations

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from common import Case, Clock, Figures, main
from with_tinyllm import LOOPS


async def echo(inbox: MemoryObjectReceiveStream[int], outbox: MemoryObjectSendStream[int]) -> None:
    async with inbox, outbox:
        async for message in inbox:
            outbox.send_nowait(message)


async def play(n: int) -> Figures:
    ping, inbox = anyio.create_memory_object_stream[int](64)
    outbox, pong = anyio.create_memory_object_stream[int](64)
    async with anyio.create_task_group() as tasks, ping, pong:
        tasks.start_soon(echo, inbox, outbox)
        with Clock() as clock:
            for number in range(n // 2):
                ping.send_nowait(number)
                await pong.receive()
        await ping.aclose()
    return {"us_per_hop": clock.seconds / (n // 2 * 2) * 1e6}


def hop(case: Case) -> Figures:
    async def both() -> Figures:
        await play(100)
        return await play(max(case.n, 2))

    return anyio.run(both, **LOOPS[case.loop])


if __name__ == "__main__":
    main(hop)
