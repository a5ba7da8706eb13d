"""The actor that looks for commands that others left for the traces of this process."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import assert_never

import anyio
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from tinyllm.actors.mailbox import reply, take
from tinyllm.actors.protocol import ROOM, Look, ReadMessage, RunAddress, Told, Unwatch, Watch
from tinyllm.errors import StorageError
from tinyllm.storage.contract import CheckpointStorage, Command

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How long a command may lie unseen. Who leaves one in this process says so, and it is seen at once."""


class CommandReader:
    """Reads the commands of the traces that `owner` executes, while there are any, and tells their runs.

    A run may have gone, or be busy: what is not consumed is told again.
    """

    def __init__(self, storage: CheckpointStorage, owner: str, inbox: MemoryObjectReceiveStream[ReadMessage]) -> None:
        self._storage = storage
        self._owner = owner
        self._inbox = inbox
        self._runs: dict[int, RunAddress] = {}
        self._fails = False

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with self._inbox:
            task_status.started()
            look_at = anyio.current_time() + LOOK_SECONDS
            while True:
                try:
                    messages = await take(self._inbox, look_at if self._runs else None)
                except anyio.EndOfStream:
                    break
                for message in messages:
                    self._handle(message)
                # By the clock, and not when nothing has come: where traces begin and end all the time something has.
                if self._runs and (Look() in messages or anyio.current_time() >= look_at):
                    await self._look()
                    look_at = anyio.current_time() + LOOK_SECONDS

    def _handle(self, message: ReadMessage) -> None:
        match message:
            case Watch():
                self._runs[message.trace] = message.reply
            case Unwatch():
                self._runs.pop(message.trace, None)
            case Look():
                pass
            case _:
                assert_never(message)

    async def _look(self) -> None:
        try:
            commands = await self._storage.commands(owner=self._owner)
        except StorageError as error:  # whether the store is there at all is the writer's business
            if not self._fails:  # it looks every second: once is enough to say so
                logger.warning("%s: could not look for commands: %s", self._storage.name, error)
            self._fails = True
            return
        self._fails = False
        left: defaultdict[int, list[Command]] = defaultdict(list)
        for command in commands:
            left[command.trace].append(command)
        for trace, told in left.items():
            run = self._runs.get(trace)
            if run is not None and run.statistics().current_buffer_used < ROOM:
                reply(run, Told(tuple(told)))
