"""The command that has a trace executed by others: `submit`."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.execute import id_option
from tinyllm.cli.graphs import load
from tinyllm.cli.objects import trace_object
from tinyllm.cli.options import (
    GRAPH,
    command_line,
    json_option,
    log_level_option,
    redact_option,
    remember,
    rules_of,
    set_option,
    storage_option,
    task_option,
)
from tinyllm.cli.text import local_time, say, say_json

if TYPE_CHECKING:
    from tinyllm.core.submit import Submission


def parse_time(text: str | None) -> float | None:
    """UTC seconds of `2026-01-31T14:05`, local time where it names no zone, or of `+10m`: so long from now.

    :raises click.BadParameter: it is neither.
    """
    from tinyllm.graph.durations import parse_duration

    if text is None:
        return None
    try:
        if text.startswith("+"):
            return time.time() + parse_duration(text[1:])
        return max(0.0, datetime.fromisoformat(text).astimezone().timestamp())
    except (ValueError, OverflowError):
        allowed = "a time such as 2026-01-31T14:05 or 2026-01-31T14:05+02:00, nor a duration from now such as +10m"
        raise click.BadParameter(f"{text!r} is neither {allowed}") from None


@click.command()
@click.argument("graph", metavar="GRAPH", callback=remember(GRAPH))
@task_option
@set_option
@id_option
@click.option("--priority", type=int, default=0, show_default=True, help="Those that wait with the highest go first.")
@click.option(
    "--not-before",
    metavar="TIME",
    callback=lambda _context, _parameter, value: parse_time(value),
    help="It waits until then at least: 2026-01-31T14:05, local time if it names no zone; or +10m, from now.",
)
@redact_option
@storage_option
@json_option
@log_level_option
def submit(
    graph: str,
    task: str,
    variables: dict[str, Any],
    trace_id: str | None,
    priority: int,
    not_before: float | None,
    redact: tuple[str, ...],
    storage: str | None,
    as_json: bool,
) -> None:
    """Have a supervisor execute the graph in the file GRAPH.

    When this ends, the trace is durable and waits; its id goes to stdout. With the --id of a trace of the same task,
    nothing is done, and its --priority and --not-before stay: it says what became of that.
    """
    import anyio

    from tinyllm.core.config import CheckpointConfig
    from tinyllm.core.store import opened_storage
    from tinyllm.core.submit import submission
    from tinyllm.storage.contract import UNOWNED

    config = CheckpointConfig(redact=rules_of(redact))
    loaded = load(graph)

    async def go() -> tuple[Submission, str]:
        async with opened_storage(storage) as store:
            found = await submission(
                loaded,
                task,
                store,
                trace_id=trace_id,
                variables=variables,
                priority=priority,
                not_before=not_before,
                config=config,
            )
            return found, store.name

    found, store_name = anyio.run(go)
    record = found.record
    if as_json:
        say_json(trace_object(record))
    else:
        say(record.trace_id)
    if record.status in UNOWNED:
        say(f"{record.status} before; nothing was submitted\n  {command_line('show', record.trace_id)}", err=True)
        return
    due = "" if record.not_before is None else f", not before {local_time(record.not_before)}"
    say(f"{record.status}{due}" if found.admitted else f"{record.status} before{due}; nothing was changed", err=True)
    if not found.supervisors:
        start = command_line("supervise", graph)
        say(f"no supervisor serves {store_name}; start one with:\n  {start}", err=True)
