"""Which nodes may set the same variable at the same time: seen in their source."""

from __future__ import annotations

from typing import Any

import pytest

import tinyllm
from tinyllm.graph.build import GraphBuilder
from tinyllm.graph.definition import Graph
from tinyllm.graph.node import NodeContext, Result, Send
from tinyllm.graph.writers import concurrent_writers

NAME = "best"


def start(value: Any) -> Any:
    return value


def by_result(value: Any) -> Result:
    return Result(value, set={"best": value, "other": 1})


async def by_context(value: Any, context: NodeContext) -> None:
    if value:
        context.set_variable("best", value)


def by_module(value: Any) -> tinyllm.Result:
    return tinyllm.Result(value, set={"best": value})


def unseen(value: Any, context: NodeContext, store: Any = None) -> Result:
    """Nothing here is a literal key that this node sets."""
    context.set_variable(NAME, value)
    store.set_variable("best", value)
    store(set={"best": value})
    return Result(value, set={NAME: value, **value})


def end(values: list[Any]) -> list[Any]:
    return values


def send(value: Any) -> list[Send]:
    return [Send("by_result", 1), Send("by_result", 2)]


def choose(value: Any) -> Result:
    return Result(value, goto="by_result")


def builder(**keys: Any) -> GraphBuilder:
    return GraphBuilder("g", **keys)


def warned(graph: Graph | GraphBuilder) -> list[str]:
    built = graph if isinstance(graph, Graph) else graph.build()
    return [str(finding.fault()).partition(" may set it")[0] for finding in concurrent_writers(built)]


def test_branches_that_set_the_same_variable() -> None:
    split = builder().edge(start, by_result).edge(start, by_context).chain(by_result, end).chain(by_context, end)
    assert warned(split) == ["variables.best: `by_result`, `by_context`"]
    assert [str(finding.fault()) for finding in concurrent_writers(split.build())] == [
        "variables.best: `by_result`, `by_context` may set it at the same time, and the last to finish wins; "
        "give it the reducer `append`, `add` or `merge`, or set it behind a join"
    ]
    assert warned(split.edge(start, by_module)) == ["variables.best: `by_result`, `by_context`, `by_module`"]


def test_nodes_that_follow_one_another_do_not_compete() -> None:
    assert not warned(builder().chain(start, by_result, by_context, by_module))
    line = builder().edge(start, by_result).edge(start, end).node(by_result, on_error=by_context).edge(by_result, end)
    assert not warned(line)


@pytest.mark.parametrize("reducer", ["append", "add", "merge"])
def test_other_reducers_take_all_that_is_written(reducer: Any) -> None:
    split = builder(variables={"best": reducer}).edge(start, by_result).edge(start, by_context)
    assert not warned(split)
    assert warned(builder(variables={"best": "last"}).edge(start, by_result).edge(start, by_context))


def test_a_fan_out_competes_with_itself_until_a_join_closes_it() -> None:
    open_ = builder().edge(start, by_result, for_each=True).edge(by_result, by_context).edge(by_context, end)
    both = ["variables.best: `by_result`, `by_context`", "variables.other: several activations of `by_result`"]
    assert warned(open_) == both
    assert warned(open_.node(end, join="all").edge(end, by_module)) == both
    closed = builder().edge(start, end, for_each=True).edge(end, by_context).edge(by_context, by_module)
    assert warned(closed) == ["variables.best: `by_context`, `by_module`"]
    assert not warned(closed.node(by_context, join="all"))


def test_sends_fan_out_and_a_goto_does_not() -> None:
    assert warned(builder().node(send, targets=by_result)) == [
        "variables.best: several activations of `by_result`",
        "variables.other: several activations of `by_result`",
    ]
    assert not warned(builder().node(choose, targets=by_result))


def test_where_nothing_can_be_read_nothing_is_said() -> None:
    assert not warned(builder().edge(start, unseen, for_each=True))
    typed: dict[str, Any] = {}
    exec("def typed(value, context): context.set_variable('best', value)", typed)
    assert not warned(builder().edge(start, typed["typed"], for_each=True))
    inline = builder().node(lambda x: Result(x, set={"best": x}), id="inline").edge(start, "inline", for_each=True)
    assert not warned(inline)


def test_methods_are_read_as_well() -> None:
    class Scorer:
        def score(self, value: Any) -> Result:
            return Result(value, set={"best": value})

    assert warned(builder().edge(start, Scorer().score, for_each=True))


def test_entries_and_exits_set_nothing() -> None:
    assert not warned(builder().node("in", type="entry").edge("in", by_result).edge(by_result, end))
