"""The socket on which a supervisor is asked: who may, what goes wrong, and what is left behind."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from tinyllm import NotSupervised, StoragePathError, SupervisorSilent
from tinyllm.core.wake import DIRECTORY
from tinyllm.supervisor import control
from tinyllm.supervisor.control import CONNECTIONS, REQUEST_BYTES, Verb, alive, ask, asked, serving, sockets

pytestmark = pytest.mark.anyio


class Fake:
    """Answers with what it was asked so far."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, verb: Verb) -> dict[str, Any]:
        self.asked.append(verb)
        return {"asked": list(self.asked)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def supervisors(store: Path) -> Path:
    """The directory of the sockets, as another supervisor made it."""
    place = store / DIRECTORY
    place.mkdir(mode=0o700)
    return place


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/dev/fd"))
    yield
    assert len(os.listdir("/dev/fd")) <= before


def raw(path: Path, sent: bytes) -> bytes:
    """What comes back for `sent`, however it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        came = b""
        with suppress(BrokenPipeError, ConnectionResetError):  # it did not read all that was sent
            connection.sendall(sent)
            while part := connection.recv(65536):
                came += part
        return came


async def talked(path: Path, sent: bytes) -> bytes:
    return await anyio.to_thread.run_sync(raw, path, sent)


async def test_who_asks_is_answered(store: Path) -> None:
    async with serving(store, "one", Fake()) as path:
        assert path == store / "supervisors" / "one.sock"
        assert await ask(path, "status") == {"asked": ["status"]}
        assert await ask(path, "drain") == {"asked": ["status", "drain"]}


async def test_a_wake_is_heard_and_not_answered(store: Path) -> None:
    fake = Fake()
    async with serving(store, "one", fake) as path:
        assert await talked(path, b'{"verb":"wake"}\n') == b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker:
            waker.setblocking(False)
            waker.connect(str(path))
            waker.send(b'{"verb":"wake"}\n')
        with anyio.fail_after(5):
            while fake.asked != ["wake", "wake"]:
                await anyio.lowlevel.checkpoint()
        assert await ask(path, "wake") == {}


async def test_every_living_supervisor_is_asked(store: Path) -> None:
    async with serving(store, "one", Fake()), serving(store, "two", Fake()):
        answers = await asked(store, "status")
    assert [(answer.supervisor, answer.ok, answer.error) for answer in answers] == [
        ("one", {"asked": ["status"]}, None),
        ("two", {"asked": ["status"]}, None),
    ]


async def test_it_is_said_that_no_supervisor_lives(store: Path) -> None:
    with pytest.raises(NotSupervised, match="tinyllm supervise GRAPH") as caught:
        await asked(store, "drain")
    assert caught.value.store == str(store)
    async with serving(store, "one", Fake()) as path:
        pass
    assert not path.exists()
    with pytest.raises(NotSupervised):
        await asked(store, "drain")


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_only_the_owner_may_connect(store: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    listen = socket.socket.listen

    class Watched(socket.socket):
        def listen(self, *arguments: int) -> None:
            """Nobody can connect before."""
            (draft,) = (store / DIRECTORY).iterdir()
            seen.append(stat.S_IMODE(draft.lstat().st_mode))
            listen(self, *arguments)

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(umask)
    try:
        async with serving(store, "one", Fake()) as path:
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert seen == [0o600]


async def test_a_directory_that_was_opened_to_others_is_closed(store: Path, supervisors: Path) -> None:
    supervisors.chmod(0o777)
    async with serving(store, "one", Fake()):
        assert stat.S_IMODE(supervisors.lstat().st_mode) == 0o700


async def test_a_symbolic_link_is_not_followed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (store / DIRECTORY).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoragePathError, match="symbolic link"):
        async with serving(store, "one", Fake()):
            pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_another_users_directory_is_refused(
    store: Path, supervisors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: supervisors.stat().st_uid + 1)
    with pytest.raises(StoragePathError, match="another user"):
        async with serving(store, "one", Fake()):
            pass


async def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoragePathError, match="No such file"):
        async with serving(tmp_path / "nowhere", "one", Fake()):
            pass


async def test_another_user_is_not_answered(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    async with serving(store, "one", fake) as path:
        assert json.loads(await talked(path, b'{"verb":"status"}\n')) == {"ok": {"asked": ["status"]}}
        monkeypatch.setattr(control, "peer_uid", lambda _connection: os.geteuid() + 1)
        assert await talked(path, b'{"verb":"drain"}\n') == b""
        with pytest.raises(SupervisorSilent):
            await ask(path, "drain")
        assert fake.asked == ["status"]
        monkeypatch.setattr(control, "peer_uid", lambda _connection: 0)  # root reads everything anyway
        assert await ask(path, "status") == {"asked": ["status", "status"]}


async def test_the_kernel_says_who_asks() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        assert control.peer_uid(ours) == os.getuid()


async def test_what_macos_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mac:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option) == (0, 1)
            return struct.pack("IIh16I", 0, 501, 1, *[20] * 16)[:size]

    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    assert control.peer_uid(Mac()) == 501  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status",
        b'"status"',
        b"{}",
        b'{"verb": 1}',
        b'{"verb": "dance"}',
        b'{"verb": "status", "more": 1}',
        b'{"verb": "\xff"}',
        b"[" * (REQUEST_BYTES - 1),
        b'{"verb":' * (REQUEST_BYTES // 8),
        b"\0" * 100,
    ],
)
async def test_garbage_is_answered_with_an_error(store: Path, line: bytes) -> None:
    fake = Fake()
    async with serving(store, "one", fake) as path:
        assert "this is no request" in json.loads(await talked(path, line + b"\n"))["error"]
        assert fake.asked == []
        assert await ask(path, "status") == {"asked": ["status"]}


async def test_too_long_a_line_is_not_read_to_its_end(store: Path) -> None:
    async with serving(store, "one", Fake()) as path:
        for ending in (b"", b"\n"):
            came = json.loads(await talked(path, b" " * (REQUEST_BYTES + 1) + ending))
            assert came == {"error": "this is no request: it is longer than 4,096 bytes"}
        longest = b'{"verb":"status"}'.rjust(REQUEST_BYTES) + b"\n"
        assert json.loads(await talked(path, longest)) == {"ok": {"asked": ["status"]}}


async def test_a_request_may_come_in_pieces(store: Path) -> None:
    async with serving(store, "one", Fake()) as path, await anyio.connect_unix(path) as stream:
        for byte in b'{"verb":"status"}\n':
            await stream.send(bytes([byte]))
        assert json.loads(await stream.receive()) == {"ok": {"asked": ["status"]}}


async def test_what_cannot_be_answered_is_said(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(verb: Verb) -> dict[str, Any]:
        raise ZeroDivisionError("nobody knows")

    async def cannot_be_written(verb: Verb) -> dict[str, Any]:
        return {"now": object()}

    async with serving(store, "one", fails) as one, serving(store, "two", cannot_be_written):
        with pytest.raises(SupervisorSilent, match="ZeroDivisionError: nobody knows"):
            await ask(one, "status")
        assert await talked(one, b'{"verb":"wake"}\n') == b""
        first, second = await asked(store, "status")
        assert (first.error, first.ok) == ("ZeroDivisionError: nobody knows", None)
        assert second.error is not None
        assert "TypeError" in second.error
    assert "nobody knows" in caplog.text


async def test_a_client_that_says_nothing_is_hung_up_on(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS", 0.05)
    async with serving(store, "one", Fake()) as path:
        assert await talked(path, b"") == b""
        assert await talked(path, b'{"verb":') == b""
        assert await ask(path, "status") == {"asked": ["status"]}


async def test_a_client_that_does_not_read_is_hung_up_on(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS", 0.05)
    monkeypatch.setattr(control, "CONNECTIONS", 1)

    async def much(verb: Verb) -> dict[str, Any]:
        return {"much": "-" * 2_000_000} if verb == "status" else {}

    async with serving(store, "one", much) as path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
            deaf.connect(str(path))
            deaf.sendall(b'{"verb":"status"}\n')
            with anyio.fail_after(5):
                while True:
                    with suppress(SupervisorSilent):
                        assert await ask(path, "drain") == {}
                        break


async def test_a_supervisor_that_hangs_is_not_waited_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS", 0.05)

    async def hangs(verb: Verb) -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    async with serving(store, "one", hangs):
        (answer,) = await asked(store, "status")
        assert answer.error is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stopped:
        stopped.bind(str(store / DIRECTORY / "two.sock"))
        stopped.listen(0)
        (answer,) = await asked(store, "status")
        assert (answer.supervisor, answer.error) == (
            "two",
            "nothing came in 0.05 s; it is stopped, hangs or has much to do",
        )
        if sys.platform == "linux":  # now its queue is full, too
            (answer,) = await asked(store, "status")
            assert answer.error is not None
            assert alive(store / DIRECTORY / "two.sock")


async def test_many_are_served_and_never_too_many_at_once(store: Path) -> None:
    here, answered, gate = 0, 0, anyio.Event()

    async def held(verb: Verb) -> dict[str, Any]:
        nonlocal here
        here += 1
        await gate.wait()
        here -= 1
        return {}

    async def one_of_many() -> None:
        nonlocal answered
        assert await ask(path, "status") == {}
        answered += 1

    async with serving(store, "one", held) as path:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as clients:
                for _ in range(3 * CONNECTIONS):
                    clients.start_soon(one_of_many)
                while here < CONNECTIONS:
                    await anyio.lowlevel.checkpoint()
                for _ in range(100):  # turns of the loop, in each of which it could accept another
                    await anyio.lowlevel.checkpoint()
                assert here == CONNECTIONS
                gate.set()
    assert answered == 3 * CONNECTIONS


async def test_one_that_ends_before_it_answers_is_not_alive(store: Path) -> None:
    busy = anyio.Event()

    async def never(verb: Verb) -> dict[str, Any]:
        busy.set()
        await anyio.sleep_forever()
        raise AssertionError

    async def is_asked() -> None:
        with pytest.raises(NotSupervised):
            await asked(store, "status")

    async with anyio.create_task_group() as clients, serving(store, "one", never):
        clients.start_soon(is_asked)
        await busy.wait()


async def test_sockets_of_dead_supervisors_are_removed_and_no_others(store: Path, supervisors: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(supervisors / "dead.sock"))
    (supervisors / "file.sock").write_text("not a socket")
    assert not alive(supervisors / "dead.sock")
    async with serving(store, "one", Fake()) as one, serving(store, "two", Fake()) as two:
        assert sockets(store) == [supervisors / "file.sock", one, two]
        assert [answer.supervisor for answer in await asked(store, "status")] == ["one", "two"]
    assert list(supervisors.iterdir()) == [supervisors / "file.sock"]


async def test_what_a_supervisor_left_that_was_killed_as_it_began_is_removed(store: Path, supervisors: Path) -> None:
    names = ("killed.new", "begins.new", "listens.new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        for name in names[:2]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                dead.bind(str(supervisors / name))
        listener.bind(str(supervisors / names[2]))
        listener.listen()
        for name in ("killed.new", "listens.new"):
            os.utime(supervisors / name, (0, 0))
        async with serving(store, "one", Fake()):
            pass
    assert {path.name for path in supervisors.iterdir()} == {"begins.new", "listens.new"}


async def test_an_odd_entry_keeps_no_supervisor_from_starting(
    store: Path, supervisors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is not for us, which root does not see: so it is made up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as odd, socket.socket(socket.AF_UNIX) as dead:
        odd.bind(str(supervisors / "odd.sock"))
        dead.bind(str(supervisors / "dead.sock"))
    (supervisors / "loop.sock").symlink_to("loop.sock")

    def found_out(path: Path) -> bool:
        if path.name == "odd.sock":
            raise StoragePathError(str(path), "Permission denied")
        return alive(path)

    monkeypatch.setattr(control, "alive", found_out)
    async with serving(store, "one", Fake()) as path:
        assert await ask(path, "status") == {"asked": ["status"]}
    assert {path.name for path in supervisors.iterdir()} == {"odd.sock", "loop.sock"}


async def test_a_store_whose_path_is_too_long_for_an_address(store: Path) -> None:
    deep = store.joinpath(*["d" * 60] * 3)
    deep.mkdir(parents=True)
    if not Path("/proc/self/fd").exists():
        with pytest.raises(StoragePathError):
            async with serving(deep, "one", Fake()):
                pass
        return
    async with serving(deep, "one", Fake()) as path:
        assert alive(path)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        (answer,) = await asked(deep, "status")
        assert answer.ok == {"asked": ["status"]}
    assert list(path.parent.iterdir()) == []


async def test_too_many_open_files_do_not_end_the_server(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = 2

    class Scarce(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            nonlocal left
            if left:
                left -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    async def at_once(seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(socket, "socket", Scarce)
    monkeypatch.setattr(anyio, "sleep", at_once)
    async with serving(store, "one", Fake()) as path:
        assert await ask(path, "status") == {"asked": ["status"]}
    assert caplog.text.count("Too many open files") == 2


async def test_what_ends_the_block_leaves_no_socket_and_is_raised_as_it_is(store: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving(store, "one", Fake()):
            raise ZeroDivisionError
    with anyio.CancelScope() as scope:
        async with serving(store, "one", Fake()):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(store / DIRECTORY / "one.sock"))
                scope.cancel()
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert sockets(store) == []
