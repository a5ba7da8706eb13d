"""What a service manager hears of a supervisor, and when; the supervisor is a made-up one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from tinyllm.supervisor import service
from tinyllm.supervisor.notify import VARIABLES
from tinyllm.supervisor.service import serve
from tinyllm.supervisor.supervisor import Supervisor

pytestmark = pytest.mark.anyio


class Fake:
    """It is ready, has been told to drain, and has drained, when these are set."""

    def __init__(self) -> None:
        self.ready, self.asked, self.over = anyio.Event(), anyio.Event(), anyio.Event()
        self.looked = 0

    async def __aenter__(self) -> Fake:
        await self.ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def drain(self) -> None:
        self.asked.set()

    async def draining(self) -> None:
        await self.asked.wait()

    async def drained(self) -> None:
        await self.over.wait()

    async def status(self) -> Any:
        self.looked += 1
        await anyio.sleep_forever()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


async def heard(manager: socket.socket) -> bytes:
    with anyio.fail_after(10):
        await anyio.wait_readable(manager)
    return manager.recv(4096)


@pytest.mark.parametrize("by_signal", [True, False])
async def test_it_hears_of_readiness_and_of_a_drain_when_each_begins(manager: socket.socket, by_signal: bool) -> None:
    fake = Fake()
    told: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, cast(Supervisor, fake), told.append)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
        fake.ready.set()
        assert await heard(manager) == b"READY=1"
        if by_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            fake.drain()
        assert await heard(manager) == b"STOPPING=1"
        fake.over.set()
    with pytest.raises(BlockingIOError):
        manager.recv(4096)
    assert fake.looked == 1
    assert bool(told) == by_signal


async def test_where_nobody_listens_nothing_is_counted(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET")
    monkeypatch.setattr(service, "STATUS_SECONDS", 0.0)
    fake = Fake()
    fake.ready.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, cast(Supervisor, fake), print)
        await anyio.wait_all_tasks_blocked()
        fake.over.set()
    assert fake.looked == 0
