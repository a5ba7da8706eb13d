"""What the scripts for Apache Burr share: an application that runs one action again and again, and its two persisters.

Modes: `none` persists nothing; `shipped` is the SQLitePersister under `Application.run`, `shipped-async` the
AsyncSQLitePersister under `Application.arun`; both as they come (a rollback journal, `synchronous=FULL`); both persist
the whole state after each action, before the next one. `none` runs without coroutines too, which is quicker.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from burr.core import Action, Application, ApplicationBuilder, State, action, default, expr
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister

from common import Case, Clock, Figures, disk_bytes

MODES = ("none", "shipped", "shipped-async")

Change = Callable[[State], State]


@action(reads=[], writes=[])
def end(state: State) -> State:
    return state


def measured(case: Case, small: int, keys: list[str], first: dict[str, Any], change: Change) -> Figures:
    """Wall time of `n` steps that each apply `change` to `keys` of the state, after a case of size `small` in a store
    of its own; `change` counts in `count`."""
    if case.mode not in MODES:
        raise SystemExit(f"no mode {case.mode!r}: there are {', '.join(MODES)}")
    for name, n in (("warm-up", small), ("store", case.n)):
        sized = replace(case, n=n, folder=case.folder / name)
        sized.folder.mkdir()
        run = _run_async(sized, keys, first, change) if case.mode == "shipped-async" else None
        figures = asyncio.run(run) if run else _run(sized, keys, first, change)
    if case.mode != "none":
        figures["disk_bytes"] = disk_bytes(sized.folder)
        empty = case.folder / "empty"
        empty.mkdir()
        with SQLitePersister.from_values(db_path=str(empty / "burr.db")) as persister:
            persister.initialize()
        figures["empty_bytes"] = disk_bytes(empty)
    return figures


def _run(case: Case, keys: list[str], first: dict[str, Any], change: Change) -> Figures:
    @action(reads=keys, writes=keys)
    def step(state: State) -> State:
        return change(state)

    builder = _builder(case.n, step, first)
    if case.mode == "none":
        return _timed(builder.build(), case.n)
    with SQLitePersister.from_values(db_path=str(case.folder / "burr.db")) as persister:
        persister.initialize()
        figures = _timed(builder.with_state_persister(persister).build(), case.n)
        for name in ("journal_mode", "synchronous"):
            figures[name] = str(persister.connection.execute(f"PRAGMA {name}").fetchone()[0])
        return figures


def _timed(application: Application, n: int) -> Figures:
    with Clock() as clock:
        _, _, state = application.run(halt_after=["end"])
    assert state["count"] == n
    return {"us_per_node": clock.seconds / n * 1e6}


async def _run_async(case: Case, keys: list[str], first: dict[str, Any], change: Change) -> Figures:
    @action(reads=keys, writes=keys)
    async def step(state: State) -> State:
        return change(state)

    async with AsyncSQLitePersister.from_values(db_path=str(case.folder / "burr.db")) as persister:
        await persister.initialize()
        application = await _builder(case.n, step, first).with_state_persister(persister).abuild()
        with Clock() as clock:
            _, _, state = await application.arun(halt_after=["end"])
        assert state["count"] == case.n
        figures: Figures = {"us_per_node": clock.seconds / case.n * 1e6}
        for name in ("journal_mode", "synchronous"):
            async with persister.connection.execute(f"PRAGMA {name}") as rows:
                figures[name] = str((await rows.fetchone())[0])
        return figures


def _builder(n: int, step: Action, first: dict[str, Any]) -> ApplicationBuilder:
    return (
        ApplicationBuilder()
        .with_actions(step=step, end=end)
        .with_transitions(("step", "end", expr(f"count >= {n}")), ("step", "step", default))
        .with_state(count=0, **first)
        .with_entrypoint("step")
        .with_identifiers(app_id=uuid.uuid4().hex)
    )
