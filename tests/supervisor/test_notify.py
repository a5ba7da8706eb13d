"""The service manager is told how the supervisor is, by datagrams that a fake one gets."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm.supervisor.notify import VARIABLES, Notifier

PLACES = [
    "file",
    pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such sockets")),
]


@pytest.fixture(params=PLACES)
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What NOTIFY_SOCKET says, and the socket that gets it all."""
    place = str(tmp_path / "notify") if request.param == "file" else f"@tinyllm-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(place.replace("@", "\0", 1) if request.param == "abstract" else place)
        listener.setblocking(False)
        yield place, listener


def test_each_state_is_one_datagram(manager: tuple[str, socket.socket]) -> None:
    place, listener = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": place})
    notifier.ready()
    notifier.status("2 workers,\n3 traces")
    notifier.watchdog()
    notifier.stopping()
    told = [listener.recv(4096) for _ in range(4)]
    assert told == [b"READY=1", b"STATUS=2 workers, 3 traces", b"WATCHDOG=1", b"STOPPING=1"]
    with pytest.raises(BlockingIOError):
        listener.recv(4096)


def test_a_manager_that_does_not_read_is_not_waited_for(manager: tuple[str, socket.socket]) -> None:
    place, _listener = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": place})
    for number in range(2_000):  # far more than a socket keeps
        notifier.status(f"{number} {'-' * 1_000}")


@pytest.mark.parametrize("place", ["/nowhere/at/all", "@nobody-listens", "vsock:2:1234", "/" + "x" * 500])
def test_a_manager_that_is_not_there_is_no_error(place: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": place})
    notifier.ready()
    notifier.status("\udcff")
    notifier.stopping()


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_sent(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    notifier = Notifier.from_environment(environment)
    notifier.ready()
    notifier.status("well")
    notifier.watchdog()
    notifier.stopping()
    assert notifier.watchdog_seconds is None


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_as_the_manager_said(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment(environment).watchdog_seconds == seconds


def test_the_environment_is_read_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, str(os.getpid()))
    found = Notifier.from_environment()
    assert (found.address, found.watchdog_seconds) == (str(os.getpid()), os.getpid() / 1e6)
    assert set(VARIABLES) <= set(os.environ)  # the program that the supervisor lives in may need them
