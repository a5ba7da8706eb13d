"""The commands for supervisors: `supervise`, `status`, `drain`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.options import (
    accept_option,
    durability_option,
    json_option,
    log_level_option,
    log_level_option_of,
    redact_option,
    rules_of,
    storage_option,
)
from tinyllm.cli.report import FAILED, INTERRUPTED, NOT_FOUND
from tinyllm.cli.text import plural, printable, say, say_json, width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinyllm.cli.supervision import Silent, Standing
    from tinyllm.storage.contract import Backlog, CheckpointStorage, Demand
    from tinyllm.supervisor.control import Answer
    from tinyllm.supervisor.status import Status

COLUMNS = 80
"""Where stdout is no terminal, which would say how wide it is."""

WATCH_SECONDS = 1.0

DRAIN_SECONDS = 0.1
"""Between two looks whether a supervisor has ended: finding out costs one connection."""


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
    """Execute what waits in the store, in worker processes.

    That is, traces of the graphs in the files GRAPH. Workers claim what was submitted, and what was interrupted. Those
    that die or hang are replaced, and their traces go on from where they were. SIGTERM or Ctrl-C drains: nothing more
    is claimed, and running nodes may end. A second one ends everything at once. No trace is lost either way.
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


@click.command()
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
@storage_option
@json_option
@log_level_option
def status(watch: bool, storage: str | None, as_json: bool) -> None:
    """Show how the supervisors of the store are.

    Their workers, traces, rates, lag, restarts and deaths. Where no supervisor serves the store, shows what waits in
    it, and ends with exit code 4.
    """
    import anyio

    if watch:
        anyio.run(_watch, storage, as_json)
        return
    standing = anyio.run(_look, storage)
    _print(standing, as_json)
    if not standing.supervisors:
        from tinyllm.errors import NotSupervised

        raise NotSupervised(standing.store, standing.graphs)


def _print(standing: Standing, as_json: bool, *, compact: bool = False) -> None:
    from tinyllm.cli.supervision import standing_lines, standing_object

    if as_json:
        say_json(standing_object(standing), compact=compact)
    else:
        say("\n".join(standing_lines(standing, time.time(), width() or COLUMNS)))


async def _watch(storage: str | None, as_json: bool) -> None:
    import anyio

    raised: Exception | None = None

    async def show() -> None:
        nonlocal raised
        try:
            with _screen(as_json) as draw:
                while True:
                    draw(await _look(storage))
                    await anyio.sleep(WATCH_SECONDS)
        except Exception as error:
            raised = error  # carried past the task group, which would wrap it in a group
            tasks.cancel_scope.cancel()

    # Both signals, so that the terminal gets its cursor back.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(show)
            async for _ in signals:
                break
            tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


@contextmanager
def _screen(as_json: bool) -> Iterator[Callable[[Standing], None]]:
    """Draws over what it drew before, on a terminal that can and where rich is installed; else writes it below."""
    if as_json or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", None):
        yield partial(_plain, as_json)
        return
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        yield partial(_plain, as_json)
        return
    from rich.text import Text

    from tinyllm.cli.supervision import standing_lines

    # It is refreshed when there is something new, not by a thread of rich's.
    with Live(console=Console(highlight=False, markup=False), auto_refresh=False) as live:

        def draw(standing: Standing) -> None:
            lines = standing_lines(standing, time.time(), width() or COLUMNS)
            live.update(Text(printable("\n".join(lines)), no_wrap=True, overflow="ellipsis"), refresh=True)

        yield draw


def _plain(as_json: bool, standing: Standing) -> None:
    _print(standing, as_json, compact=True)
    if not as_json:
        say("")
    sys.stdout.flush()


