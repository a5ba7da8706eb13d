"""A small piece of work to kill: what the survey has but its worker processes, and what that has not.

A list, a fan-out within a fan-out, nodes in threads and in the loop, attempts that fail, variables with reducers,
joins, and nodes with effects at the end. The same task gives the same result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tests.torture.piece import Piece
from tests.torture.victim import Lived
from tests.torture.witness import FILE, witnessed
from tinyllm import Graph, GraphBuilder, NodeContext, Result, Retry

TASKS = {"sync": (3, 6), "async": (4, 20)}
"""By durability: how many groups, and how many items in each. More than the credit, where steps are not waited for."""
FAILS = 4
"""The first attempt at every so manieth item fails."""


async def begin(task: str, context: NodeContext) -> list[str]:
    with witnessed(context, "begin"):
        groups, items = json.loads(task)
        return [f"{group} {items}" for group in range(groups)]


def split(group: str, context: NodeContext) -> list[str]:
    number, items = group.split()
    with witnessed(context, f"split {number}"):
        return [f"{number}.{item}" for item in range(int(items))]


async def work(item: str, context: NodeContext) -> Result:
    with witnessed(context, f"work {item}"):
        number = int(item.split(".")[1])
        if number % FAILS == 0 and context.attempt == 1:
            raise ConnectionError(item)
        return Result(f"work {item}", set={"seen": [item], "total": number})


async def gather(done: list[str], context: NodeContext) -> list[str]:
    with witnessed(context, "gather"):
        return sorted({item.removeprefix("work ").split(".")[0] for item in done})


def publish(group: str, context: NodeContext) -> str:
    with witnessed(context, f"publish {group}"):
        return f"publish {group}"


async def end(published: list[str], context: NodeContext) -> str:
    with witnessed(context, "end"):
        return json.dumps([published, context.variables["total"], list(context.variables["seen"])])


def small() -> Graph:
    return (
        GraphBuilder("small", variables={"seen": "append", "total": "add"})
        .node(work, retry=Retry(max_attempts=3, initial=0.002))
        .node(gather, join="all")
        .node(publish, effects=True)
        .node(end, join="all")
        .edge(begin, split, for_each=True)
        .edge(split, work, for_each=True)
        .edge(work, gather)
        .edge(gather, publish, for_each=True)
        .edge(publish, end)
        .build()
    )


def key(node: str, value: Any) -> str:
    """The key that the witness has of the activation that returned `value`."""
    match node:
        case "split":
            return f"split {value[0].split('.')[0]}"
        case "work" | "publish":
            return str(value)
        case _:
            return node


@cache
def _layers(groups: int, items: int) -> list[frozenset[str]]:
    splits = frozenset(f"split {group}" for group in range(groups))
    works = frozenset(f"work {group}.{item}" for group in range(groups) for item in range(items))
    publishes = frozenset(f"publish {group}" for group in range(groups))
    return [frozenset({"begin"}), splits, works, frozenset({"gather"}), publishes, frozenset({"end"})]


def piece(durability: str) -> Piece:
    groups, items = TASKS[durability]
    layers = _layers(groups, items)

    def causes(key: str) -> frozenset[str]:
        node, _, which = key.partition(" ")
        if node == "work":
            return frozenset({"begin", f"split {which.split('.')[0]}"})
        before: Iterable[frozenset[str]] = layers[: next(at for at, layer in enumerate(layers) if key in layer)]
        return frozenset().union(*before)

    return Piece(
        graph="tests.torture.small:small",
        task=json.dumps([groups, items]),
        steps=sum(map(len, layers)),
        variables=lambda folder: {"seen": [], "total": 0, FILE: str(folder / FILE)},
        key=key,
        causes=causes,
        has_effects=lambda key: key.startswith("publish"),
        result=result,
    )


def result(_folder: Path, lived: Lived) -> bytes:
    (response,) = lived.of("Response")
    return str(response["content"]).encode()
