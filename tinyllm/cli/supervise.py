"""`tinyllm supervise`."""

from __future__ import annotations

import sys
from typing import Any

import click

from tinyllm.cli.options import (
    accept_option,
    durability_option,
    log_level_option_of,
    redact_option,
    rules_of,
    storage_option,
)
from tinyllm.cli.report import INTERRUPTED
from tinyllm.cli.text import say


def parse_limits(texts: tuple[str, ...]) -> dict[str, int]:
    """`ID=N` texts as a mapping.

    :raises click.BadParameter: showing how one is written.
    """
    found: dict[str, int] = {}
    for text in texts:
        id_, _, number = text.rpartition("=")
        if not id_ or not number.isdecimal() or not int(number):
            raise click.BadParameter(f"{text!r} is not ID=N; write for example --limit survey=4")
        found[id_] = int(number)
    return found


@click.command()
@click.argument("graphs", metavar="GRAPH...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="How many worker processes.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="How many traces a worker executes at once.",
)
@click.option(
    "--limit",
    "limits",
    metavar="ID=N",
    multiple=True,
    callback=lambda _context, _parameter, value: parse_limits(value),
    help="Execute at most N traces of the graph ID at once, in the whole store. May be repeated.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running nodes have to end when it drains.",
)
@click.option(
    "--hang-after",
    type=click.FloatRange(min=2),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="End a worker whose event loop stands still for so long.",
)
@accept_option
@storage_option
@durability_option
@redact_option
@log_level_option_of("INFO")
def supervise(
    graphs: tuple[str, ...],
    workers: int,
    concurrency: int,
    limits: dict[str, int],
    grace: float,
    hang_after: float,
    accept_graph_change: bool,
    storage: str | None,
    durability: Any,
    redact: tuple[str, ...],
) -> None:
    """Execute the traces that wait in the store, of the graphs in the files GRAPH.

    Worker processes claim what was submitted, and what was interrupted. Those that die or hang are replaced, and their
    traces go on from where they were. SIGTERM or Ctrl-C drains: nothing more is claimed, and running nodes may end. A
    second one ends everything at once. No trace is lost either way.
    """
    import anyio

    from tinyllm.core.config import ExecutorConfig
    from tinyllm.supervisor.service import serve
    from tinyllm.supervisor.supervisor import Supervisor

    supervisor = Supervisor(
        graphs,
        storage,
        workers=workers,
        concurrency=concurrency,
        limits=limits,
        grace=grace,
        hang_seconds=hang_after,
        config=ExecutorConfig(durability=durability, redact=rules_of(redact)),
        accept_graph_change=accept_graph_change,
    )
    drained = anyio.run(serve, supervisor, lambda text: say(text, err=True))
    sys.exit(0 if drained else INTERRUPTED)
