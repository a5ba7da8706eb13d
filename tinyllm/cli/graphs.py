"""`tinyllm graph validate`."""

from __future__ import annotations

import json

import click

from tinyllm.cli.options import json_option, log_level_option
from tinyllm.cli.report import FAILED
from tinyllm.cli.text import plural


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@json_option
@log_level_option
@click.pass_context
def validate(context: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check graph files and list every fault with its line. Exit code 1 if there is any."""
    import attrs

    from tinyllm.core.builder import load_graph
    from tinyllm.errors import Fault, InvalidGraph

    faults: list[Fault] = []
    for file in files:
        try:
            graph = load_graph(file)
        except InvalidGraph as error:
            faults += error.faults
            if not as_json:
                click.echo("\n".join(str(fault) for fault in error.faults))
        else:
            if not as_json:
                size = f"{plural(len(graph.nodes), 'node')}, {plural(len(graph.edges), 'edge')}"
                click.echo(f"{file}: graph {graph.id!r} is valid: {size}")
    if as_json:
        click.echo(json.dumps([attrs.asdict(fault) for fault in faults], indent=2))
    context.exit(FAILED if faults else 0)