async def _look(storage: str | None) -> Standing:
    """
    :raises StoreMissing: there is no store.
    """
    from tinyllm.cli.supervision import Standing
    from tinyllm.core.store import opened_storage
    from tinyllm.errors import NotSupervised
    from tinyllm.supervisor.control import asked

    store = _store(storage)
    try:
        answers = await asked(store, "status")
    except NotSupervised:
        async with opened_storage(store, must_exist=True) as opened:
            backlog, graphs, unserved = await _waiting(opened)
        return Standing(str(store), (), backlog, graphs, unserved)
    said = tuple(_said(answer) for answer in answers)
    return Standing(str(store), said, unserved=await _unserved(store, said))


async def _unserved(store: Path, said: tuple[Status | Silent, ...]) -> tuple[Demand, ...] | str:
    """The graphs of which traces wait that nobody serves; or why that is not known."""
    from tinyllm.cli.supervision import Silent
    from tinyllm.core.store import opened_storage
    from tinyllm.errors import StorageError

    served: set[str] = set()
    for each in said:
        if isinstance(each, Silent):
            return f"supervisor {each.id} did not say which graphs it serves"
        served.update(each.graphs)
    try:
        async with opened_storage(store, must_exist=True) as opened:
            demand = await opened.demand()
    except StorageError as error:  # how the supervisors are is shown all the same
        return str(error)
    return tuple(each for each in demand if each.waiting and each.graph_id not in served)


def _said(answer: Answer) -> Status | Silent:
    from tinyllm.cli.supervision import Silent
    from tinyllm.errors import ValueMismatch
    from tinyllm.supervisor.status import from_json

    if answer.ok is None:
        return Silent(answer.supervisor, str(answer.error))
    try:
        return from_json(answer.ok)
    except ValueMismatch as error:
        return Silent(answer.supervisor, f"it is of another version, or none of ours: {error}")


async def _waiting(store: CheckpointStorage) -> tuple[Backlog, tuple[str, ...], tuple[Demand, ...]]:
    """What there is to do in the store, of whatever graphs, the files of those graphs, and those of which any waits."""
    demand = await store.demand()
    paths = {each.graph_path for each in demand if each.graph_path is not None}
    backlog = await store.backlog([each.graph_id for each in demand])
    return backlog, tuple(sorted(paths)), tuple(each for each in demand if each.waiting)


def _store(storage: str | None) -> Path:
    from tinyllm.core.store import open_storage

    return Path(open_storage(storage, must_exist=True).name)


@click.command()
@storage_option
@json_option
@log_level_option
def drain(storage: str | None, as_json: bool) -> None:
    """Let the supervisors of the store end.

    They claim no more traces, let those that run come to a durable point, and end; this waits for it. Ctrl-C ends the
    waiting only.
    """
    import anyio

    from tinyllm.errors import NotSupervised

    store = _store(storage)
    try:
        ended, failed = anyio.run(_drain, store)
    except NotSupervised:  # whose advice is to start one
        say(f"error: no supervisor serves the store at {store}: there is nothing to drain", err=True)
        click.get_current_context().exit(NOT_FOUND)
    if as_json:
        errors = [{"id": answer.supervisor, "error": answer.error} for answer in failed]
        say_json({"store": str(store), "ended": [answer.supervisor for answer in ended], "failed": errors})
    elif ended:
        say(f"{plural(len(ended), 'supervisor')} of {store} ended: {_names(ended)}")
    for answer in failed:
        say(f"error: supervisor {answer.supervisor} was not told to drain: {answer.error}", err=True)
    if failed:
        click.get_current_context().exit(FAILED)


async def _drain(store: Path) -> tuple[list[Answer], list[Answer]]:
    """Those that ended, and those that did not hear of it.

    :raises NotSupervised: there are none.
    """
    import anyio

    from tinyllm.supervisor.control import alive, asked

    answers = await asked(store, "drain")
    told = [answer for answer in answers if answer.ok is not None]
    if told:
        say(f"draining: {_names(told)}", err=True)
    for answer in told:
        while alive(answer.socket):
            await anyio.sleep(DRAIN_SECONDS)
    return told, [answer for answer in answers if answer.ok is None]


def _names(answers: list[Any]) -> str:
    return ", ".join(answer.supervisor for answer in answers)
