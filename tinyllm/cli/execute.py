"""The commands that execute: `run`, `resume`, `fork`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.graphs import load
from tinyllm.cli.objects import response_object
from tinyllm.cli.options import (
    AGAIN,
    GRAPH,
    accept_option,
    answer_option,
    at_option,
    command_line,
    durability_option,
    graph_option,
    json_option,
    kill_after_option,
    log_level_option,
    redact_option,
    remember,
    rules_of,
    set_option,
    storage_option,
    task_option,
    together,
    trace_argument,
)
from tinyllm.cli.questions import question_lines
from tinyllm.cli.report import DONE, FAILED, INTERRUPTED, PAUSED
from tinyllm.cli.text import say, say_json, say_result

if TYPE_CHECKING:
    from tinyllm.cli.drive import Job
    from tinyllm.graph.definition import Graph
    from tinyllm.graph.messages import TaskResponse
    from tinyllm.storage.contract import CheckpointStorage, StepRow, TraceRecord

id_option = click.option(
    "--id", "trace_id", metavar="TRACE", help="The new trace's id. Default: the graph's id and random letters."
)
common_options = together(
    storage_option, durability_option, redact_option, kill_after_option, json_option, log_level_option
)


@click.command()
@click.argument("graph", metavar="GRAPH", callback=remember(GRAPH))
@task_option
@set_option
@id_option
@common_options
def run(graph: str, task: str, variables: dict[str, Any], trace_id: str | None, **common: Any) -> None:
    """Execute the graph in the file GRAPH.

    The result goes to stdout, everything else to stderr. With the --id of a trace that was interrupted, the same
    command goes on with it; of one that has ended or is paused it shows the outcome again, and runs nothing.
    """
    from tinyllm.cli.drive import Job
    from tinyllm.core.store import check_trace_id, free_trace_id

    given = check_trace_id(trace_id) if trace_id is not None else None
    loaded = load(graph)

    async def prepare(storage: CheckpointStorage) -> Job:
        name = given or await free_trace_id(storage, loaded.id)
        known = await storage.trace(name) if given else None
        earlier = await earlier_steps(storage, name) if known else []
        return Job(loaded, name, earlier, lambda executor: executor.execute(task, trace_id=name, variables=variables))

    execute(prepare, must_exist=False, **common)


@click.command()
@trace_argument
@answer_option
@graph_option
@accept_option
@click.option(
    "--take-over",
    is_flag=True,
    help="Take it from a process that lives, but is stopped or hangs. That one can write nothing more of it.",
)
@click.option(
    "--rerun-effects",
    is_flag=True,
    help="Of a damaged trace: go back to a checkpoint that is whole also if nodes with effects then run again.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Also one that is quarantined because the processes that executed it died: it is executed here.",
)
@common_options
def resume(
    trace: str,
    answers: list[tuple[str | None, Any]],
    graph: str | None,
    accept_graph_change: bool,
    take_over: bool,
    rerun_effects: bool,
    force: bool,
    **common: Any,
) -> None:
    """Go on with a trace that was interrupted, paused or failed.

    TRACE is an id, the beginning of one, or @last. What is recorded is not run again; of a completed trace the result
    is printed.
    """
    from tinyllm.cli.drive import Job
    from tinyllm.core.outside import find_question
    from tinyllm.core.store import find_trace

    async def prepare(storage: CheckpointStorage) -> Job:
        record = await find_trace(storage, trace)
        loaded = graph_of(record, graph, storage)
        earlier = await earlier_steps(storage, record.trace_id)
        named = {name or (await find_question(storage, record.trace_id)).id: value for name, value in answers}
        return Job(
            loaded,
            record.trace_id,
            earlier,
            lambda executor: executor.resume_from_checkpoint(
                record.trace_id,
                answers=named,
                accept_graph_change=accept_graph_change,
                take_over=take_over,
                rerun_effects=rerun_effects,
                force=force,
            ),
        )

    execute(prepare, must_exist=True, **common)


@click.command()
@trace_argument
@at_option
@set_option
@id_option
@graph_option
@accept_option
@common_options
@click.pass_context
def fork(
    context: click.Context,
    /,
    trace: str,
    at: str | int,
    variables: dict[str, Any],
    trace_id: str | None,
    graph: str | None,
    accept_graph_change: bool,
    **common: Any,
) -> None:
    """Start a new trace from a kept checkpoint of another.

    The new trace shares all that was done before; the old one stays as it is.
    """
    from tinyllm.cli.drive import Job
    from tinyllm.core.store import check_trace_id, find_trace, free_trace_id

    name = check_trace_id(trace_id) if trace_id is not None else None

    async def prepare(storage: CheckpointStorage) -> Job:
        record = await find_trace(storage, trace)
        loaded = graph_of(record, graph, storage)
        child = name or await free_trace_id(storage, record.graph_id)
        known = await storage.trace(child) is not None
        earlier = await earlier_steps(storage, child if known else record.trace_id)
        return Job(
            loaded,
            child,
            earlier,
            lambda executor: executor.fork(
                record.trace_id, at=at, set=variables, new_trace_id=child, accept_graph_change=accept_graph_change
            ),
            None if known else f"{record.trace_id} at {f'step {at}' if isinstance(at, int) else at}",
        )

    context.meta[AGAIN] = [
        *("fork", trace, "--at", str(at)),
        *(word for key, value in variables.items() for word in ("--set", f"{key}={json.dumps(value)}")),
        *(["--id", name] if name else []),
        *(["--graph", graph] if graph else []),
    ]

    execute(prepare, must_exist=True, **common)


def graph_of(record: TraceRecord, given: str | None, storage: CheckpointStorage) -> Graph:
    """The graph to go on with: `--graph`, else the file that the trace was last executed with.

    :raises click.UsageError: that file is gone, or there was none, or the store is another user's.
    """
    if given is not None:
        return load(given)
    if record.graph_path is None:
        raise click.UsageError(
            f"trace {record.trace_id!r} was not executed from a graph file; name one with --graph FILE, or resume it "
            f"in the program that built graph {record.graph_id!r}"
        )
    if not os.path.exists(record.graph_path):
        again = command_line("resume", record.trace_id, "--graph", "FILE")
        raise click.UsageError(f"the graph file {record.graph_path} is gone; name it where it is now:\n  {again}")
    if os.stat(storage.name).st_uid != os.geteuid():  # who wrote it would choose what code we run
        verb = click.get_current_context().meta.get(AGAIN, ["resume", record.trace_id])
        again = command_line(*verb, "--graph", record.graph_path)
        trust = f"it is another user's store that names the graph file; if you trust that file:\n  {again}"
        raise click.UsageError(trust)
    return load(record.graph_path)


async def earlier_steps(storage: CheckpointStorage, trace_id: str) -> list[StepRow]:
    """A trace's durable steps, in order; of a damaged one, those before the damage."""
    from tinyllm.errors import CheckpointDamaged

    steps: list[StepRow] = []
    with suppress(CheckpointDamaged):
        while page := await storage.steps(trace_id, after=steps[-1].step if steps else 0, limit=10_000):
            steps += page
    return steps


