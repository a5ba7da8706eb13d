"""What a graph definition must keep beyond its shape. The same for graph files and for `GraphBuilder`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tinyllm.errors import ConditionError, GraphError
from tinyllm.graph import schema
from tinyllm.graph.conditions import compile_condition
from tinyllm.graph.definition import Graph, Node
from tinyllm.graph.findings import Finding, Path, did_you_mean, listed, near
from tinyllm.graph.flow import Flow
from tinyllm.graph.functions import Library, locate
from tinyllm.graph.schema import UNKNOWN, Shape
from tinyllm.graph.structure import structurer

Load = Callable[[Sequence[str]], tuple[Library, list[Finding]]]


def check(definition: Any, load: Load, path: str | None = None) -> tuple[Graph | None, list[Finding]]:
    """Turn a definition into a graph, or into everything that is wrong with it. Never raises for a definition.

    `load` gives the library for the definition's `functions`; `path` is the file that the definition came from.
    """
    shape = schema.read(definition)
    findings = list(shape.findings)
    if "functions" in shape.malformed:
        library = Library(complete=False)
    else:
        library, wrong = load(shape.keys.get("functions", ()))
        findings += wrong
    ids = _ids(shape)
    flow = Flow(shape, ids)
    findings += _check_nodes(shape, ids)
    findings += _check_edges(shape)
    findings += _check_ids(shape, flow)
    findings += _check_functions(shape, library)
    findings += flow.check_cycles()
    findings += flow.check_entries()
    findings += flow.check_exits(lambda node: _may_act(node, library))
    if findings:
        return None, findings
    nodes = [node for _, node in shape.nodes]
    keys = {key: copy.deepcopy(value) for key, value in shape.keys.items() if key != "functions"}
    keys |= {
        "nodes": MappingProxyType({node.id: node for node in nodes}),
        "edges": tuple(edge for _, edge in shape.edges),
        "entry_points": flow.entries,
        "exit_points": flow.exits,
        "variables": MappingProxyType(keys.get("variables", {})),
        "functions": MappingProxyType({n.call: library.functions[n.call] for n in nodes if n.type == "function"}),
        "lifespan": library.lifespan,
        "path": path,
    }
    return Graph(**keys), []


def _ids(shape: Shape) -> Mapping[str, Path]:
    """Where each node id is first used."""
    ids: dict[str, Path] = {}
    for path, node in shape.nodes:
        ids.setdefault(node.id, path)
    return ids


def _check_nodes(shape: Shape, ids: Mapping[str, Path]) -> Iterator[Finding]:
    for path, node in shape.nodes:
        if ids[node.id] != path:
            yield Finding((*path, "id"), f"nodes[{ids[node.id][1]}] has the id `{node.id}` already")
        if node.type in ("entry", "exit"):
            calls = {
                "process": node.process,
                "max_concurrency": node.max_concurrency,
                "effects": node.effects,
                "targets": node.targets,
                "retry": node.retry,
                "timeout": node.timeout,
                "on_error": node.on_error,
            }
            for key, value in calls.items():
                if value:
                    yield Finding((*path, key), f"an {node.type} node calls no function; remove `{key}`")
        elif node.on_error == node.id:
            remedy = "name another one, or let this one `retry`"
            yield Finding((*path, "on_error"), f"`{node.id}` cannot take over from itself; {remedy}")


def _check_edges(shape: Shape) -> Iterator[Finding]:
    types = {node.id: node.type for _, node in shape.nodes}
    joins = {node.id for _, node in shape.nodes if node.join == "all"}
    seen: dict[tuple[str, str, bool], Path] = {}
    for path, edge in shape.edges:
        if edge.for_each and edge.to_node in joins:
            yield Finding((*path, "for_each"), f"`{edge.to_node}` joins all and would get the list back; remove it")
        if types.get(edge.from_node) == "exit":
            yield Finding((*path, "from_node"), f"nothing follows an exit node, and `{edge.from_node}` is one")
        first = seen.setdefault((edge.from_node, edge.to_node, edge.for_each), path)
        if first != path and UNKNOWN not in (edge.from_node, edge.to_node):
            same = f"edges[{first[1]}] leads from `{edge.from_node}` to `{edge.to_node}` already"
            yield Finding(path, f"{same}; write one edge, its conditions joined by `or`")
        if edge.condition is not None:
            try:
                compile_condition(edge.condition)
            except ConditionError as error:
                offset = None if error.column is None else error.column - 1
                yield Finding((*path, "condition"), error.reason, offset=offset)


def _check_ids(shape: Shape, flow: Flow) -> Iterator[Finding]:
    """Every id that something names is that of a node."""
    named = [((*path, "from_node"), edge.from_node) for path, edge in shape.edges]
    named += [((*path, "to_node"), edge.to_node) for path, edge in shape.edges]
    named += [((*path, "targets", index), node) for path, n in shape.nodes for index, node in enumerate(n.targets)]
    named += [((*path, "on_error"), node.on_error) for path, node in shape.nodes if node.on_error]
    for key in ("entry_points", "exit_points", "protected"):
        named += [((key, index), node) for index, node in enumerate(shape.keys.get(key, ()))]
    for path, node in named:
        if node != UNKNOWN and not flow.has(node):
            yield Finding(path, f"no node has the id `{node}`{did_you_mean(flow.guess(node))}")


def _may_act(node: Node, library: Library) -> bool:
    if node.effects is None and node.type == "function":
        function = library.functions.get(node.call)
        return function is None or function.effects
    return bool(node.effects) or node.type == UNKNOWN


def _check_functions(shape: Shape, library: Library) -> Iterator[Finding]:
    for path, node in shape.nodes:
        if node.type != "function":
            continue
        at = (*path, "config", "call") if "call" in node.config else (*path, "id")
        function = library.functions.get(node.call)
        if function is None:
            if node.call in library.refused:
                yield Finding(at, f"function `{node.call}` {library.refused[node.call]}")
            elif library.complete:
                guess = did_you_mean(near(node.call, library.functions))
                have = f" (there are {listed(library.functions)})" if library.functions and not guess else ""
                yield Finding(at, f"there is no function `{node.call}`{guess or f'{have}; {library.remedy}'}")
            continue
        if inspect.isgeneratorfunction(function.call) or inspect.isasyncgenfunction(function.call):
            yield Finding(at, f"function `{function.name}` yields; a node returns one value: make it return a list")
        try:
            structurer(function.annotation)
        except TypeError as error:
            yield Finding(at, f"function `{function.name}` takes a value that nothing can become: {error}")
        if node.process and function.is_async:
            only = "a worker process runs only a plain `def`"
            yield Finding((*path, "process"), f"{only}, and `{function.name}` is `async def`")
        elif node.process:
            try:
                locate(function)
            except GraphError as error:
                yield Finding((*path, "process"), str(error))
