"""For tests of your own graphs: `assert_resumable` interrupts one everywhere, `stubbed` replaces what its nodes do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain, count, islice, takewhile
from typing import Any

import anyio
import attrs

from tinyllm.actors.dispatch import Durability
from tinyllm.actors.plan import Plan
from tinyllm.core.config import ExecutorConfig
from tinyllm.core.executor import Executor
from tinyllm.errors import (
    ConfigError,
    ExecutionError,
    Fault,
    InvalidGraph,
    StorageError,
    StorageFailed,
    ValueMutated,
)
from tinyllm.graph.definition import Graph
from tinyllm.graph.findings import did_you_mean, near
from tinyllm.graph.messages import TaskResponse
from tinyllm.graph.node import NodeFunction
from tinyllm.graph.payload import Captured
from tinyllm.graph.structure import structurer
from tinyllm.graph.variables import Variables
from tinyllm.storage.contract import Admit, Append, Delta, Outcome, Write
from tinyllm.storage.memory import InMemoryCheckpointStorage

__all__ = ["assert_resumable", "stubbed"]

TRACE = "resumable"
"""The id of every trace executed here: activation ids follow from it, and are compared."""

SHOWN = 120
"""Characters of a value that a message shows."""

CAUSES = (
    "usual causes: a node whose result depends on more than its input (the time, a random number, a counter, a file "
    "that it adds to); a node that changed a value in place; nodes that run at the same time and set the same "
    "variable, with the reducer `last`"
)


def stubbed(graph: Graph, stubs: Mapping[str, Callable[..., Any]]) -> Graph:
    """`graph` with other functions for some nodes, by node id: for tests that call no model and no service.

    A stub may take and return what any node function may. It runs in this process, also where the node says
    `process: true`. All else is as the graph has it: edges, joins, effects, retries, versions.

    :raises InvalidGraph: naming each stub whose node is not there or calls nothing, or that cannot be a node function.
    """
    faults = []
    nodes, functions = dict(graph.nodes), dict(graph.functions)
    for node_id, stub in stubs.items():
        where = f"stubs[{node_id!r}]"
        node = nodes.get(node_id)
        if node is None:
            faults.append(Fault(f"no node has the id `{node_id}`{did_you_mean(near(node_id, nodes))}", where))
            continue
        if node.type in ("entry", "exit"):
            faults.append(
                Fault(f"an {node.type} node calls nothing that could be replaced; stub a node beside it", where)
            )
            continue
        try:
            function = NodeFunction.of(stub)
            structurer(function.annotation)
        except Exception as error:  # annotations are the user's expressions, and raise what they like
            faults.append(Fault(f"the stub cannot be a node: {error}", where))
            continue
        replaced = graph.function(node)
        name = f"stub of {node_id}"  # no function has such a name; other nodes may call the one that is replaced
        functions[name] = attrs.evolve(function, version=replaced.version if replaced else None)
        nodes[node_id] = attrs.evolve(
            node,
            type="function",
            config={**node.config, "call": name},
            process=False,
            effects=graph.has_effects(node),
        )
    if faults:
        raise InvalidGraph(tuple(faults))
    return attrs.evolve(graph, nodes=nodes, functions=functions)


def assert_resumable(
    graph: Graph,
    task: Any,
    *,
    stubs: Mapping[str, Callable[..., Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    answers: Mapping[str, Any] | None = None,
    deps: Any = None,
    backends: Sequence[str] = ("asyncio", "trio"),
    durabilities: Sequence[Durability] = ("async", "sync", "exit"),
) -> TaskResponse:
    """Check that `graph` comes to the same end wherever it is interrupted. For a test that is not async.

    The graph is executed once as it is. Then, on each event loop and with each durability, it is interrupted after
    every rev, from admission on: what was not durable by then is lost, as with a killed process. A new executor resumes
    it, and must come to the same status, value, variables and questions, with the same activations finished, each once.
    A graph that fails must fail again in the same way; what else was done by then depends on who was first, and is not
    compared. Where it pauses, it is resumed with those of `answers` whose name is that of an open question; otherwise
    the pause is its end. Returns the response of the first execution: look at it, too.

    **Nodes are run for real, many times**: give `stubs` (as for `stubbed`) for those that cost something or act on the
    world outside. A trace of N revs is executed up to N + 1 times for each loop and durability (with `exit` there are
    few revs), so let the task be a small one. All of it happens in this process: what a node keeps in a global, and
    `deps`, live on where a killed process would have lost them. `trio` is left out where it is not installed.

    :raises AssertionError: where the graph was interrupted, what is different then, and what may be the cause.
    :raises ConfigError: none of `backends` is installed, or no such durability.
    :raises InvalidGraph: as `stubbed`.
    """
    __tracebackhide__ = True
    loops = [backend for backend in backends if backend != "trio" or find_spec("trio")]
    if not loops:
        raise ConfigError("backends", backends, "at least one event loop that is installed")
    configs = [ExecutorConfig(durability=durability) for durability in durabilities]
    trial = _Trial(stubbed(graph, stubs or {}), task, variables, answers or {}, deps)
    expected = anyio.run(trial.whole, ExecutorConfig(), backend=loops[0])
    for backend in loops:
        for config in configs:
            fault = anyio.run(trial.fault, expected, config, backend=backend)
            if fault is not None:
                on = f"on {backend}, with durability {config.durability!r}"
                raise AssertionError(f"graph {graph.id!r} does not always end the same: {on}, {fault}")
    return expected.response


# -- what is executed ------------------------------------------------------------------------------------------


class _Store(InMemoryCheckpointStorage):
    """Takes `left` more deltas and then, like a dead disk, nothing at all: what is in it is what a kill would leave."""

    def __init__(self, left: float = math.inf) -> None:
        super().__init__()
        self.left = left
        self.finished: Counter[tuple[str, bytes]] = Counter()
        """Durable steps, by node and activation id; no id where a merged delta does not tell it."""
        self.results: dict[tuple[str, bytes], list[bytes]] = {}
        """What they returned, in the order in which they finished."""
        self._ids: dict[int, bytes] = {}

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        taken = list(takewhile(self._takes, writes))
        outcomes = await super().commit(taken)
        for write, outcome in zip(taken, outcomes, strict=True):
            if isinstance(write, Admit | Append) and not isinstance(outcome, Exception):
                self._note(write.first if isinstance(write, Admit) else write.delta)
        return [*outcomes, *(StorageError("the test interrupts here") for _ in writes[len(taken) :])]

    def _takes(self, write: Write) -> bool:
        if isinstance(write, Admit | Append):
            self.left -= 1
        return self.left >= 0

    def _note(self, delta: Delta) -> None:
        self._ids |= {row.seq: row.id for row in delta.activations}
        self._ids |= {fired.activation: fired.id for fired in delta.fired}
        for step in delta.steps:
            key = step.node, self._ids.get(step.activation, b"")
            self.finished[key] += 1
            if len(delta.steps) == 1:  # else it is not said whose message is whose
                self.results[key] = [message.body for message in delta.messages if message.node == step.node]


@attrs.frozen
class _End:
    """What a trace came to."""

    response: TaskResponse
    variables: dict[str, Any]
    finished: Counter[tuple[str, bytes]]
    results: dict[tuple[str, bytes], list[bytes]]

    @property
    def outcome(self) -> tuple[str | None, ...]:
        error = self.response.error
        return self.response.status, *((error.node_id, error.type, error.message) if error else ())

    @property
    def questions(self) -> dict[str, Any]:
        return {question.id: question for question in self.response.questions}

    def __str__(self) -> str:
        error = self.response.error
        if error is None:
            return self.response.status
        return f"{self.response.status} (in node {error.node_id!r}, {error.type}: {_cut(error.message)})"


@attrs.frozen
class _Trial:
    """What is executed again and again."""

    graph: Graph
    task: Any
    variables: Mapping[str, Any] | None
    answers: Mapping[str, Any]
    deps: Any

    async def whole(self, config: ExecutorConfig) -> _End:
        """How it ends, uninterrupted."""
        store = _Store()
        return await self._end(store, await self._call(store, config, resume=False))

    async def fault(self, expected: _End, config: ExecutorConfig) -> str | None:
        """Interrupt it after each rev in turn: where an end differs from `expected`, and how; None if none does."""
        for rev in count():
            where, end = await self._interrupted(rev, config)
            if different := list(_differences(expected, end)):
                first = islice(_different_results(expected, end), 1)
                lines = [f"{where or 'without an interruption'}:", *different, *first]
                return "\n  ".join([*lines, await self._cause(expected, end, config)])
            if where is None:
                break
        return None

    async def _interrupted(self, rev: int, config: ExecutorConfig) -> tuple[str | None, _End]:
        """How it ends if it is interrupted after `rev`, and where that was; None: it had ended by then."""
        store = _Store(left=rev + 1)
        try:
            return None, await self._end(store, await self._call(store, config, resume=False))
        except StorageFailed:
            if store.left >= 0:  # not of our making
                raise
        (last,) = await store.checkpoints(TRACE, limit=1)
        after = f", node {last.node_id!r}" if last.node_id else ""
        store.left = math.inf
        response = await self._call(store, config, resume=True)
        return f"interrupted after rev {rev} (step {last.step}{after}) and resumed", await self._end(store, response)

    async def _cause(self, expected: _End, got: _End, config: ExecutorConfig) -> str:
        """What made the difference, as far as executing it without an interruption can tell."""
        if _repeated(got):
            return "cause: a defect of tinyllm, which no node can bring about; please report it"
        checked = await self.whole(attrs.evolve(config, debug_mutation=True))
        error = checked.response.error
        if error is not None and error.type == ValueMutated.__name__:
            return f"cause: node {error.message}"
        if any(_differences(expected, await self.whole(config))):
            return f"it ends differently without an interruption, too; {CAUSES}"
        return CAUSES

    async def _call(self, store: _Store, config: ExecutorConfig, *, resume: bool) -> TaskResponse:
        async with Executor(self.graph, config, store, self.deps) as executor:
            try:
                if resume:
                    response = await executor.resume_from_checkpoint(TRACE)
                else:
                    response = await executor.execute(self.task, trace_id=TRACE, variables=self.variables)
                while given := {q.id: self.answers[q.name] for q in response.questions if q.name in self.answers}:
                    response = await executor.resume_from_checkpoint(TRACE, answers=given)
                return response
            except ExecutionError as error:
                failed: TaskResponse = error.response
                return failed

    async def _end(self, store: _Store, response: TaskResponse) -> _End:
        plan = Plan(self.graph, TRACE)
        plan.restore(await store.load(TRACE))
        return _End(response, dict(Variables(plan.versions)), store.finished, store.results)


# -- what is compared ------------------------------------------------------------------------------------------


def _differences(expected: _End, got: _End) -> Iterator[str]:
    """Each as a line for a person."""
    for node, identity in _repeated(got):
        yield f"node {node!r} ran again although its result was durable (activation {identity.hex()})"
    if expected.outcome != got.outcome:
        yield f"status: expected {expected}, got {got}"
    elif expected.response.error is None:  # else what was done by then depends on who was first
        yield from _different("value", expected.response.value, got.response.value)
        for part in ("variables", "questions"):
            before, now = getattr(expected, part), getattr(got, part)
            for key in _keys(before, now):
                yield from _different(f"{part}[{key!r}]", before.get(key, _NOTHING), now.get(key, _NOTHING))
        yield from _different_steps(expected.finished, got.finished)


def _repeated(end: _End) -> list[tuple[str, bytes]]:
    """The activations that finished more than once."""
    return [key for key, times in end.finished.items() if times > 1 and key[1]]


def _different(path: str, expected: Any, got: Any) -> Iterator[str]:
    """The first difference at or below `path`."""
    if expected == got:
        return
    if isinstance(expected, dict) and isinstance(got, dict):
        key = next(key for key in _keys(expected, got) if expected.get(key, _NOTHING) != got.get(key, _NOTHING))
        yield from _different(f"{path}[{key!r}]", expected.get(key, _NOTHING), got.get(key, _NOTHING))
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        index = next(index for index, item in enumerate(expected) if item != got[index])
        yield from _different(f"{path}[{index}]", expected[index], got[index])
    else:
        yield f"{path}: expected {_shown(expected)}, got {_shown(got)}"


def _different_steps(expected: Counter[tuple[str, bytes]], got: Counter[tuple[str, bytes]]) -> Iterator[str]:
    before, now = (Counter(node for node, _ in finished.elements()) for finished in (expected, got))
    for node in _keys(before, now):
        if before[node] != now[node]:
            yield f"finished activations of node {node!r}: expected {before[node]}, got {now[node]}"
    if before == now and all(identity for _, identity in (*expected, *got)):
        for node in dict.fromkeys(node for node, _ in expected - got):
            yield f"finished activations of node {node!r}: as many as expected, but with other ids"


def _different_results(expected: _End, got: _End) -> Iterator[str]:
    """In causal order: the first one is where it began."""
    for key, bodies in expected.results.items():
        before, now = ([Captured(body).value for body in said] for said in (bodies, got.results.get(key, bodies)))
        if len(before) == len(now) == 1:
            before, now = before[0], now[0]
        yield from _different(f"first in the result of node {key[0]!r}", before, now)


def _keys(*dicts: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(chain(*dicts)))


class _Nothing:
    """Stands for what is on one side only."""

    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 3 :]}"
