"""Where the supervisors of a store listen, and how they are told that there is something to do.

A supervisor listens at a unix socket in a directory of the store. Whoever makes a trace that waits to be executed pokes
all of them: they need not look into the store again and again, and what is submitted starts at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllm.errors import StoragePathError
from tinyllm.storage.contract import CheckpointStorage

DIRECTORY = "supervisors"
"""In the directory of a store. Each supervisor has a socket there, `<its id>.sock`."""

SUFFIX = ".sock"

LONGEST = 103
"""Bytes of a path that an address of a unix socket has room for: 103 on macOS, 107 on Linux."""

_WAKE = b'{"verb":"wake"}\n'

_OPEN_FILES = "/proc/self/fd"


def supervisors(storage: CheckpointStorage) -> Path | None:
    """The directory in which the supervisors of a store listen, whether it is there or not; None of a store that no
    other process sees."""
    # A store of files is called by its directory, which is absolute; what is called otherwise has none.
    return Path(storage.name, DIRECTORY) if os.path.isabs(storage.name) else None


@contextmanager
def address(directory: str | os.PathLike[str], name: str) -> Iterator[str]:
    """A path to the socket `name` in `directory`, which is there, that fits into the address of a unix socket. It is
    good until the end of the block; what was bound or connected there stays.

    :raises StoragePathError: it does not fit, and this system has no other way to name it.
    """
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= LONGEST:
        yield path
        return
    if not os.path.isdir(_OPEN_FILES):
        remedy = f"a socket in it needs a path of at most {LONGEST} bytes; move the store to a shorter path"
        raise StoragePathError(os.fspath(directory), remedy)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"{_OPEN_FILES}/{opened}/{name}"
    finally:
        os.close(opened)


def wake(storage: CheckpointStorage) -> int:
    """Tell the supervisors of a store that there may be something to do. -> how many of them live.

    It does not wait: one whose socket takes no more has been told, and one that died hears nothing. Nothing is raised:
    what waits is in the store, and a supervisor looks there now and then.
    """
    directory = supervisors(storage)
    if directory is None:
        return 0
    try:
        names = os.listdir(directory)
    except OSError:  # there never was one, mostly
        return 0
    return sum(_poke(directory, name) for name in names if name.endswith(SUFFIX))


def _poke(directory: Path, name: str) -> bool:
    """Whether somebody listens at that socket."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            with address(directory, name) as path:
                caller.connect(path)
            caller.send(_WAKE)
        except BlockingIOError:  # many wait to be heard already
            return True
        except (OSError, StoragePathError):
            return False
    return True
