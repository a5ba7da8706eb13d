"""Give tinyllm a store that somebody else wrote, with things in its rows that no tinyllm ever wrote, and see that each
is refused as what it is: by one of its own errors, in little time and memory, and without a word to the terminal.

A child process does all that can be done with such a store. It may have only so much memory and time.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
from click.testing import CliRunner

from tests.torture.trial import Task, Trial, Violation
from tinyllm import Executor, Graph, GraphBuilder, NodeContext, Result, Retry, SQLiteCheckpointStorage
from tinyllm.cli.main import cli
from tinyllm.core import outside
from tinyllm.errors import TinyLLMError
from tinyllm.storage.framing import decode
from tinyllm.storage.sqlite import schema
from tinyllm.storage.sqlite.database import FILE_NAME
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.seals import message_seal, variable_seal

MEMORY = 512 * 2**20
"""Bytes that reading may take more than what the process has when it begins."""
SECONDS = 10
"""Of the processor, and of the clock no more than twelve times as many, on a machine that has much else to do."""

_DEEP = 1_000_000
_BOMB = b"\x01" + (64 * 2**20).to_bytes(4, "big") + zlib.compress(bytes(65 * 2**20), 1)
_COMMAND = "\x1b]0;owned\x07\x9b31m"
"""What sets a terminal's title, and its colour in the eight bits of C1."""

VALUES: Sequence[Any] = (
    *(None, -1, 0, 1, 7, 2**31, 2**40, 2**63 - 1, -(2**63), 0.5, -1e308, float("inf")),
    *("", "x", "null", "5", "[]", "{}", "1.x", "-1", "'; DROP TABLE traces; --", "../../etc/passwd", "a\0b", _COMMAND),
    *("[" * _DEEP, '{"a":' * _DEEP, "[" * _DEEP + "]" * _DEEP, "9" * 10_000, "1e999", '{"a":1,"a":2}', "x" * _DEEP),
    *('{"$unknown":1}', '{"$dict":[[[],1]]}', '{"$tuple":5}', '{"$set":[[]]}', '{"$int":"0x1","b":2}', '{"$path":7}'),
    *('{"$payload":5}', '{"$payload":{"x":1}}', '{"$payload":{"error":{"y":1}}}', '{"$payload":{"metadata":7}}'),
    *('{"$message":[]}', '{"$message":[1,2]}', '{"$message":[[1,2,3,4,5],6]}', '{"$message":5}', '"\\ud800"'),
    *('[["q","p",null,null]]', "[[1,2,3,4]]", '[["q","p",{"$ref":"file:///dev/zero"},null]]', '{"topology":5}'),
    *('{"topology":{},"details":{}}', '{"topology":{"nodes":5,"edges":[1]},"details":[]}', '{"type":"x"}'),
    *(b"", b"\0", b"\0{}", b"\1", b"\2", b"\xff" * 16, _BOMB, b"\0" + b"[" * _DEEP),
)

TABLES = ("traces", "graphs", "messages", "activations", "arrivals", "variables", "steps", "checkpoints", "commands")


OF_BODIES: dict[str, tuple[str, Callable[..., int]]] = {
    "messages": ("id, node, history, consumers, body", message_seal),
    "variables": ("id, key, kind, base, sort, body", variable_seal),
}
"""The tables in which a checksum is of a body, with what it belongs to, and by what it is made."""


# -- a store -----------------------------------------------------------------------------------------------------


def everything() -> Graph:
    """A graph of which nearly every kind of row is written."""

    async def plan(task: str) -> Result:
        return Result([1, 2, 3], set={"found": 1, "told": {"a": task}, "count": 2, "plain": (task, 1.5)})

    async def work(number: int, context: NodeContext) -> Result:
        await context.save_progress({"at": number})
        if context.attempt == 1 and number == 2:
            raise ValueError("not yet")
        return Result(number * number, set={"found": number, "count": 1}, status="fine")

    async def ask(values: list[int], context: NodeContext) -> str:
        return str(await context.ask("how many?", name="how many", schema={"type": "integer"}))

    builder = GraphBuilder("everything", variables={"found": "append", "told": "merge", "count": "add"})
    builder.node(plan).node(work, retry=Retry(max_attempts=2, initial=0.001)).node(ask, join="all")
    return builder.edge("plan", "work", for_each=True).edge("work", "ask").build()


async def write(folder: Path) -> None:
    async with Executor(everything(), checkpoint_storage=folder) as executor:
        for name in ("done", "asking", "told"):
            await executor.execute("x" * 5000, trace_id=name)
        await executor.resume_from_checkpoint("done", answers={"how many": 7})
        await executor.fork("asking", at=2, set={"plain": 3}, new_trace_id="fork")
        await executor.fork("fork", at=3, new_trace_id="grandchild")
    async with opened(folder) as storage:
        await outside.tag(storage, "done", "good")
        await outside.leave_answers(storage, "told", [(None, 3)])


def opened(folder: Path) -> Any:
    from tinyllm.core.store import opened_storage

    return opened_storage(folder)


