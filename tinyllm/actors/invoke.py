"""How one attempt at an activation is made: in the event loop, in a thread or in a worker process."""

from __future__ import annotations

import contextvars
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Protocol

import anyio
import anyio.to_process
import anyio.to_thread
import attrs

from tinyllm.actors.dispatch import concurrency, is_in_loop
from tinyllm.errors import NodeError, TinyLLMError
from tinyllm.graph.definition import Graph, Node
from tinyllm.graph.functions import locate
from tinyllm.graph.node import Pause
from tinyllm.graph.questions import Asked
from tinyllm.graph.redact import Redaction
from tinyllm.nodes.call import Call, Caller, Failure, Output, Save, failure, pause_in
from tinyllm.nodes.kinds import KINDS
from tinyllm.nodes.process import call_in_worker

THREADS = 64
"""In which all traces of an executor run one plain function, where its node does not say."""

Outcome = Output | Asked | Failure
"""What became of one attempt, where it did not raise in this process."""


class Attempt(Protocol):
    """What an attempt needs of whoever makes it."""

    def makes_way(self) -> None:
        """It is about to wait: something else must hear of messages meanwhile. More than once is as good as once."""

    def saver(self) -> Save:
        """What records the node's progress."""


Invoke = Callable[[Call, Attempt], Awaitable[Outcome]]


class Code:
    """The code of one node, and what bounds its attempts.

    :raises TinyLLMError: no worker process can load it.
    :raises TypeError: its parameter's annotation is nothing that a value could be structured into.
    """

    def __init__(
        self, graph: Graph, node: Node, *, deps: Any, debug_mutation: bool, redaction: Redaction | None
    ) -> None:
        self._redaction = redaction
        self.id = node.id
        self.timeout = node.timeout
        self.in_loop = is_in_loop(graph, node)
        # `max_concurrency` speaks for the process, whatever the number of traces.
        self.slots = None if node.max_concurrency is None else anyio.Semaphore(node.max_concurrency, fast_acquire=True)
        self._function = KINDS[node.type](graph, node)
        self.invoke = self._invoker(graph, node, deps, debug_mutation)

    def failure(self, error: BaseException) -> Failure:
        """`error`, which an attempt raised, as it is recorded."""
        return failure(self.id, error, self._function, self._redaction)

    def _invoker(self, graph: Graph, node: Node, deps: Any, debug_mutation: bool) -> Invoke:
        function = self._function
        if function is None:
            return _pass_on
        if node.process:
            path, qualname = locate(function)
            limiter = anyio.CapacityLimiter(concurrency(graph, node))
            works = partial(call_in_worker, path, qualname, debug_mutation, self._redaction)
            return partial(_in_process, works, function.wants_context, limiter)
        caller = Caller(function, deps=deps, debug_mutation=debug_mutation, redaction=self._redaction)
        if self.in_loop:
            return partial(_in_loop, caller, function.call, function.wants_context)
        return partial(_in_thread, caller, anyio.CapacityLimiter(node.max_concurrency or THREADS))


async def _pass_on(call: Call, _attempt: Attempt) -> Outcome:
    return Output(call.input.body)


async def _in_loop(
    caller: Caller, function: Callable[..., Any], wants_context: bool, call: Call, attempt: Attempt
) -> Outcome:
    prepared = caller.prepare(call, attempt.saver() if wants_context else None)
    try:
        run = contextvars.copy_context().run  # what it sets there is its own
        coroutine = run(function, *prepared.arguments, **prepared.keywords)
        if not isinstance(coroutine, types.CoroutineType):
            coroutine = _awaited(coroutine)
        try:
            waits_for = run(coroutine.send, None)
        except StopIteration as done:  # as small nodes do
            returned = done.value
        else:
            returned = await _driven(coroutine, run, waits_for, attempt)
    except (Pause, BaseExceptionGroup) as raised:
        return caller.asked(call, pause_in(raised))
    return caller.output(prepared, returned)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@types.coroutine
def _driven(
    coroutine: Coroutine[Any, Any, Any], run: Callable[..., Any], waits_for: Any, attempt: Attempt
) -> Generator[Any, Any, Any]:
    """What `coroutine`, which now waits, returns in the end."""
    attempt.makes_way()
    while True:
        try:
            step, value = coroutine.send, (yield waits_for)
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:
            step, value = coroutine.throw, thrown
        try:
            waits_for = run(step, value)
        except StopIteration as done:
            return done.value


async def _in_thread(caller: Caller, limiter: anyio.CapacityLimiter, call: Call, attempt: Attempt) -> Outcome:
    attempt.makes_way()
    # Abandoned when cancelled: a thread cannot be stopped, and its result would not be recorded any more.
    return await anyio.to_thread.run_sync(
        caller.attempt, call, attempt.saver(), abandon_on_cancel=True, limiter=limiter
    )


async def _in_process(
    works: Callable[[Call], Outcome],
    wants_context: bool,
    limiter: anyio.CapacityLimiter,
    call: Call,
    attempt: Attempt,
) -> Outcome:
    attempt.makes_way()
    lent = call if wants_context else attrs.evolve(call, versions={}, progress=None)
    try:
        return await anyio.to_process.run_sync(works, lent, cancellable=True, limiter=limiter)
    except anyio.BrokenWorkerProcess as error:
        if isinstance(error.__cause__, TinyLLMError):  # what the worker says of why it could not start
            raise error.__cause__ from None
        raise NodeError(call.node_id, "its worker process died: killed from outside, or out of memory") from None
