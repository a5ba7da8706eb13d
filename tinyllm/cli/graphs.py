"""`tinyllm graph validate`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import click

from tinyllm.cli.options import json_option, log_level_option
from tinyllm.cli.report import USAGE
from tinyllm.cli.text import plural, say, say_json

if TYPE_CHECKING:
    from tinyllm.graph.definition import Graph


def load(file: str) -> Graph:
    """The graph in `file`; what the files of its functions print goes to stderr.

    :raises InvalidGraph: with every fault found.
    """
    from tinyllm.core.builder import load_graph

    with redirect_stdout(sys.stderr):
        return load_graph(file)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@json_option
@log_level_option
@click.pass_context
def validate(context: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check graph files and list every fault with its line. Exit code 2 if there is any; warnings do not count."""
    import attrs

    from tinyllm.errors import Fault, InvalidGraph
    from tinyllm.graph.document import Document
    from tinyllm.graph.writers import concurrent_writers

    faults: list[Fault] = []
    warnings: list[Fault] = []
    for file in files:
        try:
            graph = load(file)
        except InvalidGraph as error:
            faults += error.faults
            if not as_json:
                say("\n".join(str(fault) for fault in error.faults))
        else:
            if not as_json:
                size = f"{plural(len(graph.nodes), 'node')}, {plural(len(graph.edges), 'edge')}"
                say(f"{file}: graph {graph.id!r} is valid: {size}")
            if found := concurrent_writers(graph):
                warnings += map(Document(file).fault, found)
    if as_json:
        said = [{"severity": "error", **attrs.asdict(fault)} for fault in faults]
        said += [{"severity": "warning", **attrs.asdict(warning)} for warning in warnings]
        say_json(said)
    else:
        for warning in warnings:
            say(f"warning: {warning}", err=True)
    context.exit(USAGE if faults else 0)
