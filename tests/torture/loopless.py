"""Runs without an event loop: the real `Run`, which has its turn when a simulation says so, and the nodes it starts.

Nothing here waits: where the real one would, it yields what it waits for to whoever drives it. The clock stands still
until somebody moves it.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import attrs
from anyio.streams.memory import MemoryObjectReceiveStream

from tests.actors.worlds import Stumble
from tests.torture.trial import Violation
from tinyllm.actors import run as run_module
from tinyllm.actors.mailbox import drain, reply
from tinyllm.actors.protocol import (
    Answer,
    Cancelled,
    CancelNode,
    Close,
    Failed,
    Finished,
    NodeMessage,
    Paused,
    Progressed,
    RunNode,
    ScheduleMessage,
    Started,
    Stepped,
)
from tinyllm.actors.run import Run
from tinyllm.errors import TinyLLMError
from tinyllm.graph.node import Pause
from tinyllm.nodes.call import Caller, asked_by, failure
from tinyllm.storage.contract import Delta

T = TypeVar("T")


class Clock:
    """Seconds, of all clocks that there are."""

    now = 0.0

    def time(self) -> float:
        return self.now


CLOCK = Clock()


@attrs.frozen
class Wait:
    """Until something has come, or a time."""

    come: Callable[[], bool]
    due: float | None = None

    @property
    def over(self) -> bool:
        return self.come() or (self.due is not None and CLOCK.now >= self.due)


@types.coroutine
def _wait(wait: Wait) -> Iterator[Wait]:
    yield wait


async def _take(inbox: MemoryObjectReceiveStream[T], deadline: float | None) -> list[T]:
    """As `mailbox.take`."""
    await _wait(Wait(lambda: inbox.statistics().current_buffer_used > 0, deadline))
    taken: list[T] = []
    drain(inbox, taken)
    return taken


async def _settled(answer: Answer) -> None:
    await _wait(Wait(answer._settled.is_set))


def without_a_loop() -> AbstractContextManager[Any]:
    """Have runs take their messages, and the time, from here. (What they would warn of happens all the time.)"""
    silent = logging.Logger("silent", logging.CRITICAL)
    return patch.multiple(run_module, take=_take, loop_clock=lambda: CLOCK.time, time=CLOCK, logger=silent)


class LooplessRun(Run):
    """The real run, which may die: then it hands over nothing more."""

    dead = False
    leaving = False

    @property
    def durable(self) -> int:
        """The number of the newest delta that it believes to be."""
        return self._dispatch.durable

    async def _leave(self) -> None:
        """As the real one, without its deadlines: nodes end when they are told to."""
        self._dispatch.stopped = self.leaving = True
        if self.dead:
            return
        if self._dispatch.running:
            await self._cancel_running()
            while self._dispatch.running:
                for message in await _take(self._inbox, None):
                    await self._handle(message)
        if self._journal is not None:
            await self._let_go(self._journal)


class CancelledFromOutside(BaseException):
    """As the one that cancels a run raises it."""


class Execution:
    """A run, and the nodes that it has started."""

    run: LooplessRun
    wait: Wait
    error: Exception | None = None

    def __init__(
        self,
        callers: Mapping[str, Caller],
        *,
        hands: Callable[[Delta], None],
        starts: Callable[[RunNode], None],
        saved: Callable[[int, bytes], None],
        journal: list[ScheduleMessage],
    ) -> None:
        """`hands` is told of each delta, `starts` of each node, `saved` of progress that a node was told is durable."""
        self._callers = callers
        self._hands = hands
        self._starts = starts
        self.saved = saved
        self._journal = journal
        self._broken: Violation | None = None
        self.nodes: dict[int, Attempt] = {}
        self.over = False

    def begin(self, run: LooplessRun) -> None:
        self.run = run
        self._coroutine = run.run()
        self._turn(lambda: self._coroutine.send(None))

    def go_on(self) -> None:
        """Take what has come."""
        self._turn(lambda: self._coroutine.send(None))

    def cancel(self) -> None:
        """Whoever wanted it does not any more."""
        self._turn(lambda: self._coroutine.throw(CancelledFromOutside()))

    def die(self) -> None:
        self.run.dead = self.over = True
        for node in self.nodes.values():
            node.coroutine.close()
        self.nodes.clear()
        self._coroutine.close()

    def _turn(self, turn: Callable[[], Wait]) -> None:
        try:
            self.wait = turn()
        except (StopIteration, CancelledFromOutside):
            self.over = True
        except TinyLLMError as error:
            self.over, self.error = True, error
        if self._broken is not None:
            raise self._broken

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """What is found inside the run is told outside of it: the run itself would first leave in order."""
        try:
            yield
        except Violation as violation:
            self._broken = violation

    # -- what the run sends ------------------------------------------------------------------------------------

    async def post(self, message: ScheduleMessage, *, hurry: bool = False) -> None:
        """To the scheduler."""
        if isinstance(message, Stepped):
            with self._looking():
                self._hands(message.delta)
        self._journal.append(message)
        if isinstance(message, Close) and message.answer is not None:
            await _settled(message.answer)

    def send_nowait(self, message: NodeMessage) -> None:
        """To the node executor."""
        match message:
            case RunNode():
                with self._looking():
                    self._starts(message)
                self.nodes[message.seq] = Attempt(self, message, self._callers[message.call.node_id])
                if message.tells:
                    reply(message.reply, Started(message.seq))
            case CancelNode() if (attempt := self.nodes.pop(message.seq, None)) is not None:
                attempt.coroutine.close()
                reply(message.reply, Cancelled(message.seq))
            case _:
                pass  # it has ended


class Attempt:
    """A node that runs."""

    def __init__(self, execution: Execution, asked: RunNode, caller: Caller) -> None:
        self._execution = execution
        self._seq = asked.seq
        self._reply = asked.reply
        self.call = asked.call
        self._caller = caller
        self._prepared = caller.prepare(asked.call, self._save)
        self.coroutine: Coroutine[Any, Any, Any] = caller.function.call(
            *self._prepared.arguments, **self._prepared.keywords
        )
        self.wait: Wait | None = None

    @property
    def ready(self) -> bool:
        return self.wait is None or self.wait.over

    async def _save(self, body: bytes) -> None:
        answer = Answer()
        reply(self._reply, Progressed(self._seq, body, answer))
        await _settled(answer)
        await answer.wait()
        self._execution.saved(self._seq, body)

    def go_on(self, *, blocked: bool = False) -> str:
        """Run on until it ends, or saves its progress; returns which. `blocked`: it kept the loop meanwhile."""
        try:
            self.wait = self.coroutine.send(None)
            return "saves"
        except StopIteration as done:
            output = self._caller.output(self._prepared, done.value)
            self._end(Finished(self._seq, output, CLOCK.now, 0.0, blocked))
            return "finishes"
        except Pause as pause:
            self._end(Paused(self._seq, asked_by(self.call, pause)))
            return f"asks {pause.name}"
        except (Stumble, TinyLLMError) as error:
            return self.fail(error)

    def fail(self, error: Exception) -> str:
        self.coroutine.close()
        told = failure(self.call.node_id, error.with_traceback(None))  # to read one takes longer than all else
        self._end(Failed(self._seq, told, error, 0.0))
        return f"fails: {error}"

    def _end(self, message: Finished | Paused | Failed) -> None:
        del self._execution.nodes[self._seq]
        reply(self._reply, message)
