"""`assert_resumable` finds nothing in graphs that keep the rules, and says what is wrong with those that do not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, assume, given, settings

from tests.actors.worlds import TASK, TooLong, World, whole, worlds
from tinyllm import (
    ConfigError,
    Executor,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    NodeContext,
    Result,
    Send,
    StorageError,
    StorageFailed,
    load_graph,
)
from tinyllm.actors.dispatch import Durability
from tinyllm.actors.events import Event, TraceStarted
from tinyllm.storage.contract import Append, Outcome, Snapshot, Write
from tinyllm.testing import assert_resumable

SURVEY = Path(__file__).parents[2] / "examples" / "survey" / "survey.yaml"

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


async def numbers(task: str) -> list[int]:
    return list(range(int(task)))


async def square(value: int) -> Result:
    return Result(value * value, set={"log": f"squared {value}", "last": "square"})


def total(values: list[int], context: NodeContext) -> str:
    return f"{sum(values)}, {len(context.variables.get('log', []))} lines"


def fan_out(**functions: Any) -> Graph:
    first, each, last = (functions.get(f.__name__, f) for f in (numbers, square, total))
    return (
        GraphBuilder("squares", variables={"log": "append"})
        .edge(first, each, for_each=True)
        .edge(each, last)
        .node(each, id="square")
        .node(last, id="total", join="all", effects=True)
        .build()
    )


def cycle() -> Graph:
    async def down(value: int | str) -> int:
        return int(value) - 1

    def last(value: int) -> str:
        return "done"

    return (
        GraphBuilder("cycle", allow_cycles=True)
        .entry(down)
        .edge(down, down, when="structured > 0")
        .edge(down, last, when="structured == 0")
        .build()
    )


def sends() -> Graph:
    def split(task: str) -> list[Send]:
        return [Send(("left", "right")[index % 2], word) for index, word in enumerate(task.split())]

    async def left(word: str) -> str:
        return word.upper()

    async def right(word: str) -> str:
        return word.lower()

    return (
        GraphBuilder("sends")
        .node(split, targets=[left, right])
        .node(left)
        .node(right)
        .chain(left, "end")
        .chain(right, "end")
        .node("end", type="exit", join="all")
        .build()
    )


# -- nothing is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graph", "task"), [(fan_out(), "4"), (fan_out(), "0"), (cycle(), "5"), (sends(), "a B c")])
def test_a_graph_that_keeps_the_rules_passes(graph: Graph, task: str) -> None:
    assert assert_resumable(graph, task).success


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(worlds(asking=False))
def test_any_graph_of_deterministic_nodes_passes(world: World) -> None:
    try:
        end = whole(world)
    except TooLong:
        end = None
    assume(end is not None and end.steps.total() < 30)
    assert_resumable(world.graph, TASK)


def test_the_survey_passes_with_its_worker_processes_and_with_a_stub_for_them(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("a.py", "b.py", "c.py"):
        (project / name).write_text("import os\n")
    variables = {"out": str(tmp_path / "report"), "batch_size": 1}
    survey = load_graph(SURVEY)
    assert_resumable(survey, str(project), variables=variables, backends=["asyncio"], durabilities=["async"])
    stubs = {"parse": survey.functions["parse"].call}
    assert_resumable(survey, str(project), variables=variables, stubs=stubs)


@LOOPS
def test_a_rev_is_an_interruption_and_admission_is_one(loop: str) -> None:
    calls: list[str] = []

    async def note(value: str) -> str:
        calls.append(value)
        return value + "!"

    async def end(value: str) -> str:
        calls.append(value)
        return value

    def runs(durability: Durability) -> list[str]:
        calls.clear()
        graph = GraphBuilder("g").chain(note, end).build()
        assert_resumable(graph, "a", backends=[loop], durabilities=[durability])
        return calls.copy()

    whole = ["a", "a!"]
    # After admission `note` is lost, and after the next rev `end`; each runs again. The end is no interruption.
    assert runs("sync") == [*whole, "a", *whole, *whole, "a!", *whole]
    assert runs("exit") == [*whole, *whole, *whole, *whole]


@LOOPS
def test_the_first_owner_counts_as_dead_and_its_mark_tells_what_was_lost(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    monkeypatch.setattr("tinyllm.testing.Executor", partial(Executor, on_event=events.append))
    assert_resumable(fan_out(), "3", backends=[loop], durabilities=["async"])
    resumed = [event for event in events if isinstance(event, TraceStarted) and event.resumed]
    assert [event.kept for event in resumed] == [0, 1, 2, 3, 4]
    lost = [event.lost for event in resumed]
    assert None not in lost
    assert any(lost)


def test_a_failure_is_an_end_like_others() -> None:
    async def refuse(value: int) -> int:
        raise ValueError("no squares today")

    response = assert_resumable(fan_out(square=refuse), "2")
    assert response.status == "failed"
    assert response.error is not None
    assert response.error.message == "no squares today"


def test_variables_and_deps_reach_the_nodes() -> None:
    async def both(task: str, context: NodeContext) -> list[Any]:
        return [task, context.variables["greeting"], context.deps]

    graph = GraphBuilder("g").node(both).build()
    response = assert_resumable(graph, "task", variables={"greeting": "hello"}, deps="client")
    assert response.value == ["task", "hello", "client"]


# -- something is ----------------------------------------------------------------------------------------------


def complaint(graph: Graph, task: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_resumable(graph, task, **options)
    return str(raised.value)


@LOOPS
def test_a_node_that_is_not_deterministic_is_named(loop: str) -> None:
    tickets = itertools.count()

    async def square(value: int) -> Result:
        return Result(value + next(tickets), set={"log": "squared"})

    told = complaint(fan_out(square=square), "3", backends=[loop])
    assert told.startswith(f"graph 'squares' does not always end the same: on {loop}, with durability 'async', inter")
    assert "interrupted after rev 0 (step 0) and resumed:\n" in told
    assert "value: expected '6, 3 lines', got '" in told
    assert "first in the result of node 'square': expected " in told
    assert "it ends differently without an interruption, too; usual causes: a node whose result depends on" in told


@LOOPS
@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
def test_a_value_that_was_changed_in_place_is_named(loop: str, durability: str) -> None:
    async def words(task: str) -> list[str]:
        return task.split()

    async def shout(values: Any) -> str:
        values[0] += "!"
        return str(values[0])

    async def count(values: Any) -> str:
        return " ".join(values)

    graph = (
        GraphBuilder("words")
        .chain(words, shout, "end")
        .chain(words, count, "end")
        .node("end", type="exit", join="all")
        .build()
    )
    if durability == "exit":  # nothing between the two nodes is ever stored: no interruption parts them
        assert_resumable(graph, "a b", backends=[loop], durabilities=["exit"])
        return
    told = complaint(graph, "a b", backends=[loop], durabilities=[durability])
    assert "interrupted after rev 2 (step 2, node 'shout') and resumed" in told
    assert "value[1]: expected 'a! b', got 'a b'" in told
    assert "first in the result of node 'count': expected 'a! b', got 'a b'" in told
    assert "cause: node shout: value[0] was changed in place; such a change is never recorded: copy the value" in told


def test_a_variable_is_named_and_so_is_what_happens_without_an_interruption() -> None:
    times = itertools.count()

    async def stamp(task: str) -> Result:
        return Result(task, set={"stamp": {"at": next(times), "by": "me"}})

    told = complaint(GraphBuilder("g").node(stamp).build(), "x")
    assert "variables['stamp']['at']: expected 0, got 2" in told
    assert "'by'" not in told


def test_what_only_an_interruption_brings_about_is_reported() -> None:
    lines: list[str] = []

    async def begin(task: str) -> str:
        lines.clear()
        return task

    async def write(line: str) -> str:
        lines.append(line)
        return line

    async def read(line: str) -> Result:
        return Result(len(lines), set={"once": True} if len(lines) == 1 else {})

    told = complaint(GraphBuilder("g").chain(begin, write, read).build(), "x")
    assert "interrupted after rev 1 (step 1, node 'begin') and resumed:" in told
    assert "value: expected 1, got 2" in told
    assert "variables['once']: expected True, got nothing" in told
    assert "without an interruption" not in told
    assert told.splitlines()[-1].startswith("  usual causes: ")


def test_another_failure_or_none_is_reported() -> None:
    calls = itertools.count()

    async def flaky(task: str) -> str:
        if next(calls):
            raise ValueError("not again " + "and " * 100 + "again")
        return task

    told = complaint(GraphBuilder("g").node(flaky).build(), "x")
    assert "status: expected completed, got failed (in node 'flaky', ValueError: not again and" in told
    assert max(map(len, told.splitlines())) < 400


def test_another_number_of_activations_is_reported() -> None:
    sizes = itertools.count(1)

    async def numbers(task: str) -> list[int]:
        return [0] * next(sizes)

    def total(values: list[int]) -> str:
        return "all"

    async def square(value: int) -> int:
        return value

    told = complaint(fan_out(numbers=numbers, square=square, total=total), "x", durabilities=["exit"])
    assert "finished activations of node 'square': expected 1, got 3" in told


def test_the_same_number_of_other_activations_is_reported() -> None:
    turns = itertools.count()

    def split(task: str) -> list[int]:
        return [0] if next(turns) % 2 else []

    async def left(value: Any) -> str:
        return "same"

    graph = (
        GraphBuilder("g")
        .edge(split, left, for_each=True, when="len(structured) == 1")
        .edge(split, left, when="len(structured) == 0")
        .edge(left, "end")
        .node("end", type="exit", join="all")
        .build()
    )
    told = complaint(graph, "x", durabilities=["sync"])
    assert "finished activations of node 'left': as many as expected, but with other ids" in told


# -- defects that nobody's node brings about -------------------------------------------------------------------


@LOOPS
def test_a_lost_result_is_reported(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = InMemoryCheckpointStorage.load

    async def forgetful(self: InMemoryCheckpointStorage, trace_id: str, rev: int | None = None) -> Snapshot:
        snapshot = await load(self, trace_id, rev)
        lost = next((row for row in snapshot.frontier if row.node == "square"), None)
        return attrs.evolve(snapshot, frontier=tuple(row for row in snapshot.frontier if row is not lost))

    monkeypatch.setattr(InMemoryCheckpointStorage, "load", forgetful)
    told = complaint(fan_out(), "3", backends=[loop])
    assert "interrupted after rev 1 (step 1, node 'numbers') and resumed:" in told
    assert "value: expected '5, 3 lines', got '5, 2 lines'" in told
    assert "finished activations of node 'square': expected 3, got 2" in told


@LOOPS
def test_a_durable_result_that_is_made_again_is_reported(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = InMemoryCheckpointStorage.load

    async def haunted(self: InMemoryCheckpointStorage, trace_id: str, rev: int | None = None) -> Snapshot:
        """What the frontier held one rev before is still in it."""
        snapshot = await load(self, trace_id, rev)
        if snapshot.status != "running" or snapshot.rev != 2:
            return snapshot
        before = await load(self, trace_id, 1)
        trace = self._traces[snapshot.record.trace]
        for row in before.frontier:
            if row.node == "square":
                trace.live.setdefault(row.seq, trace.activations[row.seq])
        messages = {**before.messages, **snapshot.messages}
        frontier = {row.seq: row for row in (*before.frontier, *snapshot.frontier)}
        return attrs.evolve(snapshot, frontier=tuple(frontier.values()), messages=messages)

    monkeypatch.setattr(InMemoryCheckpointStorage, "load", haunted)
    told = complaint(fan_out(), "3", backends=[loop])
    assert "interrupted after rev 2 (step 2, node 'square') and resumed:" in told
    assert "node 'square' ran again although its result was durable (activation " in told
    assert "cause: a defect of tinyllm, which no node can bring about; please report it" in told


def test_a_store_that_fails_of_itself_is_no_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: InMemoryCheckpointStorage, writes: Sequence[Write]) -> list[Outcome]:
        if any(isinstance(write, Append) for write in writes):
            raise StorageError("the store is broken")
        return await commit(self, writes)

    commit = InMemoryCheckpointStorage.commit
    monkeypatch.setattr(InMemoryCheckpointStorage, "commit", broken)
    with pytest.raises(StorageFailed, match="the store is broken"):
        assert_resumable(fan_out(), "2")


# -- how it is called ------------------------------------------------------------------------------------------


def test_a_loop_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllm.testing.find_spec", lambda name: None)
    loops: list[str] = []

    async def note(task: str) -> str:
        loops.append("trio" if trio.lowlevel.in_trio_task() else "asyncio")
        return task

    graph = GraphBuilder("g").node(note).build()
    assert_resumable(graph, "x")
    assert set(loops) == {"asyncio"}
    with pytest.raises(ConfigError, match="'backends' is \\['trio'\\]; it must be at least one event loop"):
        assert_resumable(graph, "x", backends=["trio"])


def test_a_durability_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="durability"):
        assert_resumable(fan_out(), "2", durabilities=["always"])  # type: ignore[list-item]


def test_a_graph_that_asks_is_resumed_with_the_answers_and_may_rest_without_them() -> None:
    async def start(task: str) -> list[str]:
        return ["a", "b"]

    async def ask(value: str, context: Any) -> str:
        first = await context.ask("first?", name="first")
        return f"{value}{first}{await context.ask('second?', name='second')}"

    async def end(parts: list[str]) -> str:
        return "".join(parts)

    graph = GraphBuilder("asks").edge(start, ask, for_each=True).edge(ask, end).node(end, join="all").build()
    assert assert_resumable(graph, "x", answers={"first": 1, "second": 2}).value == "a12b12"
    rests = assert_resumable(graph, "x", answers={"first": 1})
    assert (rests.status, [question.name for question in rests.questions]) == ("paused", ["second", "second"])


def test_a_node_that_forgets_what_it_was_told_is_found() -> None:
    told: list[Any] = []

    async def ask(value: str, context: Any) -> str:
        told.append(await context.ask("and?", name="a"))
        return f"{len(told)}"

    graph = GraphBuilder("asks").node(ask).build()
    with pytest.raises(AssertionError, match="does not always end the same"):
        assert_resumable(graph, "x", answers={"a": 1})
