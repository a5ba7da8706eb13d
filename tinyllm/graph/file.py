"""Graph files: from YAML text to a graph, or to a list of every fault with its line and column."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tinyllm.errors import InvalidGraph
from tinyllm.graph.definition import Graph
from tinyllm.graph.document import Document
from tinyllm.graph.findings import Finding
from tinyllm.graph.functions import Library, collect
from tinyllm.graph.validate import check


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a graph file, and import the files that its `functions` names.

    :raises InvalidGraph: with every fault found, in the order of the file.
    """
    name = os.fspath(path)
    document = Document(name)
    folder = os.path.dirname(os.path.realpath(name))

    def load(files: Sequence[str]) -> tuple[Library, list[Finding]]:
        return collect(files, folder)

    graph, findings = check(document.data, load, path=os.path.abspath(name))
    faults = [*document.faults, *(document.fault(finding) for finding in findings)]
    if graph is None or faults:
        raise InvalidGraph(tuple(sorted(faults, key=lambda fault: (fault.line or 0, fault.column or 0))))
    return graph
