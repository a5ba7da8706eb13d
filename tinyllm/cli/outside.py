"""The commands that act on a trace without executing it: `answer`, `pause`, `cancel`, `tag`, `delete`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.look import in_store
from tinyllm.cli.objects import checkpoint_object, question_object, trace_object
from tinyllm.cli.options import (
    AGAIN,
    command_line,
    json_option,
    log_level_option,
    parse_json,
    redact_option,
    rules_of,
    storage_option,
    together,
    trace_argument,
)
from tinyllm.cli.questions import question_lines
from tinyllm.cli.text import say, say_json

if TYPE_CHECKING:
    from tinyllm.graph.questions import Question
    from tinyllm.storage.contract import CheckpointRecord, CheckpointStorage, Status, TraceRecord

common_options = together(storage_option, json_option, log_level_option)


@click.command(context_settings={"ignore_unknown_options": True})  # -5 is a number, not an option
@trace_argument
@click.argument(
    "value",
    metavar="JSON",
    callback=lambda _context, _parameter, text: parse_json(text),
)
@click.option("--question", metavar="NAME", help="Its name or id. Default: the only one that is open.")
@redact_option
@common_options
def answer(
    trace: str, value: Any, question: str | None, redact: tuple[str, ...], storage: str | None, as_json: bool
) -> None:
    """Answer a question of a trace, once and for all.

    A process that executes the trace goes on with the answer; where there is none, `tinyllm resume` does.
    """
    from tinyllm.core import outside
    from tinyllm.core.store import find_trace

    async def act(store: CheckpointStorage) -> tuple[Question, TraceRecord, list[Question]]:
        name = (await find_trace(store, trace)).trace_id
        asked = await outside.answer(store, name, value, question, rules_of(redact))
        snapshot = await store.load(name)
        return asked, snapshot.record, [each for each in outside.open_questions(snapshot) if each != asked]

    asked, record, others = in_store(storage, act)
    if as_json:
        _print(question_object(asked))
        return
    say(f"{record.trace_id}: {asked.name!r} of node {asked.node_id} is answered")
    if record.owner is not None:
        say(f"{_owner(record)} goes on with it", err=True)
    if others:
        say("\n".join(question_lines(others, live=record.owner is not None)), err=True)
    elif record.owner is None:
        say(f"continue with:\n  {command_line('resume', record.trace_id)}", err=True)


@click.command()
@trace_argument
@common_options
def pause(trace: str, storage: str | None, as_json: bool) -> None:
    """Pause a trace: what runs may end, nothing more starts.

    `tinyllm resume` goes on with it.
    """
    from tinyllm.core import outside

    record = _command(trace, storage, outside.pause)
    if as_json:
        _print(trace_object(record))
    elif record.status == "paused":
        say(f"{record.trace_id}: paused at step {record.step:,}")
        say(f"continue with:\n  {command_line('resume', record.trace_id)}", err=True)
    else:
        _left(record, "pause it when what runs has ended")


@click.command()
@trace_argument
@common_options
def cancel(trace: str, storage: str | None, as_json: bool) -> None:
    """End a trace: what runs is cancelled, and it is never resumed.

    A fork can still start from its checkpoints.
    """
    from tinyllm.core import outside

    record = _command(trace, storage, outside.cancel)
    if as_json:
        _print(trace_object(record))
    elif record.status == "cancelled":
        say(f"{record.trace_id}: cancelled at step {record.step:,}")
        say(f"a fork can start from what is kept:\n  {command_line('checkpoints', record.trace_id)}", err=True)
    else:
        _left(record, "stop it")


@click.command()
@trace_argument
@click.argument("label", metavar="LABEL")
@click.option("--step", type=click.IntRange(min=0), help="The checkpoint after this step. Default: the newest.")
@click.option("--remove", is_flag=True, help="Take LABEL away from whatever checkpoint has it.")
@common_options
def tag(trace: str, label: str, step: int | None, remove: bool, storage: str | None, as_json: bool) -> None:
    """Name a checkpoint of a trace, so that it is kept."""
    from tinyllm.core import outside
    from tinyllm.core.store import find_trace

    async def act(store: CheckpointStorage) -> list[CheckpointRecord]:
        name = (await find_trace(store, trace)).trace_id
        if remove:
            return await outside.untag(store, name, label, step=step)
        return [await outside.tag(store, name, label, step=step)]

    for record in (records := in_store(storage, act)):
        if as_json:
            _print(checkpoint_object(record))
        else:
            what = f"is no longer named {label!r}" if remove else f"is named {label!r}"
            say(f"{record.id}, at step {record.step:,}, {what}")
    if not remove and not as_json:
        fork = command_line("fork", records[0].trace_id, "--at", str(records[0].step))
        say(f"start a new trace from there with:\n  {fork}", err=True)


@click.command()
@trace_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_context
def delete(context: click.Context, /, trace: str, yes: bool, storage: str | None, as_json: bool) -> None:
    """Forget a trace and all its checkpoints. Forks of it live on."""
    from tinyllm.core import outside
    from tinyllm.core.store import find_trace
    from tinyllm.storage.owners import is_owned

    record = in_store(storage, lambda store: find_trace(store, trace, damaged=True))
    name = record.trace_id
    context.meta[AGAIN] = ["delete", name, *(["--yes"] if yes else [])]
    if yes and trace != name:  # what cannot be undone is not guessed
        exact = command_line("delete", name, "--yes")
        raise click.UsageError(f"{trace!r} means {name!r}; what is gone is gone, so name it in full:\n  {exact}")
    if not yes and not is_owned(record):  # of one that is executed there is nothing to ask: it is refused
        if not sys.stdin.isatty():
            raise click.UsageError(
                f"nobody is there to confirm; delete it with:\n  {command_line('delete', name, '--yes')}"
            )
        done = f"{record.status} at step {record.step:,}"
        click.confirm(f"delete {name} ({done}) with all its checkpoints?", abort=True, err=True)
    in_store(storage, lambda store: outside.delete(store, name))
    if as_json:
        _print(trace_object(record))
    else:
        say(f"{name}: deleted")


def _command(
    trace: str, storage: str | None, verb: Callable[[CheckpointStorage, str], Awaitable[Status]]
) -> TraceRecord:
    """Leave a command. -> the trace as it is now."""
    from tinyllm.core.store import find_trace

    async def act(store: CheckpointStorage) -> TraceRecord:
        name = (await find_trace(store, trace)).trace_id
        await verb(store, name)
        return await find_trace(store, name)

    return in_store(storage, act)


def _left(record: TraceRecord, deed: str) -> None:
    """Say who will carry a command out that is not yet."""
    if record.owner is None:  # it came to an end, or to another owner, just now
        say(f"{record.trace_id}: {record.status} at step {record.step:,}")
    else:
        unseen = "" if record.owner_alive else ", if it still lives: that cannot be seen from here"
        say(f"{record.trace_id}: {_owner(record)} will {deed}{unseen}")
    say(f"see what became of it with:\n  {command_line('show', record.trace_id)}", err=True)


def _owner(record: TraceRecord) -> str:
    assert record.owner is not None
    return f"process {record.owner.pid} on {record.owner.host}"


def _print(found: dict[str, Any]) -> None:
    say_json(found)
