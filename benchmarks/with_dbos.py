"""What the scripts for DBOS share: an application on SQLite, launched and destroyed, and its connection's pragmas.

Modes: `shipped` is DBOS as it comes (a rollback journal, `synchronous=FULL`); `walfull` sets WAL and FULL on each
of its connections. Both wait for the commit of a step before the next one starts. Workflows and steps are coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSConfig

from common import Case, Figures, disk_bytes

MODES = ("shipped", "walfull")


def _wal_and_full(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


@contextmanager
def _launched(case: Case) -> Iterator[DBOS]:
    if case.mode == "walfull" and not sqlalchemy.event.contains(sqlalchemy.Engine, "connect", _wal_and_full):
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _wal_and_full)
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": f"sqlite:///{case.folder / 'dbos.db'}",
        "log_level": "ERROR",
        "application_version": "1",
    }
    application = DBOS(config=config)
    DBOS.launch()
    try:
        yield application
    finally:
        DBOS.destroy()


def _pragmas(application: DBOS) -> Figures:
    """As they are in force on a connection of DBOS's own pool."""
    found: Figures = {}
    with application._sys_db.engine.connect() as connection:
        for name in ("journal_mode", "synchronous"):
            found[name] = str(connection.execute(sqlalchemy.text(f"PRAGMA {name}")).scalar())
    return found


def measured(case: Case, small: int, run: Callable[[Case], Awaitable[Figures]]) -> Figures:
    """The figures of `run`, after a case of size `small` in a store of its own, both on one event loop."""

    if case.mode not in MODES:
        raise SystemExit(f"no mode {case.mode!r}: there are {', '.join(MODES)}")

    async def both() -> Figures:
        for name, n in (("warm-up", small), ("store", case.n)):
            sized = replace(case, n=n, folder=case.folder / name)
            sized.folder.mkdir()
            with _launched(sized) as application:
                figures = await run(sized) | _pragmas(application)
        empty = replace(case, folder=case.folder / "empty")
        empty.folder.mkdir()
        with _launched(empty):
            pass
        return figures | {"disk_bytes": disk_bytes(sized.folder), "empty_bytes": disk_bytes(empty.folder)}

    return asyncio.run(both())
