"""A graph as a picture: a Mermaid flowchart, which notebooks and many viewers of Markdown draw."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyllm.graph.definition import Edge, Graph, Node


def markdown(graph: Graph) -> str:
    """A heading, and the flowchart under it."""
    title = " ".join(f"{graph.name or graph.id} {graph.version}".split())
    heading = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", title)
    return f"### {heading}\n\n```mermaid\n{flowchart(graph)}\n```\n"


def flowchart(graph: Graph) -> str:
    """In Mermaid's language. Entries and exits are round, joins hexagons; what a node names itself, or what its failure
    leads to, is dotted."""
    return "\n".join(["flowchart TD", *(f"    {line}" for line in _lines(graph))])


def _lines(graph: Graph) -> Iterator[str]:
    alias = {node: f"n{at}" for node, at in graph.place.items()}  # ids may be words of Mermaid: `end`
    for node in graph.nodes.values():
        left, right = _shape(graph, node)
        label = f"{node.id} (join all)" if node.join == "all" else node.id
        yield f'{alias[node.id]}{left}"{_escaped(label)}"{right}'
    for edge in graph.edges:
        arrow = "==>" if edge.for_each else "-->"
        yield f"{alias[edge.from_node]} {arrow}{_label(edge)} {alias[edge.to_node]}"
    for node in graph.nodes.values():
        for target in node.targets:
            yield f'{alias[node.id]} -.->|"target"| {alias[target]}'
        if node.on_error:
            yield f'{alias[node.id]} -.->|"on error"| {alias[node.on_error]}'


def _shape(graph: Graph, node: Node) -> tuple[str, str]:
    if node.join == "all":
        return "{{", "}}"
    if node.id in (*graph.entry_points, *graph.exit_points):
        return "([", "])"
    return "[", "]"


def _label(edge: Edge) -> str:
    words = ["for each"] * edge.for_each + ([f"if {edge.condition}"] if edge.condition else [])
    return f'|"{_escaped(" ".join(words))}"|' if words else ""


def _escaped(text: str) -> str:
    """For Mermaid, in quotes: what could end these, or the block, or be HTML or Markdown, is written as its number."""
    return "".join(c if c.isalnum() or c in " _.,()=" else f"#{ord(c)};" for c in " ".join(text.split()))
