"""Supervisors are told that there is something to do: through real sockets, dead ones and full ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tinyllm import InMemoryCheckpointStorage, SQLiteCheckpointStorage, StoragePathError
from tinyllm.core import wake as module
from tinyllm.core.wake import LONGEST, address, supervisors, wake


class Listeners:
    """Sockets in the directory of a store's supervisors."""

    def __init__(self, store: Path, stack: ExitStack) -> None:
        self.storage = SQLiteCheckpointStorage(store)
        self.stack = stack
        directory = supervisors(self.storage)
        assert directory is not None
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True)

    def listen(self, name: str, backlog: int = 8) -> socket.socket:
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        with address(self.directory, name) as path:
            listener.bind(path)
        listener.listen(backlog)
        listener.setblocking(False)
        return listener


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Listeners]:
    with ExitStack() as stack:
        yield Listeners(tmp_path / "store", stack)


def heard(listener: socket.socket) -> bytes:
    """All that the next caller said."""
    caller, _ = listener.accept()
    with caller:
        caller.setblocking(True)
        return b"".join(iter(lambda: caller.recv(100), b""))


def test_all_supervisors_are_told(listeners: Listeners) -> None:
    both = [listeners.listen("one.sock"), listeners.listen("two.sock")]
    assert wake(listeners.storage) == 2
    assert [heard(each) for each in both] == [b'{"verb":"wake"}\n'] * 2


def test_one_that_died_is_passed_over(listeners: Listeners) -> None:
    listeners.listen("a-dead.sock").close()
    (listeners.directory / "b-odd.sock").write_text("no socket")
    (listeners.directory / "c.log").write_text("not meant to be one")
    alive = listeners.listen("d.sock")
    assert wake(listeners.storage) == 1
    assert heard(alive) == b'{"verb":"wake"}\n'


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="elsewhere a full one looks like one that died")
def test_one_that_takes_no_more_is_not_waited_for(listeners: Listeners) -> None:
    full = listeners.listen("full.sock", backlog=0)
    assert [wake(listeners.storage) for _ in range(20)] == [1] * 20
    told = 0
    while True:
        try:
            assert heard(full) == b'{"verb":"wake"}\n'
        except BlockingIOError:
            break
        told += 1
    assert 0 < told < 20


def test_a_store_that_nobody_supervises_has_no_directory(tmp_path: Path) -> None:
    assert wake(SQLiteCheckpointStorage(tmp_path / "nowhere")) == 0
    assert wake(SQLiteCheckpointStorage(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_memory_has_no_supervisors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = InMemoryCheckpointStorage()
    assert supervisors(storage) is None
    with ExitStack() as stack:
        Listeners(tmp_path / storage.name, stack).listen("x.sock")
        monkeypatch.chdir(tmp_path)
        assert wake(storage) == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no other way to name it")
def test_a_long_path_is_named_through_an_open_directory(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with ExitStack() as stack:
        listeners = Listeners(tmp_path / ("d" * 200) / ("s" * 200), stack)
        alive = listeners.listen("x.sock")
        assert (listeners.directory / "x.sock").is_socket()
        assert wake(listeners.storage) == 1
        assert heard(alive) == b'{"verb":"wake"}\n'
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_path_is_named_by_itself_as_long_as_it_fits(tmp_path: Path) -> None:
    longest = "/" + "d" * (LONGEST - len("/") - len("/x.sock"))
    with address(longest, "x.sock") as path:
        assert path == f"{longest}/x.sock"
    with pytest.raises(FileNotFoundError), address(longest + "d", "x.sock"):  # it is opened
        raise AssertionError
    room = LONGEST - len(str(tmp_path)) - len("//x.sock")
    with ExitStack() as stack:  # the longest does fit
        stack.enter_context(address(tmp_path / ("d" * room), "x.sock"))


def test_where_it_cannot_be_named_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        listeners = Listeners(tmp_path / ("s" * 200), stack)
        (listeners.directory / "x.sock").write_text("")
        monkeypatch.setattr(module, "_OPEN_FILES", str(tmp_path / "none"))
        with (
            pytest.raises(StoragePathError, match="move the store to a shorter path"),
            address(listeners.directory, "x.sock"),
        ):
            raise AssertionError
        assert wake(listeners.storage) == 0
