"""From what a person types to a store and a trace in it: paths, trace ids, references."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tinyllm.errors import AmbiguousTrace, CheckpointDamaged, ConfigError, StoreMissing, TraceNotFound
from tinyllm.graph.ids import NAME, is_name
from tinyllm.storage import near
from tinyllm.storage.contract import CheckpointStorage, StorageConfig, TraceRecord

ENVIRONMENT = "TINYLLM_STORAGE"

LAST = "@last"
"""The reference that means the trace most recently updated."""

_TRACE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TYPEABLE = "23456789abcdefghjkmnpqrstuvwxyz"  # none of 0 o 1 i l, which are taken for one another
_SUFFIX = 5


def storage_path(path: str | os.PathLike[str] | None = None) -> Path:
    """`path`, else `$TINYLLM_STORAGE`, else `~/.tinyllm/data`."""
    return Path(path or os.environ.get(ENVIRONMENT) or StorageConfig().sqlite_path).expanduser()


def open_storage(path: str | os.PathLike[str] | None = None, *, must_exist: bool = False) -> CheckpointStorage:
    """The SQLite store at `storage_path(path)`, not yet initialized. `must_exist`: what only reads makes no store.

    :raises StoreMissing: with `must_exist`, if nothing is there.
    """
    place = storage_path(path)
    if must_exist and not os.path.lexists(place):
        raise StoreMissing(str(place), "nothing is there")
    from tinyllm.storage.sqlite import SQLiteCheckpointStorage  # imports sqlite-utils, which costs some 80 ms

    return SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(place)))


@asynccontextmanager
async def opened_storage(
    path: str | os.PathLike[str] | None = None, *, must_exist: bool = False
) -> AsyncIterator[CheckpointStorage]:
    """The store of `open_storage()`, initialized, and closed at the end."""
    storage = open_storage(path, must_exist=must_exist)
    try:
        await storage.initialize()
        yield storage
    finally:
        await storage.close()


@asynccontextmanager
async def borrowed_storage(storage: CheckpointStorage) -> AsyncIterator[CheckpointStorage]:
    """A storage that somebody else opened, or did not yet, and closes."""
    await storage.initialize()
    yield storage


async def find_trace(storage: CheckpointStorage, reference: str, *, damaged: bool = False) -> TraceRecord:
    """The trace whose id is `reference`, or the only one whose id begins so, or for `@last` the one last updated.
    `damaged`: also one whose record is damaged, as lists show it.

    :raises TraceNotFound: with the ids that look like it.
    :raises AmbiguousTrace: the prefix fits several.
    """
    if reference == LAST:
        newest = await storage.traces(limit=1)
        if not newest:
            raise TraceNotFound(reference, storage.name)
        return newest[0]
    try:
        exact = await storage.trace(reference) if reference else None
    except CheckpointDamaged:
        if not damaged:
            raise
        exact = await shown(storage, reference)
    if exact is not None:
        return exact
    matches = await storage.traces(prefix=reference, limit=6) if reference else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = [record.trace_id for record in matches]
        raise AmbiguousTrace(reference, [*names[:5], "..."] if len(names) > 5 else names)
    known = await storage.traces(limit=near.AMONG)
    raise near.not_found(reference, storage.name, (record.trace_id for record in known))


async def shown(storage: CheckpointStorage, trace_id: str) -> TraceRecord:
    """A trace as lists show it, whether its record is whole or not."""
    return next(each for each in await storage.traces(prefix=trace_id, limit=1000) if each.trace_id == trace_id)


def new_trace_id(graph_id: str) -> str:
    """An id that a person can type: the graph's id and five random characters, `survey-7k3mq`."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", graph_id).lstrip("._-")[:100] or "trace"
    return f"{stem}-{''.join(secrets.choice(_TYPEABLE) for _ in range(_SUFFIX))}"


async def free_trace_id(storage: CheckpointStorage, graph_id: str) -> str:
    """A new id that no trace in `storage` has: 28 million are not so many that two could not meet."""
    while await storage.trace(name := new_trace_id(graph_id)) is not None:
        pass
    return name


def check_name(setting: str, text: str) -> str:
    """`text`, if it can be the name of a thing: 1 to 128 printable characters.

    :raises ConfigError: if not; `setting` says what it would have named.
    """
    if not is_name(text):
        raise ConfigError(setting, text, NAME)
    return text


def check_trace_id(text: str) -> str:
    """`text`, if it can be a trace id: 1 to 128 of `A-Z a-z 0-9 . _ -`, of which the first is a letter or digit.

    :raises ConfigError: if not.
    """
    if not _TRACE_ID.fullmatch(text):
        raise ConfigError("trace_id", text, "1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
    return text