def execute(
    prepare: Callable[[CheckpointStorage], Awaitable[Job]],
    *,
    must_exist: bool,
    storage: str | None,
    durability: Any,
    redact: tuple[str, ...],
    kill_after: int | None,
    as_json: bool,
) -> None:
    """Execute, print the outcome, and end the command with its exit code."""
    from tinyllm.cli.drive import drive
    from tinyllm.core.executor import ExecutorConfig
    from tinyllm.errors import ExecutionError

    config = ExecutorConfig(durability=durability, redact=rules_of(redact))
    try:
        response, executed = drive(
            prepare, storage=storage, must_exist=must_exist, config=config, kill_after=kill_after
        )
    except ExecutionError as error:
        if as_json and error.response is not None:
            print_json(error.response)
        raise
    if not executed:
        what = "this is its recorded result" if response.success else "nothing was run"
        say(f"{response.trace_id}: {response.status} before; {what}", err=True)
    if as_json:
        print_json(response)
    elif response.success and response.value is None:
        say(f"{response.trace_id}: the result is None", err=True)
    elif response.success:
        say_result(response.content)
    sys.exit(_conclude(response))


def _conclude(response: TaskResponse) -> int:
    """Say how to go on with a trace that has not ended, and give the exit code."""
    again = command_line("resume", response.trace_id)
    match response.status:
        case "completed":
            return DONE
        case "paused" if response.questions:
            say("\n".join(question_lines(response.questions)), err=True)
            return PAUSED
        case "cancelled":
            kept = command_line("checkpoints", response.trace_id)
            say(f"it is not resumed any more; a fork can start from what is kept:\n  {kept}", err=True)
            return FAILED
        case "paused" | "interrupted":
            say(f"continue with:\n  {again}", err=True)
            return PAUSED if response.status == "paused" else INTERRUPTED
        case _:
            return FAILED


def print_json(response: TaskResponse) -> None:
    say_json(response_object(response))
