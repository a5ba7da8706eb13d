"""Building a graph in Python."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Literal, Self

import attrs

from tinyllm.errors import InvalidGraph
from tinyllm.graph.definition import Graph, Lifespan, Limits, Reducer, Retry
from tinyllm.graph.durations import duration_text
from tinyllm.graph.findings import Finding, Path, listed
from tinyllm.graph.functions import Library
from tinyllm.graph.node import MARK, NodeFunction
from tinyllm.graph.validate import check

NodeRef = str | Callable[..., Any]
"""A node: its id, or the function that it calls."""


@attrs.define
class _Node:
    """A node as far as it was told; one that only an edge has named so far has no keys but its id."""

    function: Callable[..., Any] | None
    keys: dict[str, Any]
    declared: bool


class GraphBuilder:
    """Collects nodes and edges; `build()` checks them as a graph file is checked, and returns the graph.

    ::

        graph = (
            GraphBuilder("survey")
            .edge(list_files, parse, for_each=True)
            .chain(parse, rank, report)
            .node(rank, join="all")
            .build()
        )

    A function that an edge names is a node: its id is the function's name, and `node()` says more about it, before or
    after. Functions need no `@node` here.
    """

    def __init__(
        self,
        id: str,
        *,
        version: str = "1.0.0",
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        variables: Mapping[str, Reducer] | None = None,
        history: str | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        protected: Sequence[NodeRef] = (),
        allow_cycles: bool = False,
        lifespan: Lifespan | Callable[[], AsyncIterator[Any]] | None = None,
    ) -> None:
        """The keys of a graph file, and `lifespan`: a function that makes `context.deps`; it needs no `@lifespan` here.

        `history` is `all`, `none` or `window(20)`; a `timeout` in `limits` is a text such as `5m`, or seconds.
        """
        self._keys = _given(
            id=id,
            version=version,
            name=name,
            description=description,
            metadata=None if metadata is None else dict(metadata),
            variables=None if variables is None else dict(variables),
            history=history,
            limits=_limits(limits),
            allow_cycles=allow_cycles,
        )
        self._lifespan: Any = asynccontextmanager(lifespan) if inspect.isasyncgenfunction(lifespan) else lifespan
        self._nodes: list[_Node] = []
        self._edges: list[tuple[NodeRef, NodeRef, dict[str, Any]]] = []
        self._named: dict[str, list[NodeRef]] = {"entry_points": [], "exit_points": [], "protected": list(protected)}

    def node(
        self,
        node: NodeRef,
        *,
        id: str | None = None,
        type: Literal["function", "entry", "exit"] = "function",
        name: str | None = None,
        description: str | None = None,
        join: Literal["any", "all"] = "any",
        process: bool = False,
        max_concurrency: int | None = None,
        effects: bool | None = None,
        targets: NodeRef | Sequence[NodeRef] = (),
        retry: int | Retry | None = None,
        timeout: str | float | None = None,
        on_error: NodeRef | None = None,
    ) -> Self:
        """Add a node that calls the function `node`, or say more of one that an edge has named.

        `id` is the function's name unless given. An entry or exit calls nothing: `node("start", type="entry")`.
        `retry` is a number of attempts, or says more; `timeout` is that of each, a text such as `30s`, or seconds.
        """
        keys = _given(
            id=id or _name(node),
            type=type,
            name=name,
            description=description,
            join=join,
            process=process,
            max_concurrency=max_concurrency,
            effects=effects,
            retry=_retry(retry),
            timeout=_duration(timeout),
            on_error=on_error,
        )
        if on_error is not None:
            self._mention([on_error])
        if goes := [targets] if isinstance(targets, str) or callable(targets) else list(targets):
            self._mention(goes)
            keys["targets"] = goes
        function = None if isinstance(node, str) else node
        for known in self._nodes:
            if function is not None and known.function is function and not known.declared:
                known.keys, known.declared = keys, True
                return self
        self._nodes.append(_Node(function, keys, declared=True))
        return self

    def edge(self, from_node: NodeRef, to_node: NodeRef, *, when: str | None = None, for_each: bool = False) -> Self:
        """Lead from one node to another, if the condition `when` holds; `for_each`, once for every item of a list."""
        self._mention([from_node, to_node])
        self._edges.append((from_node, to_node, _given(condition=when, for_each=for_each)))
        return self

    def chain(self, *nodes: NodeRef) -> Self:
        """Lead from each node to the next."""
        self._mention(nodes)
        for from_node, to_node in pairwise(nodes):
            self.edge(from_node, to_node)
        return self

    def entry(self, *nodes: NodeRef) -> Self:
        """Say which nodes get the task; needed only if more than one has nothing before it, or none has."""
        self._mention(nodes)
        self._named["entry_points"] += nodes
        return self

    def exit(self, *nodes: NodeRef) -> Self:
        """Say which nodes give the outcome; needed only if it is not all of those that have nothing after them."""
        self._mention(nodes)
        self._named["exit_points"] += nodes
        return self

    def build(self) -> Graph:
        """The graph, which no longer changes.

        :raises InvalidGraph: with every fault found.
        """
        wrong: list[Finding] = []

        def resolve(refs: Iterable[NodeRef], path: Path) -> list[str]:
            return [self._resolve(ref, (*path, index), wrong) for index, ref in enumerate(refs)]

        self._mention(self._named["protected"])
        nodes = []
        for index, node in enumerate(self._nodes):
            keys = dict(node.keys)
            if "targets" in keys:
                keys["targets"] = resolve(keys["targets"], ("nodes", index, "targets"))
            if "on_error" in keys:
                keys["on_error"] = self._resolve(keys["on_error"], ("nodes", index, "on_error"), wrong)
            nodes.append(keys)
        edges = []
        for index, (from_node, to_node, keys) in enumerate(self._edges):
            ends = {"from_node": from_node, "to_node": to_node}
            edges.append({key: self._resolve(ref, ("edges", index, key), wrong) for key, ref in ends.items()} | keys)
        named = {key: resolve(refs, (key,)) for key, refs in self._named.items() if refs}
        library = self._library()
        graph, findings = check(self._keys | {"nodes": nodes, "edges": edges} | named, lambda _: (library, wrong))
        if graph is None:
            raise InvalidGraph(tuple(finding.fault() for finding in findings))
        return graph

    def _mention(self, refs: Iterable[NodeRef]) -> None:
        for ref in refs:
            if not isinstance(ref, str) and all(node.function is not ref for node in self._nodes):
                self._nodes.append(_Node(ref, {"id": _name(ref)}, declared=False))

    def _resolve(self, ref: NodeRef, path: Path, wrong: list[Finding]) -> str:
        if isinstance(ref, str):
            return ref
        ids: list[str] = [node.keys["id"] for node in self._nodes if node.function is ref]
        if len(ids) > 1:
            wrong.append(Finding(path, f"several nodes call `{_name(ref)}`: {listed(ids)}; give the id of one"))
        return ids[0]

    def _library(self) -> Library:
        functions = {}
        refused = {}
        for node in self._nodes:
            if node.function is not None:
                try:
                    functions[node.keys["id"]] = NodeFunction.of(node.function)
                except Exception as error:  # annotations are the user's expressions, and raise what they like
                    refused[node.keys["id"]] = f"cannot be a node: {error}"
        return Library(
            functions=functions, refused=refused, remedy="give the function itself to `node()`", lifespan=self._lifespan
        )


def _name(node: NodeRef) -> str:
    if isinstance(node, str):
        return node
    options: Mapping[str, Any] = getattr(node, MARK, {})
    return str(options.get("name") or getattr(node, "__name__", type(node).__name__))


def _duration(value: Any) -> Any:
    """As a graph file has it: a number of seconds becomes text."""
    return duration_text(value) if type(value) in (int, float) else value


def _retry(retry: Any) -> Any:
    if not isinstance(retry, Retry):
        return retry
    waits = {"initial": _duration(retry.initial), "max": _duration(retry.max)}
    return _given(**attrs.asdict(retry) | waits | {"on": list(retry.on) or None})


def _limits(limits: Any) -> Any:
    keys = attrs.asdict(limits) if isinstance(limits, Limits) else limits
    if not isinstance(keys, Mapping):
        return keys
    return {key: _duration(value) if key == "timeout" else value for key, value in keys.items() if value is not None}


def _given(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}
