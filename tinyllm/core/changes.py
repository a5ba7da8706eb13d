"""What is different between a graph and the one a trace was recorded with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tinyllm.graph.definition import Graph
from tinyllm.graph.values import reads

_SAID = {"nodes": "node", "edges": "edge", "variables": "reducer of", "versions": "version of"}


@reads("the definition of a graph")
def changes(recorded: bytes, graph: Graph) -> tuple[list[str], list[str]]:
    """What changed since, in two grades: what a resume must not accept unasked, and what it only reports."""
    before, now = msgspec.json.decode(recorded), msgspec.json.decode(graph.definition)
    serious = [line for part in now["topology"] for line in _compare(part, before["topology"], now["topology"])]
    explained = {line[2:] for line in serious if not line.startswith("~")}
    harmless = [
        f"{name} changed"
        for name in sorted(before["details"].keys() | now["details"].keys())
        if before["details"].get(name) != now["details"].get(name) and name.rsplit(":", 1)[0] not in explained
    ]
    return serious, harmless


def _compare(part: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """`+` is new, `-` is gone, `~` is different."""
    old, new = before.get(part), now[part]
    said = _SAID.get(part, part)
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in new:
                yield f"- {said} {key}"
            elif key not in old:
                yield f"+ {said} {key}"
            elif old[key] != new[key]:
                yield f"~ {said} {key}: {_short(old[key])} -> {_short(new[key])}"
        return
    old_items, new_items = [_short(item) for item in old or []], [_short(item) for item in new]
    yield from (f"- {said} {item}" for item in old_items if item not in new_items)
    yield from (f"+ {said} {item}" for item in new_items if item not in old_items)


def _short(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} {_short(value)}" for key, value in item.items())
    if isinstance(item, list):  # an edge: from, to, kind
        return " ".join([" -> ".join(item[:2]), *item[2:]]).strip() if len(item) == 3 else ", ".join(map(str, item))
    return str(item)
