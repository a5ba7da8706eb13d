"""The commands that look: `list`, `show`, `checkpoints`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tinyllm.cli.objects import checkpoint_object, trace_object
from tinyllm.cli.options import command_line, json_option, log_level_option, storage_option
from tinyllm.cli.text import ago, local_time, plural, say, say_json, table, width

if TYPE_CHECKING:
    from tinyllm.storage.contract import CheckpointRecord, CheckpointStorage, TraceRecord

T = TypeVar("T")

STATUSES = ["queued", "running", "paused", "interrupted", "completed", "failed", "cancelled", "quarantined"]

limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most, the newest first."
)


@click.command(name="list")
@click.option("--graph-id", metavar="ID", help="Only traces of this graph.")
@click.option("--status", type=click.Choice(STATUSES), help="Only traces in this status.")
@limit_option
@storage_option
@json_option
@log_level_option
def traces(graph_id: str | None, status: Any, limit: int, storage: str | None, as_json: bool) -> None:
    """List traces, the most recently updated first."""

    async def read(store: CheckpointStorage) -> tuple[list[TraceRecord], str]:
        return await store.traces(graph_id=graph_id, status=status, limit=limit), store.name

    records, store_name = in_store(storage, read)
    if as_json:
        say_json([trace_object(record) for record in records])
        return
    if not records:
        chosen = graph_id is not None or status is not None
        say(f"no {'such traces' if chosen else 'traces'} in {store_name}", err=True)
        return
    now = time.time()
    rows = [
        (record.trace_id, record.graph_id, record.status, f"{record.step:,}", ago(record.updated_at, now))
        for record in records
    ]
    heads = ("trace", "graph", "status", "step", "updated")
    say("\n".join(table(heads, rows, right=("step",), shrink="graph", columns=width())))
    if len(records) == limit:
        say(f"the newest {limit:,}; --limit shows more", err=True)


@click.command()
@click.argument("trace", required=False, metavar="[TRACE]")
@click.option("--graph-id", metavar="ID", help="Only traces of this graph.")
@click.option("--trace-id", metavar="TRACE", help="Same as the argument.")
@limit_option
@storage_option
@json_option
@log_level_option
def checkpoints(
    trace: str | None, graph_id: str | None, trace_id: str | None, limit: int, storage: str | None, as_json: bool
) -> None:
    """List the kept checkpoints, the newest first.

    Of all traces, or of TRACE: an id, the beginning of one, or @last. `tinyllm fork TRACE --at STEP` starts a new
    trace from one of them.
    """
    if trace is not None and trace_id is not None:
        raise click.UsageError("name the trace once: as the argument, or with --trace-id")
    wanted = trace if trace is not None else trace_id

    async def read(store: CheckpointStorage) -> tuple[list[CheckpointRecord], str]:
        from tinyllm.core.store import find_trace

        filters = {} if graph_id is None else {"graph_id": graph_id}
        if wanted is not None:
            filters["trace_id"] = (await find_trace(store, wanted)).trace_id
        return await store.list(limit, filters=filters), store.name

    records, store_name = in_store(storage, read)
    if as_json:
        say_json([checkpoint_object(record) for record in records])
        return
    if not records:
        say(f"no such checkpoints in {store_name}", err=True)
        return
    heads = ["step", "rev", "node", "status", "created", "id"]
    rows = [
        [
            f"{r.step:,}",
            f"{r.rev:,}",
            r.metadata.get("node", r.node_id) or "-",
            r.status,
            local_time(r.created_at.timestamp()),
            r.id,
        ]
        for r in records
    ]
    if any(record.label is not None for record in records):
        heads.append("label")
        rows = [[*row, record.label or ""] for row, record in zip(rows, records, strict=True)]
    say("\n".join(table(heads, rows, right=("step", "rev"), shrink="node", columns=width())))
    if len(records) == limit:
        say(f"the newest {limit:,}; --limit shows more", err=True)
    if gone := _pruned(records):
        of = next(iter(gone)) if len(gone) == 1 else plural(len(gone), "trace")
        say(f"{plural(gone.total(), 'older checkpoint')} of {of} were pruned", err=True)


def _pruned(records: list[CheckpointRecord]) -> Counter[str]:
    """By trace, how many checkpoints are not there any more between those that are listed: every rev had one."""
    gone: Counter[str] = Counter()
    newer: dict[str, int] = {}
    for record in records:
        gone[record.trace_id] += newer.get(record.trace_id, record.rev + 1) - record.rev - 1
        newer[record.trace_id] = record.rev
    return +gone


@click.command()
@click.argument("trace", metavar="TRACE")
@click.option("--step", type=click.IntRange(min=0), help="As it was after this step, if its checkpoint is kept.")
@storage_option
@json_option
@log_level_option
def show(trace: str, step: int | None, storage: str | None, as_json: bool) -> None:
    """Show what a trace did and what runs next.

    TRACE is an id, the beginning of one, or @last.
    """
    from tinyllm.cli.portrait import as_lines, as_object, read_portrait

    portrait = in_store(storage, lambda store: read_portrait(store, trace, step))
    if as_json:
        say_json(as_object(portrait))
    else:
        say("\n".join(as_lines(portrait, time.time(), width() or 100, command_line)))


def in_store(storage: str | None, act: Callable[[CheckpointStorage], Awaitable[T]]) -> T:
    """What `act` finds or does in the store; nothing is made where there is none."""
    import anyio

    from tinyllm.core.store import opened_storage

    async def go() -> T:
        async with opened_storage(storage, must_exist=True) as store:
            return await act(store)

    return anyio.run(go)
