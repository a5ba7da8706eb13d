"""Which variables several activations may set at the same time, where the last one to finish wins.

What a node sets is read from the source of its function, and only where it is written out: `Result(set={"key": ...})`,
`context.set_variable("key", ...)`. Conditions are not weighed: nodes that exclude each other are named as well.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from tinyllm.graph.definition import Graph, Node
from tinyllm.graph.findings import Finding, listed


def concurrent_writers(graph: Graph) -> list[Finding]:
    """A warning for each variable with the reducer `last` that nodes set which may run at the same time."""
    calls = {node.id: _calls(graph, node) for node in graph.nodes.values()}
    several = _may_run_several_times(graph, {node for node, made in calls.items() if any(map(_is_send, made))})
    writers: dict[str, list[str]] = {}
    for node, made in calls.items():
        for key in dict.fromkeys(key for call in made for key in _keys_set(call)):
            if graph.variables.get(key, "last") == "last":
                writers.setdefault(key, []).append(node)

    def compete(one: str, other: str) -> bool:
        return one in several if one == other else other not in graph.reach[one] and one not in graph.reach[other]

    warnings = []
    for key, nodes in writers.items():
        if rivals := [node for node in nodes if any(compete(node, other) for other in nodes)]:
            who = listed(rivals) if len(rivals) > 1 else f"several activations of {listed(rivals)}"
            remedy = "give it the reducer `append`, `add` or `merge`, or set it behind a join"
            message = f"{who} may set it at the same time, and the last to finish wins; {remedy}"
            warnings.append(Finding(("variables", key), message, on_key=True))
    return warnings


def _may_run_several_times(graph: Graph, senders: set[str]) -> set[str]:
    """Nodes inside of a fan-out that no join has closed."""
    todo = [edge.to_node for edge in graph.edges if edge.for_each]
    todo += [target for node in senders for target in graph.nodes[node].targets]
    inside: set[str] = set()
    while todo:
        node = todo.pop()
        if node not in inside and graph.nodes[node].join == "any":
            inside.add(node)
            todo += graph.successors[node]
    return inside


def _calls(graph: Graph, node: Node) -> list[ast.Call]:
    """The calls in the source of the node's function; none where Python has no source of it, or a lambda's."""
    if (function := graph.function(node)) is None:
        return []
    try:
        (source,) = ast.parse(textwrap.dedent(inspect.getsource(function.call))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return []
    if not isinstance(source, ast.FunctionDef | ast.AsyncFunctionDef):  # the statement that a lambda stands in
        return []
    return [part for part in ast.walk(source) if isinstance(part, ast.Call)]


def _is_send(call: ast.Call) -> bool:
    return _name(call.func) == "Send"


def _keys_set(call: ast.Call) -> Iterator[str]:
    match call:
        case ast.Call(ast.Attribute(ast.Name("context"), "set_variable"), [ast.Constant(str(key)), *_]):
            yield key
        case ast.Call(function, keywords=keywords) if _name(function) == "Result":
            for keyword in keywords:
                match keyword:
                    case ast.keyword("set", ast.Dict(keys)):
                        yield from (
                            key.value for key in keys if isinstance(key, ast.Constant) and type(key.value) is str
                        )


def _name(function: ast.expr) -> str:
    """What is called, without the module it is looked up in."""
    match function:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
