"""The hand-over rule: what crossed from one actor to another can no longer change.

Each of these fails if a result is handed on as the object that the node still holds.
"""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import pytest

from tinyllm import (
    ExecutionError,
    Executor,
    ExecutorConfig,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Result,
    ValueMutated,
)
from tinyllm.graph.values import restore

pytestmark = pytest.mark.anyio

kept: list[Any] = []
"""What a node goes on holding, and changes, after it has returned."""


async def spoil() -> None:
    for value in kept:
        value["n"] = "spoilt"
        value["items"].append("spoilt")
    kept.clear()


async def make(value: Any) -> Any:
    made = {"n": 1, "items": [1, 2]}
    kept.append(made)
    return made


async def make_all(value: Any) -> Any:
    made = [{"n": n, "items": [1, 2]} for n in range(3)]
    kept.extend(made)
    return made


async def set_it(value: Any) -> Any:
    made = {"n": 1, "items": [1, 2]}
    kept.append(made)
    return Result(None, set={"x": made})


async def read(value: Any, context: Any) -> Any:
    await spoil()  # by now the first node has returned
    return {"read": context.variables.get("x", value)}


async def read_value(value: Any) -> Any:
    await spoil()
    return value


async def mutate(value: Any) -> Any:
    """Changes, in place, what it was lent."""
    for item in value if isinstance(value, list) else [value]:
        item["n"] = "mutated"
        item["items"].append("mutated")
    return "done"


async def keep(value: Any) -> Any:
    """Keeps what it was lent, to change it later."""
    kept.extend(value if isinstance(value, list) else [value])
    return "done"


async def wait(value: Any) -> Any:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    await spoil()
    return "waited"


TRUTH = {"n": 1, "items": [1, 2]}


async def bodies(store: InMemoryCheckpointStorage) -> list[Any]:
    return [restore(row.body) for row in await store.messages("t")]


@pytest.mark.parametrize("debug", [True, False])
async def test_a_node_that_changes_what_it_returned_changes_nothing(debug: bool) -> None:
    store = InMemoryCheckpointStorage()
    graph = GraphBuilder("g").chain(make, read_value).build()
    async with Executor(graph, ExecutorConfig(debug_mutation=debug), store) as executor:
        response = await executor.execute("task", trace_id="t")
        assert response.value == TRUTH
        assert await bodies(store) == ["task", TRUTH, TRUTH]


@pytest.mark.parametrize("debug", [True, False])
async def test_a_node_that_changes_what_it_set_changes_nothing(debug: bool) -> None:
    store = InMemoryCheckpointStorage()
    graph = GraphBuilder("g").chain(set_it, read).build()
    async with Executor(graph, ExecutorConfig(debug_mutation=debug), store) as executor:
        response = await executor.execute("task", trace_id="t")
        assert response.value == {"read": TRUTH}
        (row,) = (await store.load("t")).variables["x"]
        assert restore(row.body) == TRUTH


@pytest.mark.parametrize("debug", [True, False])
async def test_a_node_that_changes_what_it_fanned_out_changes_nothing(debug: bool) -> None:
    store = InMemoryCheckpointStorage()
    graph = (
        GraphBuilder("g").edge(make_all, read_value, for_each=True).node("all", type="exit", join="all")
        .edge(read_value, "all").build()
    )  # fmt: skip
    async with Executor(graph, ExecutorConfig(debug_mutation=debug), store) as executor:
        response = await executor.execute("task", trace_id="t")
        assert response.value == [{"n": n, "items": [1, 2]} for n in range(3)]


@pytest.mark.parametrize("join", ["all", "any"])
@pytest.mark.parametrize("for_each", [True, False])
async def test_a_change_to_what_was_lent_is_never_recorded(join: Any, for_each: bool) -> None:
    """An exit passes on what it gets: the captured bytes, and not an object that its sibling has changed meanwhile."""
    builder = GraphBuilder("g").edge(make_all, mutate).edge(mutate, "end").node("end", type="exit", join=join)
    if for_each:
        builder.node("each", type="exit").edge(make_all, "each", for_each=True)
    else:
        builder.node("each", type="exit").edge(make_all, "each").node(wait).edge(make_all, wait).edge(wait, "end")
    store = InMemoryCheckpointStorage()
    async with Executor(builder.build(), ExecutorConfig(), store) as executor:
        await executor.execute("task", trace_id="t")
    assert not [body for body in await bodies(store) if "mutated" in str(body)]


async def test_a_value_kept_and_changed_later_does_not_change_what_is_recorded() -> None:
    builder = GraphBuilder("g").edge(make_all, keep).edge(make_all, wait)
    builder.node("end", type="exit", join="all").edge(keep, "end").edge(wait, "end").edge(make_all, "end")
    store = InMemoryCheckpointStorage()
    async with Executor(builder.build(), ExecutorConfig(), store) as executor:
        await executor.execute("task", trace_id="t")
    truth = [{"n": n, "items": [1, 2]} for n in range(3)]
    ends = (await bodies(store))[-1]
    assert sorted(map(str, ends)) == sorted(map(str, ["done", "waited", truth]))


# -- found out -------------------------------------------------------------------------------------------------

DEBUG = ExecutorConfig(debug_mutation=True)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda v: v["items"].append(3), "value['items']"),
        (lambda v: v["deep"]["list"][1].update(x=2), "value['deep']['list'][1]['x']"),
        (lambda v: v.update(new=1), "value"),
        (lambda v: v["deep"].clear(), "value['deep']"),
        (lambda v: v.update(n=object()), "value['n']"),
    ],
)
@pytest.mark.parametrize("threaded", [True, False])
async def test_in_debug_mode_changing_what_was_lent_fails_the_node_naming_the_path(
    change: Any, path: str, threaded: bool
) -> None:
    async def changing(value: Any) -> Any:
        change(value)

    def changing_in_a_thread(value: Any) -> Any:
        change(value)

    graph = GraphBuilder("g").node(changing_in_a_thread if threaded else changing, id="changing").build()
    async with Executor(graph, DEBUG) as executor:
        with pytest.raises(ExecutionError) as caught:
            await executor.execute({"n": 1, "items": [1], "deep": {"list": [0, {"x": 1}]}})
    cause = caught.value.__cause__
    assert isinstance(cause, ValueMutated)
    assert (cause.node_id, cause.path) == ("changing", path)
    assert f"changing: {path} was changed in place" in str(caught.value)


async def test_in_debug_mode_changing_a_variable_fails_the_node_naming_the_path() -> None:
    async def changing(context: Any) -> Any:
        context.variables["settings"]["depth"] = 3

    graph = GraphBuilder("g").node(changing).build()
    async with Executor(graph, DEBUG) as executor:
        with pytest.raises(ExecutionError, match=r"variables\['settings'\]\['depth'\] was changed"):
            await executor.execute("task", variables={"settings": {"depth": 1}, "other": [1]})


async def test_in_debug_mode_the_siblings_of_a_node_that_changes_its_value_see_the_truth() -> None:
    seen: list[Any] = []

    async def changing(value: Any) -> Any:
        value["n"] = 2

    async def looking(value: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        seen.append(value)

    builder = GraphBuilder("g").chain(make, changing).chain(make, looking)
    async with Executor(builder.build(), DEBUG) as executor:
        with pytest.raises(ExecutionError):
            await executor.execute("task")
    assert seen in ([], [TRUTH])
    kept.clear()
