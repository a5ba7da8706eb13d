"""A graph file with every key that it was promised to take."""

from __future__ import annotations

from pathlib import Path

from tinyllm.core.builder import load_graph
from tinyllm.graph.definition import Limits, Retry

EVERY_KEY = """\
id: everything
version: "1.0.0"
name: Everything
description: has every key
metadata: {owner: [me]}
entry_points: [start]
exit_points: [end.it]
protected: [work_1]
allow_cycles: true
functions: [nodes.py]
variables: {newest: last, log: append, total: add, known: merge}
history: window(20)
limits: {max_steps: 500, timeout: 5m, max_concurrency: 8}
nodes:
  - {id: start, type: entry}
  - id: work_1
    type: function
    name: Work
    description: works
    config: {call: work}
    join: all
    retry: {max_attempts: 3, initial: 250ms}
    timeout: 30s
    on_error: mend
    process: true
    max_concurrency: 2
    effects: true
    targets: [mend]
  - {id: mend, type: function}
  - {id: end.it, type: exit}
edges:
  - {from_node: start, to_node: work_1, condition: "content != ''", weight: 1, for_each: false}
  - {from_node: work_1, to_node: end.it}
  - {from_node: mend, to_node: work_1}
"""

NODES = """\
from tinyllm import node


@node
def work(value):
    return value


@node
def mend(value):
    return value
"""


def test_a_graph_file_takes_every_promised_key(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(EVERY_KEY)
    (tmp_path / "nodes.py").write_text(NODES)
    graph = load_graph(tmp_path / "graph.yaml")
    assert (graph.id, graph.version, graph.name, graph.description) == (
        "everything",
        "1.0.0",
        "Everything",
        "has every key",
    )
    assert (graph.metadata, graph.history, graph.allow_cycles) == ({"owner": ["me"]}, 20, True)
    assert (graph.entry_points, graph.exit_points, graph.protected) == (("start",), ("end.it",), ("work_1",))
    assert graph.variables == {"newest": "last", "log": "append", "total": "add", "known": "merge"}
    assert graph.limits == Limits(max_steps=500, timeout=300.0, max_concurrency=8)
    work = graph.nodes["work_1"]
    assert (work.name, work.description, work.config, work.join) == ("Work", "works", {"call": "work"}, "all")
    assert (work.retry, work.timeout, work.on_error) == (Retry(max_attempts=3, initial=0.25), 30.0, "mend")
    assert (work.process, work.max_concurrency, work.effects, work.targets) == (True, 2, True, ("mend",))
    function = graph.function(work)
    assert function is not None
    assert function.name == "work"
    assert [(edge.condition, edge.for_each) for edge in graph.edges] == [
        ("content != ''", False),
        (None, False),
        (None, False),
    ]
