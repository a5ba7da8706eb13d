"""Graphs as pictures."""

from __future__ import annotations

import re
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.graph.build import GraphBuilder
from tinyllm.graph.definition import Edge, Graph, Node
from tinyllm.graph.drawing import flowchart


def work(value: Any) -> Any:
    return value


def test_a_notebook_shows_a_heading_and_a_flowchart() -> None:
    graph = (
        GraphBuilder("survey", version="2.0")
        .node(work, id="plan", targets="end")
        .node(work, id="parse", on_error="mend")
        .node(work, id="rank", join="all")
        .node(work, id="end")
        .node(work, id="mend")
        .edge("plan", "parse", for_each=True, when='route == "deep"')
        .chain("parse", "rank", "end")
        .edge("mend", "rank", when="step < 9")
        .build()
    )
    assert (
        graph._repr_markdown_()
        == r"""### survey 2\.0

```mermaid
flowchart TD
    n0(["plan"])
    n1["parse"]
    n2{{"rank (join all)"}}
    n3(["end"])
    n4["mend"]
    n0 ==>|"for each if route == #34;deep#34;"| n1
    n1 --> n2
    n2 --> n3
    n4 -->|"if step #60; 9"| n2
    n0 -.->|"target"| n3
    n1 -.->|"on error"| n4
```
"""
    )


def test_the_heading_is_the_name_where_there_is_one() -> None:
    graph = Graph(id="g", nodes={"a": Node(id="a")}, name="a *nice*\n<graph>")
    assert graph._repr_markdown_().splitlines()[0] == r"### a \*nice\* \<graph\> 1\.0\.0"


@given(st.text(), st.text())
def test_no_text_gets_out_of_its_place(name: str, condition: str) -> None:
    nodes = {"a": Node(id="a"), "b": Node(id="b", join="all")}
    edges = (Edge(from_node="a", to_node="b", condition=condition),)
    graph = Graph(id="g", nodes=nodes, edges=edges, name=name, version=name)
    heading, empty, fence, *chart, end, last = graph._repr_markdown_().split("\n")
    assert (empty, fence, end, last) == ("", "```mermaid", "```", "")
    assert heading.startswith("### ")
    assert "\n".join(chart) == flowchart(graph)
    assert [line.split('"')[0] for line in chart] == [
        "flowchart TD",
        "    n0[",
        "    n1{{",
        "    n0 -->|" if condition else "    n0 --> n1",
    ]
    if condition:
        assert re.fullmatch(r'    n0 -->\|"([\w .,()=]|#[0-9]+;)*"\| n1', chart[-1])
    plain = flowchart(attrs.evolve(graph, edges=(attrs.evolve(edges[0], condition=None),)))
    assert plain.endswith("n0 --> n1")