def change(folder: Path, randomly: random.Random) -> str:
    """Change some values of the store in `folder`, and make the checksums beside them right again."""
    said = []
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        tables = [table for table in TABLES if connection.execute(f"SELECT 1 FROM {table}").fetchone()]
        for _ in range(randomly.choice((1, 1, 1, 2, 4))):
            table = randomly.choice(tables)
            column = randomly.choice([row[1] for row in connection.execute(f"PRAGMA table_info({table})")])
            rows = [row for (row,) in connection.execute(f"SELECT rowid FROM {table}")]
            row = randomly.choice(rows)
            value = randomly.choice(VALUES)
            if randomly.random() < 0.3:  # what fits, but not there
                (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (randomly.choice(rows),))
                (value,) = value
            as_text = isinstance(value, bytes) and randomly.random() < 0.2  # in an encoding that it is not in
            with suppress(sqlite3.Error, OverflowError):  # the key of another row, or nothing where something must be
                binding = "CAST(? AS TEXT)" if as_text else "?"
                connection.execute(f"UPDATE {table} SET {column} = {binding} WHERE rowid = ?", (value, row))
                said.append(f"{table}.{column} of row {row} is {'text of ' * as_text}{short(value)}")
                seal_again(connection, table)
    return "; ".join(said)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}... ({len(text)})"


def seal_again(connection: sqlite3.Connection, table: str) -> None:
    if table not in OF_BODIES:
        with suppress(sqlite3.Error):  # what cannot be handed to Python is not sealed
            schema.seal_all(connection)
        return
    columns, made = OF_BODIES[table]
    for row in connection.execute(f"SELECT {columns} FROM {table}").fetchall():
        with suppress(Exception):  # a row that no checksum could be made of
            connection.execute(f"UPDATE {table} SET crc = ? WHERE id = ?", (made(*row[:-1], decode(row[-1])), row[0]))


# -- all that can be done with it --------------------------------------------------------------------------------


@attrs.define
class Tally:
    refused: Counter[str] = attrs.field(factory=Counter)
    fine: int = 0


async def use(folder: Path, tally: Tally) -> None:
    graph = everything()

    async def expect(what: Callable[[], Awaitable[Any]]) -> None:
        try:
            await what()
            tally.fine += 1
        except TinyLLMError as error:
            tally.refused[type(error).__name__] += 1
            str(error)

    async def read(name: str) -> None:
        async with opened(folder) as storage:
            await expect(lambda: storage.definition(name))
            await expect(lambda: storage.messages(name))
            await expect(lambda: storage.steps(name))
            await expect(lambda: storage.commands())
            await expect(lambda: look(storage, name))

    async def look(storage: SQLiteCheckpointStorage, name: str) -> None:
        for checkpoint in await storage.checkpoints(name):
            await expect(lambda checkpoint=checkpoint: as_program(checkpoint))  # type: ignore[misc]

    async def as_program(checkpoint: Any) -> None:
        _ = [*(message for message in checkpoint.messages), *(node for node in checkpoint.visited_nodes)]
        dict(checkpoint.state)

    async def resume(name: str) -> None:
        async with Executor(graph, checkpoint_storage=folder) as executor:
            await expect(lambda: executor.resume_from_checkpoint(name, accept_graph_change=True))
            await expect(lambda: executor.fork(name, at=1, new_trace_id=f"new-{name}", accept_graph_change=True))
            await expect(lambda: executor.answer(name, 5))

    for name in ("done", "told", "grandchild"):
        await expect(lambda name=name: read(name))  # type: ignore[misc]
        await expect(lambda name=name: resume(name))  # type: ignore[misc]


def command(folder: Path, *words: str) -> None:
    told = CliRunner().invoke(cli, [*words, "--storage", str(folder)], prog_name="tinyllm")
    if told.exception is not None and not isinstance(told.exception, SystemExit):
        raise told.exception
    if "This is a fault in tinyllm" in told.output:
        raise AssertionError(told.output)
    if any(character in told.output for character in ("\x1b", "\x07", "\x9b")):
        raise AssertionError(f"{' '.join(words)} commands the terminal: {told.output!r}")


def act(folder: Path, pipe: int) -> None:
    """In the child: say in `pipe` what went wrong."""
    warnings.simplefilter("ignore")  # a process that forks
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(12 * SECONDS)
    tally = Tally()
    try:
        for words in (["list"], ["list", "--json"], ["checkpoints"], ["show", "asking"], ["show", "done", "--json"]):
            command(folder, *words)
        command(folder, "doctor")
        anyio.run(use, folder, tally)
    except BaseException:
        os.write(pipe, b"!" + traceback.format_exc()[-3000:].encode("utf-8", "replace"))
    else:
        os.write(pipe, f"{tally.fine} {tally.refused.total()}".encode())


def attempt(folder: Path) -> str:
    """Use the store in `folder` in a child process; what it says."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            act(folder, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status:
        return f"!it died of signal {status & 0x7F}: it took too long, or what it read killed it"
    return said


def run_trial(task: Task) -> str:
    task.plant_it()
    template = task.folder / "template"
    if not (child := os.fork()):  # no thread of this process may be there when it forks
        try:
            anyio.run(write, template)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    fine = refused = 0
    for number in task.numbers():
        folder = task.folder / "store"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        what = change(folder, random.Random(f"{task.seed}/{number}"))
        said = attempt(folder)
        if said.startswith("!"):
            raise Violation(f"{what}:\n{said[1:]}")
        fine, refused = (total + int(more) for total, more in zip((fine, refused), said.split(), strict=True))
    return f"{fine + refused:,} calls, of which {refused:,} were refused by an error of tinyllm's own: no other"


TRIALS = (Trial("hostile", "a store has in its rows what no tinyllm ever wrote there", 100, 20_000, run_trial),)
