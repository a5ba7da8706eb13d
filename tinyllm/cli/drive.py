"""Executes one trace from the command line: signals, the view, the rehearsed crash."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, redirect_stdout
from types import FrameType
from typing import Any

import anyio
import attrs
from anyio.abc import TaskStatus

from tinyllm.actors.events import Committed, Event, TraceStarted
from tinyllm.cli.options import command_line
from tinyllm.cli.progress import Progress
from tinyllm.cli.report import INTERRUPTED
from tinyllm.cli.text import plural
from tinyllm.cli.view import View, choose_view
from tinyllm.core.executor import Executor, ExecutorConfig
from tinyllm.core.store import opened_storage
from tinyllm.graph.definition import Graph
from tinyllm.graph.messages import TaskResponse
from tinyllm.storage.contract import CheckpointStorage, StepRow


@attrs.frozen
class Job:
    """What a command executes. `earlier`: the durable steps of the trace, or of the one it is forked from; `origin`:
    where that is, for a trace that is a fork from now on."""

    graph: Graph
    trace_id: str
    earlier: Sequence[StepRow]
    act: Callable[[Executor], Awaitable[TaskResponse]]
    origin: str | None = None


def drive(
    prepare: Callable[[CheckpointStorage], Awaitable[Job]],
    *,
    storage: str | None,
    must_exist: bool,
    config: ExecutorConfig,
    kill_after: int | None,
) -> tuple[TaskResponse, bool]:
    """Execute what `prepare` finds in the store. -> the response, and whether anything was executed for it.

    What nodes print goes to stderr: stdout is for the result.
    """

    async def go() -> tuple[TaskResponse, bool]:
        async with opened_storage(storage, must_exist=must_exist) as store:
            job = await prepare(store)
            view = choose_view(Progress(job.graph.nodes, job.earlier), job.origin)
            watch = crash_after(kill_after, view) if kill_after is not None else view.event
            with closing(view):
                async with Executor(job.graph, config, store, on_event=watch) as executor:
                    response = await _under_signals(executor, job, view)
            return response, view.progress.begun is not None

    with redirect_stdout(sys.stderr):
        return anyio.run(go)


async def _under_signals(executor: Executor, job: Job, view: View) -> TaskResponse:
    """The first signal stops the executor, the second ends the process."""
    outcome: TaskResponse | Exception
    async with anyio.create_task_group() as tasks:
        await tasks.start(_stop_at_signal, executor, job.trace_id, view, name="signals")
        try:
            outcome = await job.act(executor)
        except Exception as error:  # raised below: out of a task group it would come wrapped in a group
            outcome = error
        tasks.cancel_scope.cancel()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _stop_at_signal(executor: Executor, trace_id: str, view: View, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        _leave_at_second(trace_id, view)
        task_status.started()
        async for _ in signals:
            executor.stop()
            running = sum(node.running for node in view.progress.nodes.values())
            finish = f"letting {plural(running, 'running node')} finish" if running else "saving"
            view.note(f"stopping {trace_id}: {finish}; Ctrl-C again to exit now")


def _leave_at_second(trace_id: str, view: View) -> None:
    """Count signals in their handlers: a node that blocks the loop keeps the receiver from running, not these."""
    seen = 0
    text = f"left {trace_id}; all that was durable is kept; continue with:\n  {command_line('resume', trace_id)}\n"

    def counting(passed_on: Any) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal seen
            seen += 1
            if seen > 1:
                # Straight to the file: this may have interrupted a write to the buffered stream.
                os.write(2, view.restore_terminal + text.encode())
                os._exit(INTERRUPTED)
            passed_on(number, frame)

        return handle

    for number in (signal.SIGINT, signal.SIGTERM):
        # What the receiver put there goes on being called; at its end the receiver removes it, and with it this.
        signal.signal(number, counting(signal.getsignal(number)))


def crash_after(steps: int, view: View) -> Callable[[Event], None]:
    """Shows events in `view` and kills this process, with no chance to tidy up, once `steps` steps are durable that
    were not at the start: the same command, typed again, goes past that point."""
    armed = False

    def watch(event: Event) -> None:
        nonlocal armed
        view.event(event)
        match event:
            case TraceStarted():
                armed = event.kept < steps
            case Committed() if armed and event.step >= steps:
                sys.stdout.flush()
                sys.stderr.flush()
                text = f"{event.trace_id}: killing this process, {plural(event.step, 'step')} are durable\n"
                os.write(2, view.restore_terminal + text.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    return watch
