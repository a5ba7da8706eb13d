"""The unix socket of a supervisor: how one is asked for its status, told to drain, and woken.

In `<store>/supervisors/`, which is 0700, each supervisor of the store listens on `<id>.sock`, which is 0600. A line of
JSON goes in, `{"verb": ...}`, and a line comes out, `{"ok": ...}` or `{"error": text}`; only for a `wake` none does,
because whoever wakes does not wait.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs
import msgspec
from anyio.abc import TaskGroup

from tinyllm.core.wake import DIRECTORY, SUFFIX, address
from tinyllm.errors import NotSupervised, StoragePathError, SupervisorSilent

logger = logging.getLogger(__name__)

Verb = Literal["status", "drain", "wake"]

SECONDS = 5.0
"""How long one connection may take, and how long an answer is waited for: a status counts what waits in the store."""

REQUEST_BYTES = 4096
REPLY_BYTES = 4 << 20
"""What is read at most: a request is one word, a status names each worker."""

CONNECTIONS = 32
"""Served at once. More wait in the kernel, which is no loss: who wakes does not wait, and others ask again."""

_DRAFT, _DRAFT_SECONDS = ".new", 60.0
"""What a socket is called until it listens, and how long that is left alone: it takes a moment, if nobody is killed."""

_QUEUE = 128
"""Connections that wait in the kernel; where it is full, a `wake` is dropped, and many others are there to be read."""

_LINUX_PEER, _MACOS_PEER = struct.Struct("iII"), struct.Struct("II")
"""The beginnings of `struct ucred` (pid, uid, gid) and `struct xucred` (version, uid)."""


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    verb: Verb


@attrs.frozen
class Answer:
    """What a supervisor said: `ok` or, where it could not do it or did not answer, `error`."""

    socket: Path
    ok: dict[str, Any] | None = None
    error: str | None = None

    @property
    def supervisor(self) -> str:
        """Its id."""
        return self.socket.stem


# -- the supervisor's side -------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(store: Path, name: str, answer: Callable[[Verb], Awaitable[dict[str, Any]]]) -> AsyncIterator[Path]:
    """Listen as the supervisor of that id, and answer each verb with what `answer` returns or raises.

    The context's value is the socket's path. Sockets that dead supervisors left behind are removed first.

    :raises StoragePathError: no socket can be made there; the directory is a symbolic link, or somebody else's.
    """
    directory = store / DIRECTORY
    _own(directory)
    _sweep(directory)
    path = directory / f"{name}{SUFFIX}"
    raised: BaseException | None = None
    with _listening(directory, path) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_accept, listener, answer, tasks, name=f"control socket {name!r}")
            try:
                yield path
            except BaseException as error:
                if isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit, BaseExceptionGroup)):
                    raise
                raised = error  # carried past the task group, which would wrap it in a group
            finally:
                path.unlink(missing_ok=True)  # first: who is hung up on looks here whether this one lives
                tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


def _own(directory: Path) -> None:
    """Make it, or see that it is ours, for us alone."""
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            directory.chmod(0o700)  # where the umask took even that away
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(place).st_uid != os.geteuid():
                raise StoragePathError(str(directory), "it belongs to another user")
            os.fchmod(place, 0o700)
        finally:
            os.close(place)
    except OSError as error:
        reason = "it is a symbolic link" if directory.is_symlink() else error.strerror or str(error)
        raise StoragePathError(str(directory), reason) from error


def _sweep(directory: Path) -> None:
    """Remove the sockets that nobody listens on any more."""
    for path in directory.iterdir():
        with suppress(OSError, StoragePathError):  # what is odd about one entry keeps no supervisor from starting
            if _is_settled(path) and not alive(path):
                path.unlink()


def _is_settled(path: Path) -> bool:
    """Whether it is a socket, and not one that is about to listen."""
    found = path.lstat()
    new = path.suffix == _DRAFT and time.time() - found.st_mtime < _DRAFT_SECONDS
    return path.suffix in (SUFFIX, _DRAFT) and stat.S_ISSOCK(found.st_mode) and not new


@contextmanager
def _listening(directory: Path, path: Path) -> Iterator[socket.socket]:
    """A socket that gets its name when it listens and has its permissions: nobody finds it open to others, nor takes it
    for one that a dead supervisor left."""
    draft = path.with_suffix(_DRAFT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            with address(directory, draft.name) as place:
                listener.bind(place)
            draft.chmod(0o600)
            listener.listen(_QUEUE)
            listener.setblocking(False)
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StoragePathError(str(path), error.strerror or str(error)) from error
        yield listener


async def _accept(
    listener: socket.socket, answer: Callable[[Verb], Awaitable[dict[str, Any]]], tasks: TaskGroup
) -> None:
    places = anyio.Semaphore(CONNECTIONS)
    while True:
        await places.acquire()
        try:
            await anyio.wait_readable(listener)
            connection, _ = listener.accept()
        except OSError as error:
            places.release()
            if not isinstance(error, (BlockingIOError, ConnectionAbortedError)):
                logger.warning("the control socket takes no connection just now: %s", error)
                await anyio.sleep(1)  # too many open files: it stays readable, and would be tried all the time
            continue
        tasks.start_soon(_serve, connection, answer, places, name="control connection")


async def _serve(
    connection: socket.socket, answer: Callable[[Verb], Awaitable[dict[str, Any]]], places: anyio.Semaphore
) -> None:
    try:
        with connection, anyio.move_on_after(SECONDS):
            connection.setblocking(False)
            uid = peer_uid(connection)
            if uid not in (os.geteuid(), 0):
                logger.warning("user %d may not use the control socket", uid)
                return
            reply = await _reply(connection, answer)
            if reply is not None:
                await _send(connection, reply)
    except OSError as error:  # it went away
        logger.debug("a control connection broke: %s", error)
    finally:
        places.release()


async def _reply(connection: socket.socket, answer: Callable[[Verb], Awaitable[dict[str, Any]]]) -> bytes | None:
    """The line to send back, None for none."""
    try:
        line = await _line(connection, REQUEST_BYTES)
        if line is None:  # somebody looked whether we live
            return None
        verb = msgspec.json.decode(line, type=_Request).verb
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        return _encode({"error": f"this is no request: {error}"})
    try:
        found = await answer(verb)
        return None if verb == "wake" else _encode({"ok": found})
    except Exception as error:
        logger.exception("the control socket could not answer %r", verb)
        return None if verb == "wake" else _encode({"error": f"{type(error).__name__}: {error}"})


def peer_uid(connection: socket.socket) -> int:
    """The user who connected, as the kernel saw it."""
    if hasattr(socket, "SO_PEERCRED"):
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_PEER.size)
        return int(_LINUX_PEER.unpack(found)[1])
    level, local_peercred, size = 0, 1, 76  # SOL_LOCAL, LOCAL_PEERCRED and what xucred takes, in macOS' <sys/un.h>
    return int(_MACOS_PEER.unpack_from(connection.getsockopt(level, local_peercred, size))[1])


# -- the other side --------------------------------------------------------------------------------------------


def sockets(store: Path) -> list[Path]:
    """The sockets in the store, whether or not somebody listens there.

    :raises StoragePathError: they cannot be listed.
    """
    directory = store / DIRECTORY
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoragePathError(str(directory), error.strerror or str(error)) from error


def alive(path: Path) -> bool:
    """Whether a supervisor listens there, even one that is stopped or hangs.

    :raises StoragePathError: that cannot be found out.
    """
    try:
        _connected(path).close()
    except BlockingIOError:  # its queue is full
        return True
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


async def asked(store: Path, verb: Verb) -> list[Answer]:
    """What each living supervisor of the store answers, by id.

    :raises NotSupervised: none lives.
    :raises StoragePathError: the sockets cannot be listed.
    """
    found: dict[Path, Answer] = {}

    async def ask_one(path: Path) -> None:
        try:
            try:
                found[path] = Answer(path, ok=await ask(path, verb))
            except SupervisorSilent as error:
                if alive(path):  # else it ended meanwhile
                    found[path] = Answer(path, error=error.reason)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except StoragePathError as error:
            found[path] = Answer(path, error=error.reason)

    async with anyio.create_task_group() as tasks:
        for path in sockets(store):
            tasks.start_soon(ask_one, path)
    if not found:
        raise NotSupervised(str(store))
    return [found[path] for path in sorted(found)]


async def ask(path: Path, verb: Verb) -> dict[str, Any]:
    """What the supervisor that listens at `path` answers; an empty object to a `wake`, which has no answer.

    :raises ConnectionRefusedError: nobody listens there any more.
    :raises FileNotFoundError: nothing is there.
    :raises SupervisorSilent: it did not answer in time, or with an error.
    :raises StoragePathError: it cannot be reached.
    """
    try:
        with anyio.fail_after(SECONDS):
            while True:
                try:
                    connection = _connected(path)
                    break
                except BlockingIOError:  # its queue is full, and nothing says when it is not
                    await anyio.sleep(0.02)
            with connection:
                await _send(connection, _encode({"verb": verb}))
                if verb == "wake":
                    return {}
                line = await _line(connection, REPLY_BYTES)
        if line is None:
            raise SupervisorSilent(str(path), "it closed the connection")
        reply = json.loads(line)
    except TimeoutError:
        raise SupervisorSilent(
            str(path), f"nothing came in {SECONDS:g} s; it is stopped, hangs or has much to do"
        ) from None
    except (BrokenPipeError, ConnectionResetError, ValueError) as error:
        raise SupervisorSilent(str(path), str(error)) from error
    match reply:
        case {"ok": dict(found)}:
            return found
        case {"error": str(reason)}:
            raise SupervisorSilent(str(path), reason)
        case _:
            raise SupervisorSilent(str(path), "what came is no answer")


def _connected(path: Path) -> socket.socket:
    """:raises BlockingIOError: the queue there is full."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with address(path.parent, path.name) as place:
            connection.connect(place)
    except BaseException as error:
        connection.close()
        if isinstance(error, (BlockingIOError, ConnectionRefusedError, FileNotFoundError)):
            raise
        if isinstance(error, OSError):
            raise StoragePathError(str(path), error.strerror or str(error)) from error
        raise
    return connection


# -- both sides ------------------------------------------------------------------------------------------------


async def _line(connection: socket.socket, at_most: int) -> bytes | None:
    """The first line, without its end; None if the other side went away before.

    :raises ValueError: it is longer than `at_most` bytes.
    """
    read = bytearray()
    while len(read) <= at_most:
        await anyio.wait_readable(connection)
        with suppress(BlockingIOError):
            part = connection.recv(at_most + 1 - len(read))
            if not part:
                return None
            read += part
            if b"\n" in part:
                return bytes(read[: read.index(b"\n")])
    raise ValueError(f"it is longer than {at_most:,} bytes")


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _send(connection: socket.socket, line: bytes) -> None:
    rest = line
    while rest:
        try:
            rest = rest[connection.send(rest) :]
        except BlockingIOError:
            await anyio.wait_writable(connection)
