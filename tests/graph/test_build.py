"""Building graphs in Python."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import tinyllm.core.graph
import tinyllm.core.message
from tinyllm.core.builder import load_graph
from tinyllm.errors import InvalidGraph
from tinyllm.graph.build import GraphBuilder
from tinyllm.graph.definition import Graph, Limits, Retry
from tinyllm.graph.node import lifespan, node


def list_files(task: str) -> list[str]:
    return [task]


def parse(path: str) -> str:
    return path


@node(version="2", effects=True)
def rank(found: list[str]) -> list[str]:
    return found


async def report(ranked: list[str]) -> str:
    return str(ranked)


def faults(builder: GraphBuilder) -> list[str]:
    with pytest.raises(InvalidGraph) as caught:
        builder.build()
    return [str(fault) for fault in caught.value.faults]


def test_functions_that_edges_name_are_nodes() -> None:
    graph = (
        GraphBuilder("survey", variables={"found": "append"})
        .edge(list_files, parse, for_each=True, when="len(content) > 0")
        .chain(parse, rank, report)
        .node(rank, join="all")
        .build()
    )
    assert list(graph.nodes) == ["list_files", "parse", "rank", "report"]
    assert (graph.entry_points, graph.exit_points) == (("list_files",), ("report",))
    assert graph.nodes["rank"].join == "all"
    assert graph.edges[0].condition == "len(content) > 0"
    assert graph.edges[0].for_each
    assert graph.variables == {"found": "append"}
    function = graph.function(graph.nodes["rank"])
    assert function is not None
    assert (function.call, function.version, function.effects) == (rank, "2", True)
    assert (graph.path, graph.version) == (None, "1.0.0")


def test_order_does_not_matter_and_building_twice_gives_the_same() -> None:
    first = GraphBuilder("g").node(rank, join="all").chain(parse, rank)
    second = GraphBuilder("g").chain(parse, rank).node(rank, join="all")
    assert first.build().fingerprint == second.build().fingerprint == second.build().fingerprint


def test_the_same_graph_as_a_file_has_the_same_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "nodes.py").write_text(
        "from tinyllm.graph.node import node\n"
        "@node\ndef parse(x): return x\n"
        "@node(version='2')\ndef rank(x): return x\n"
    )
    (tmp_path / "g.yaml").write_text(
        "id: g\nfunctions: [nodes.py]\nnodes:\n  - {id: start, type: entry}\n  - id: parse\n    targets: [rank]\n"
        "  - {id: best, join: all, config: {call: rank}}\n  - id: rank\n"
        "edges:\n  - {from_node: start, to_node: parse, for_each: true}\n  - {from_node: parse, to_node: best}\n"
        "variables: {found: append}\n"
    )
    built = (
        GraphBuilder("g", variables={"found": "append"})
        .node("start", type="entry")
        .node(parse, targets="rank")
        .node(rank, id="best", join="all")
        .node(rank)
        .edge("start", parse, for_each=True)
        .edge("parse", "best")
        .build()
    )
    assert built.topology() == load_graph(tmp_path / "g.yaml").topology()


def test_lambdas_and_entries_exits_and_targets() -> None:
    graph = (
        GraphBuilder("g", version="3", name="n", description="d", metadata={"a": [1]}, allow_cycles=True)
        .node(lambda value: value, id="first", name="First", description="the first", targets=[parse, "last"])
        .node(lambda value: value, id="last", max_concurrency=2, effects=False)
        .edge(parse, "first")
        .entry("first")
        .exit("last", parse)
        .build()
    )
    assert graph.nodes["first"].targets == ("parse", "last")
    assert (graph.entry_points, graph.exit_points) == (("first",), ("last", "parse"))
    assert graph.functions["first"].call is not graph.functions["last"].call
    assert (graph.version, graph.name, graph.description, graph.metadata) == ("3", "n", "d", {"a": [1]})
    assert graph.nodes["last"].effects is False


def test_bounds_are_those_of_a_file() -> None:
    retry = Retry(max_attempts=4, initial=0.1, max=7200, factor=1.5, jitter=0.0, on=("OSError", "httpx.HTTPError"))
    graph = (
        GraphBuilder("g", history="window(3)", limits=Limits(timeout=90.5, max_steps=7), protected=[rank, "parse"])
        .chain(list_files, parse, rank)
        .node(parse, retry=2, timeout="90s", on_error=report)
        .node(rank, retry=retry, timeout=0.25, on_error="report")
        .build()
    )
    assert (graph.history, graph.limits) == (3, Limits(timeout=90.5, max_steps=7))
    assert graph.protected == ("rank", "parse")
    assert [graph.nodes[node].retry for node in ("parse", "rank")] == [Retry(max_attempts=2), retry]
    assert [graph.nodes[node].timeout for node in ("parse", "rank")] == [90, 0.25]
    assert [graph.nodes[node].on_error for node in ("parse", "rank")] == ["report", "report"]
    assert graph.exit_points == ("rank", "report")
    plain = GraphBuilder("g", limits={"timeout": 5, "max_concurrency": 2}).node(parse).build()
    assert plain.limits == Limits(timeout=5, max_concurrency=2)
    assert (plain.history, plain.protected, plain.nodes["parse"].retry) == (None, (), None)


def test_a_lifespan_needs_no_decorator() -> None:
    async def clients() -> AsyncIterator[str]:
        yield "a client"

    async def entered(graph: Graph) -> Any:
        assert graph.lifespan is not None
        async with graph.lifespan() as deps:
            return deps

    for made in (clients, lifespan(clients), lambda: nullcontext("a client")):
        assert anyio.run(entered, GraphBuilder("g", lifespan=made).node(parse).build()) == "a client"
    assert GraphBuilder("g").node(parse).build().lifespan is None


def test_one_function_may_be_called_by_several_nodes() -> None:
    graph = GraphBuilder("g").node(parse, id="a").node(parse, id="b").chain("a", "b", rank).build()
    assert [graph.functions[name].call for name in ("a", "b")] == [parse, parse]
    both = GraphBuilder("g").node(parse, id="a").node(parse, id="b").chain(parse, rank)
    assert faults(both)[0] == "edges[0].from_node: several nodes call `parse`: `a`, `b`; give the id of one"


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (GraphBuilder("g"), "nodes: a graph needs at least one node"),
        (
            GraphBuilder("g").node("parse"),
            "nodes[0].id: there is no function `parse`; give the function itself to `node()`",
        ),
        (GraphBuilder("g").node(lambda x: x), "nodes[0].id: '<lambda>' cannot be a node's id"),
        (GraphBuilder("g").node(parse).node(parse), "nodes[1].id: nodes[0] has the id `parse` already"),
        (GraphBuilder("g").node(max), "nodes[0].id: function `max` cannot be a node: no signature found"),
        (
            GraphBuilder("g").node(lambda a, b: (a, b), id="f"),
            "nodes[0].id: function `f` cannot be a node: node function '<lambda>' must take one value",
        ),
        (
            GraphBuilder("g").edge(parse, rank, when="len("),
            "edges[0].condition: does not parse: '(' was never closed (at its",
        ),
        (GraphBuilder("g").node(report, process=True), "nodes[0].process: a worker process runs only a plain `def`"),
        (
            GraphBuilder("g").node(lambda x: x, id="f", process=True),
            "nodes[0].process: a worker process cannot load `<lambda>` from",
        ),
        (
            GraphBuilder("g").chain(parse, "rnk").node(rank, targets=()),
            "edges[0].to_node: no node has the id `rnk`; did you mean `rank`?",
        ),
        (GraphBuilder("a b").node(parse), "id: 'a b' cannot be a graph's id"),
        (GraphBuilder("g").node(parse, retry=Retry(max_attempts=0)), "nodes[0].retry.max_attempts: must be a whole"),
        (GraphBuilder("g").node(parse, timeout=-1), "nodes[0].timeout: must be a duration such as"),
        (GraphBuilder("g").node(parse, timeout=math.inf), "nodes[0].timeout: must be a duration such as"),
        (GraphBuilder("g").node(parse, on_error=parse), "nodes[0].on_error: `parse` cannot take over from itself"),
        (GraphBuilder("g").node(parse, on_error="x"), "nodes[0].on_error: no node has the id `x`"),
        (GraphBuilder("g", limits={"max_step": 1}).node(parse), "limits.max_step: unknown key; did you mean"),
        (GraphBuilder("g", limits=5).node(parse), "limits: the limits of a graph must be a mapping"),  # type: ignore[arg-type]
        (GraphBuilder("g", protected=["x"]).node(parse), "protected[0]: no node has the id `x`"),
    ],
)
def test_faults(builder: GraphBuilder, expected: str) -> None:
    assert faults(builder)[0].startswith(expected)


def test_every_fault_is_reported() -> None:
    options: dict[str, Any] = {"variables": {"a": "sum"}, "version": 1.0}
    assert [fault.split(":")[0] for fault in faults(GraphBuilder("g", **options).node(parse, join="every"))] == [  # type: ignore[arg-type]
        "version",
        "variables.a",
        "nodes[0].join",
    ]


def test_what_has_no_name_needs_an_id() -> None:
    class Parser:
        def __call__(self, value: str) -> str:
            return value

    assert faults(GraphBuilder("g").node(Parser()))[0].startswith("nodes[0].id: 'Parser' cannot be a node's id")
    assert faults(GraphBuilder("g").node(partial(parse, "x")))[0].startswith("nodes[0].id: ")


def test_a_built_graph_does_not_change() -> None:
    graph = GraphBuilder("g").chain(parse, rank).build()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        graph.id = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        graph.functions["x"] = graph.functions["parse"]  # type: ignore[index]


def test_the_promised_import_paths() -> None:
    assert tinyllm.core.graph.GraphBuilder is GraphBuilder
    assert {"Graph", "Node", "Edge", "GraphBuilder"} == set(tinyllm.core.graph.__all__)
    assert {"Message", "MessagePayload", "TaskPayload", "TaskResponse", "ErrorInfo"} == set(
        tinyllm.core.message.__all__
    )
