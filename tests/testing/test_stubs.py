"""Stubs: what a node does is replaced, and nothing else about it."""

from __future__ import annotations

from typing import Any

import pytest

from tinyllm import Executor, Graph, GraphBuilder, InvalidGraph, NodeContext, Result, Send, node
from tinyllm.testing import assert_resumable, stubbed


def refuse(value: Any) -> Any:
    raise AssertionError("the real thing was called")


@node(version="2", effects=True)
def pay(amount: int) -> str:
    raise AssertionError("real money was paid")


def parse(task: str) -> int:
    return int(task)


def shop() -> Graph:
    return GraphBuilder("shop").chain(parse, pay).build()


def test_a_stub_is_called_instead_of_the_function() -> None:
    def stub(amount: int, context: NodeContext) -> Result:
        return Result(f"{context.node_id} {amount}", set={"paid": True})

    async def also(task: str) -> int:
        return 7

    assert Executor(stubbed(shop(), {"pay": stub})).run_sync("5").value == "pay 5"
    assert Executor(stubbed(shop(), {"pay": stub, "parse": also})).run_sync("5").value == "pay 7"
    assert_resumable(shop(), "5", stubs={"pay": stub})
    with pytest.raises(AssertionError, match="real money"):
        shop().functions["pay"].call(5)


def test_the_graph_that_was_given_stays_as_it_is() -> None:
    graph = shop()
    before = graph.definition
    stubbed(graph, {"pay": lambda amount: "paid"})
    assert graph.definition == before
    assert graph.functions["pay"].call is pay


def test_all_but_the_function_stays_so_that_a_trace_of_the_one_is_a_trace_of_the_other() -> None:
    graph = shop()
    other = stubbed(graph, {"pay": lambda amount: "paid", "parse": lambda task: 1})
    assert other.fingerprint == graph.fingerprint
    assert [other.has_effects(node) for node in other.nodes.values()] == [False, True]


def test_of_two_nodes_with_one_function_only_the_named_one_gets_the_stub() -> None:
    graph = GraphBuilder("g").node(refuse, id="one").node(refuse, id="two").chain("one", "two").build()
    alone = stubbed(graph, {"one": lambda value: value})
    assert alone.functions[alone.nodes["two"].call].call is refuse
    assert Executor(stubbed(alone, {"two": lambda value: value + "!"})).run_sync("x").value == "x!"


def test_a_stub_may_name_where_it_goes_and_runs_in_this_process() -> None:
    graph = GraphBuilder("g").node(refuse, id="start", process=True, targets=["end"]).node(refuse, id="end").build()
    said = []

    def end(value: int) -> str:
        said.append(value)
        return "end"

    stubs = {"start": lambda task: [Send("end", 1), Send("end", 2)], "end": end}
    assert Executor(stubbed(graph, stubs)).run_sync("x").value == ["end", "end"]
    assert sorted(said) == [1, 2]


def test_every_stub_that_cannot_be_one_is_named_with_what_was_meant() -> None:
    def two(value: int, other: int) -> int:
        return value

    graph = GraphBuilder("g").node("start", type="entry").chain("start", parse, pay).build()
    stubs = {"pya": refuse, "start": refuse, "parse": two, "pay": 5}
    with pytest.raises(InvalidGraph) as raised:
        stubbed(graph, stubs)  # type: ignore[arg-type]
    told = str(raised.value).splitlines()
    assert told == [
        "4 faults in the graph:",
        "  stubs['pya']: no node has the id `pya`; did you mean `pay`?",
        "  stubs['start']: an entry node calls nothing that could be replaced; stub a node beside it",
        "  stubs['parse']: the stub cannot be a node: node function 'two' must take one value and optionally "
        "`context`, not (value, other)",
        "  stubs['pay']: the stub cannot be a node: 5 is not a callable object",
    ]
    with pytest.raises(InvalidGraph, match="no node has the id `pya`"):
        assert_resumable(graph, "5", stubs={"pya": refuse})
