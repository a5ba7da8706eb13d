"""What follows from a graph's shape."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.graph.definition import Edge, Graph, Node
from tinyllm.graph.node import NodeFunction


def work(value: object) -> object:
    return value


def graph_of(count: int, steps: set[tuple[int, int]]) -> Graph:
    return Graph(
        id="g",
        nodes={f"n{i}": Node(id=f"n{i}") for i in range(count)},
        edges=tuple(Edge(from_node=f"n{a}", to_node=f"n{b}") for a, b in sorted(steps)),
        functions={f"n{i}": NodeFunction(name="work", call=work) for i in range(count)},
    )


graphs = st.integers(1, 7).flatmap(
    lambda count: st.builds(
        graph_of,
        st.just(count),
        st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=14),
    )
)


def paths_lead(graph: Graph, start: str, end: str) -> bool:
    """By brute force: some walk of at most as many steps as there are nodes."""
    here = {start}
    for _ in graph.nodes:
        here = {edge.to_node for edge in graph.edges if edge.from_node in here}
        if end in here:
            return True
    return False


@given(graphs)
def test_reach_is_what_paths_lead_to(graph: Graph) -> None:
    for start in graph.nodes:
        assert graph.reach[start] == {end for end in graph.nodes if paths_lead(graph, start, end)}


@given(graphs)
def test_rank_is_lower_before_higher_and_equal_within_a_cycle(graph: Graph) -> None:
    for start in graph.nodes:
        for end in graph.reach[start]:
            if start in graph.reach[end]:
                assert graph.rank[start] == graph.rank[end]
            else:
                assert graph.rank[start] < graph.rank[end]


@given(graphs)
def test_outgoing_edges_are_all_edges_in_their_order(graph: Graph) -> None:
    assert {edge for leaving in graph.outgoing.values() for edge in leaving} == set(graph.edges)
    for node, leaving in graph.outgoing.items():
        assert {edge.from_node for edge in leaving} <= {node}
        assert all(graph.edges.index(a) < graph.edges.index(b) for a, b in pairwise(leaving))


CHAIN = graph_of(3, {(0, 1), (1, 2)})


def with_node(**keys: Any) -> Graph:
    return attrs.evolve(CHAIN, nodes={**CHAIN.nodes, "n1": attrs.evolve(CHAIN.nodes["n1"], **keys)})


@pytest.mark.parametrize(
    "changed",
    [
        graph_of(4, {(0, 1), (1, 2)}),
        graph_of(3, {(0, 1), (0, 2)}),
        with_node(join="all"),
        with_node(targets=("n2",)),
        with_node(type="exit"),
        attrs.evolve(CHAIN, edges=(attrs.evolve(CHAIN.edges[0], for_each=True), CHAIN.edges[1])),
        attrs.evolve(CHAIN, entry_points=("n1",)),
        attrs.evolve(CHAIN, exit_points=("n1",)),
        attrs.evolve(CHAIN, variables={"found": "append"}),
        attrs.evolve(CHAIN, functions={**CHAIN.functions, "n1": NodeFunction(name="work", call=work, version="2")}),
    ],
)
def test_the_fingerprint_sees_what_a_resume_relies_on(changed: Graph) -> None:
    assert changed.fingerprint != CHAIN.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        attrs.evolve(CHAIN, edges=CHAIN.edges[::-1]),
        attrs.evolve(CHAIN, nodes=dict(reversed(list(CHAIN.nodes.items())))),
        attrs.evolve(CHAIN, version="2", name="x", description="x", metadata={"a": 1}, variables={"a": "last"}),
        attrs.evolve(CHAIN, edges=(attrs.evolve(CHAIN.edges[0], condition="step > 1"), CHAIN.edges[1])),
        with_node(name="x", description="x", process=True, max_concurrency=1, effects=True, config={"call": "n0"}),
    ],
)
def test_the_fingerprint_does_not_see_the_rest(changed: Graph) -> None:
    assert changed.fingerprint == CHAIN.fingerprint


@pytest.mark.parametrize("name", ["found", "été"])
def test_what_is_recorded_is_json_whatever_the_names(name: str) -> None:
    graph = attrs.evolve(CHAIN, variables={name: "append"})
    assert json.loads(graph.definition) == {"topology": graph.topology(), "details": graph.details()}
    assert graph.fingerprint != CHAIN.fingerprint


def test_details_tell_what_may_change() -> None:
    edges = (
        Edge(from_node="n0", to_node="n1", condition="step > 1"),
        Edge(from_node="n0", to_node="n1", condition="step > 2", for_each=True),
    )
    details = attrs.evolve(with_node(config={"call": "n0"}), edges=edges).details()
    assert details["edge n0 -> n1: condition"] == "step > 1"
    assert details["edge n0 -> n1 (for_each): condition"] == "step > 2"
    assert details["node n1: config"] == '{"call": "n0"}'
    assert len(details["node n1: code"]) == 16
    typed = NodeFunction(name="typed", call=eval("lambda x: x"))
    assert attrs.evolve(CHAIN, functions={**CHAIN.functions, "n0": typed}).details()["node n0: code"] == ""


def test_effects_are_those_of_the_node_or_else_of_its_function() -> None:
    acting = {**CHAIN.functions, "n1": NodeFunction(name="work", call=work, effects=True)}
    assert attrs.evolve(CHAIN, functions=acting).has_effects(CHAIN.nodes["n1"])
    assert not CHAIN.has_effects(CHAIN.nodes["n1"])
    assert CHAIN.has_effects(Node(id="n1", effects=True))
    assert not attrs.evolve(CHAIN, functions=acting).has_effects(Node(id="n1", effects=False))
    assert not CHAIN.has_effects(Node(id="start", type="entry"))


def test_a_graph_shows_itself_in_one_line() -> None:
    graph = attrs.evolve(CHAIN, entry_points=("n0",), exit_points=("n2",))
    assert repr(graph) == "<Graph g 1.0.0: 3 nodes, 2 edges, n0 -> n2>"
