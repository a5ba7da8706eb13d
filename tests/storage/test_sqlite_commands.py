"""What commands cost where there are none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storage.deltas import Writer
from tinyllm.storage.contract import Admitted, CheckpointStorage, Command, Leave, Left
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
async def storage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteCheckpointStorage]:
    opened = SQLiteCheckpointStorage(tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


async def admitted(storage: CheckpointStorage, count: int, owner: str) -> list[Writer]:
    writers = [Writer(f"t{number}", owner) for number in range(count)]
    for writer, outcome in zip(writers, await storage.commit([writer.admit() for writer in writers]), strict=True):
        writer.admitted(outcome)
    return writers


async def asked(storage: SQLiteCheckpointStorage, owner: str) -> tuple[list[Command], int]:
    """What was left for `owner`, and for how many tens of instructions of SQLite's machine it was looked for."""
    assert storage._reading is not None
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    storage._reading.set_progress_handler(count, 10)
    found = await storage.commands(owner=owner)
    storage._reading.set_progress_handler(None, 10)
    return found, counted


async def test_looking_for_commands_costs_nothing_where_there_are_none(storage: SQLiteCheckpointStorage) -> None:
    """Neither for each trace of the owner, nor for each command that was consumed."""
    owner = this_process()
    storage.renew(owner)
    writers = await admitted(storage, 1000, owner.id)
    first = writers[0]
    answers = [Leave(first.key, "t0", "answer", b"%016d" % number, "why", b"1") for number in range(1000)]
    ids = [outcome.command for outcome in await storage.commit(answers) if isinstance(outcome, Left)]
    await storage.commit([first.append(body=None, consumed=ids)])
    assert (await asked(storage, owner.id))[0] == []
    assert (await asked(storage, owner.id))[1] <= 10
    await storage.commit([Leave(writers[500].key, "t500", "pause")])
    found, cost = await asked(storage, owner.id)
    assert [command.trace for command in found] == [writers[500].key]
    assert cost <= 20


async def test_a_delta_that_consumes_no_command_looks_for_none(storage: SQLiteCheckpointStorage) -> None:
    writer = Writer("t")
    (outcome,) = await storage.commit([writer.admit(plan=["a"] * 4)])
    assert isinstance(outcome, Admitted)
    writer.admitted(outcome)
    (left,) = await storage.commit([Leave(writer.key, "t", "pause")])
    assert isinstance(left, Left)
    assert storage._connection is not None
    statements: list[str] = []
    storage._connection.set_trace_callback(statements.append)
    await storage.commit([writer.append(end=1, plan=["a"])])
    assert not [statement for statement in statements if "commands" in statement]
    usual = len(statements)
    await storage.commit([writer.append(end=3, plan=["a"], consumed=[left.command])])
    storage._connection.set_trace_callback(None)
    assert len([statement for statement in statements if "commands" in statement]) == 2
    assert len(statements) == 2 * usual + 2
