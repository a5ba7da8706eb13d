"""Work for a supervisor: a graph file whose nodes note when each of them began and ended, and do what they are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import attrs

from tinyllm import CheckpointStorage

NODES = """
import json
import os
import re
import time
from pathlib import Path

import anyio

from tinyllm import NodeContext, node

HERE = Path(__file__).parent


def note(context: NodeContext, what: str) -> None:
    line = f"{time.time():.6f} {os.getpid()} {what} {context.trace_id} {context.node_id}\\n".encode()
    file = os.open(HERE / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line)
    os.close(file)


@node
async def work(task: str, context: NodeContext) -> str:
    told = json.loads(task or "{}")
    note(context, "began")
    count = context.variables.get("count", 0)
    context.set_variable("count", count + 1)
    if count == told.get("at", 0) and not (HERE / "mended").exists():
        match told.get("what"):
            case "exit":
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), 9)
            case "block":
                time.sleep(1000)
            case "seize":
                re.match("(a+)+$", "a" * 60 + "b")
            case "fail":
                raise ValueError("told to")
            case "hold":
                while not (HERE / "let go").exists():
                    await anyio.sleep(0.01)
    seconds = told.get("seconds", 0.0)
    await anyio.sleep(seconds[count] if isinstance(seconds, list) else seconds)
    note(context, "ended")
    return task
"""
"""The task is JSON: `seconds` that each node takes, or a list of them by place; and what the node at the place `at` of
the chain does: `what`."""


@attrs.frozen
class Line:
    """A node `began` or `ended`."""

    at: float
    pid: int
    what: str
    trace_id: str
    node: str


def write_graph(directory: Path, *, nodes: int, id_: str = "chain", functions: str = NODES) -> Path:
    """A chain of `nodes` nodes; returns the graph's file."""
    directory.mkdir(exist_ok=True)
    (directory / "nodes.py").write_text(functions)
    names = [f"n{number}" for number in range(nodes)]
    lines = [f"id: {id_}", "functions: [nodes.py]", "nodes:"]
    lines += [f"  - {{id: {name}, config: {{call: work}}}}" for name in names]
    if nodes > 1:
        lines += ["edges:"]
    lines += [f"  - {{from_node: {a}, to_node: {b}}}" for a, b in pairwise(names)]
    path = directory / f"{id_}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def journal(graph: Path) -> list[Line]:
    try:
        lines = (graph.parent / "journal").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [Line(float(at), int(pid), *rest) for at, pid, *rest in map(str.split, lines)]


async def run_again(graph: Path, storage: CheckpointStorage, trace_ids: Iterable[str]) -> list[str]:
    """What ran again although it was recorded: the record tells when it had ended, the journal when it began."""
    began: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for line in journal(graph):
        if line.what == "began":
            began[line.trace_id, line.node].append(line.at)
    return [
        f"{trace_id}: {step.node} was recorded at {step.ended_at}, and began again at {at}"
        for trace_id in trace_ids
        for step in await storage.steps(trace_id)
        for at in began[trace_id, step.node]
        if at > step.ended_at
    ]
