"""Sending to a bounded mailbox, and taking from one."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tinyllm.actors.protocol import Hurry, ScheduleMessage
from tinyllm.errors import StorageError

T = TypeVar("T")


async def post(mailbox: MemoryObjectSendStream[T], message: T) -> None:
    """Send; wait only if the mailbox is full. (`send()` alone passes through the event loop every time, which doubles
    the cost of a hop.)

    Waiting is not cancelled: afterwards nobody could tell whether the message was sent, and one delta or one node that
    is missed spoils all that follow. It is bounded: whoever takes waits for nothing but, at most, a commit.
    """
    try:
        mailbox.send_nowait(message)
    except anyio.WouldBlock:
        with anyio.CancelScope(shield=True):
            await mailbox.send(message)


class Journal:
    """The way to the scheduler: its mailbox, and a bell for when it lets the mailbox fill."""

    def __init__(self, mailbox: MemoryObjectSendStream[ScheduleMessage], bell: MemoryObjectSendStream[Hurry]) -> None:
        self._mailbox = mailbox
        self._bell = bell

    async def post(self, message: ScheduleMessage, *, hurry: bool = False) -> None:
        """Send; `hurry`: it is to be taken at once.

        :raises StorageError: the scheduler has ended; nothing more is written.
        """
        try:
            try:
                self._mailbox.send_nowait(message)
                if hurry:
                    self._ring()
            except anyio.WouldBlock:
                self._ring()
                await post(self._mailbox, message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise StorageError(f"trace {message.trace_id!r}: the scheduler has ended; use another executor") from None

    def _ring(self) -> None:
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError):  # it rings already, or nobody is there to hear it
            self._bell.send_nowait(Hurry())

    def close(self) -> None:
        self._mailbox.close()
        self._bell.close()


def reply(mailbox: MemoryObjectSendStream[T], message: T) -> None:
    """Answer somebody who may have gone; mailboxes of those who ask are large enough for every answer."""
    try:
        mailbox.send_nowait(message)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def take(mailbox: MemoryObjectReceiveStream[T], deadline: float | None) -> list[T]:
    """All that has come, in order; waits for the first until `deadline`, and returns nothing if that passes.

    Only the waiting is inside the deadline's scope: handling a message must not be cut off half-way by it.

    :raises EndOfStream: every sender has closed and nothing is left.
    """
    taken: list[T] = []
    if deadline is None:
        taken.append(await mailbox.receive())
    else:
        with anyio.CancelScope(deadline=deadline):
            taken.append(await mailbox.receive())
    if taken:
        drain(mailbox, taken)
    return taken


def drain(mailbox: MemoryObjectReceiveStream[T], taken: list[T]) -> None:
    """Take what is there already. (The end is met by whoever waits.)"""
    try:
        while True:
            taken.append(mailbox.receive_nowait())
    except (anyio.WouldBlock, anyio.EndOfStream):
        return
