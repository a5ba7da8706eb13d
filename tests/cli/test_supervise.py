"""The supervisor as a process: `tinyllm supervise` with real workers, told to end, killed, and used wrongly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.desk import Desk
from tests.supervisor.work import NODES, Line, journal, write_graph

pytestmark = pytest.mark.timeout(60)

SECONDS = 30.0
"""For what takes one or two on an idle machine."""

POKING = (
    NODES
    + """

import subprocess
import sys


@node
async def poke(task: str, context: NodeContext) -> str:
    match task:
        case "print":
            print("printed to stdout")
            print("printed to stderr", file=sys.stderr)
            os.write(1, b"written to 1\\\\n")
            subprocess.run(["echo", "said by a child"], check=True)
        case "channel":
            for descriptor in range(3, 20):
                try:
                    if os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:"):
                        os.write(descriptor, b'garbage\\\\n{"Ready": 1}\\\\n[]\\\\n{"Nothing": {}}\\\\n')
                        for _ in range(20):  # a line that is longer than any message
                            await anyio.sleep(0.01)
                            os.write(descriptor, b"x" * 4000)
                        os.write(descriptor, b"\\\\n")
                except OSError:
                    pass
        case "fail of xyzzy-4711" | "fail of [redacted]":
            raise ValueError("it had xyzzy-4711 in it")
    (HERE / "seen").write_text(json.dumps({"read": sys.stdin.read(), "environment": dict(os.environ)}))
    return task
""".replace("\\\\n", "\\n")
)


class Served:
    """A supervisor in a process of its own, whose stderr goes to a file."""

    def __init__(self, process: subprocess.Popen[str], stderr: Path) -> None:
        self.process = process
        self._stderr = stderr

    @property
    def told(self) -> str:
        return self._stderr.read_text()

    def until_told(self, text: str) -> None:
        until(lambda: text in self.told, lambda: f"{text!r} never came:\n{self.told}")

    def ended(self) -> int:
        return self.process.wait(SECONDS)


def until(there: Callable[[], bool], otherwise: Callable[[], str] = str) -> None:
    last = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < last, otherwise()
        time.sleep(0.01)


@pytest.fixture
def chain(desk: Desk) -> Path:
    return write_graph(desk.folder / "work", nodes=3)


@pytest.fixture
def poking(chain: Path) -> Path:
    write_graph(chain.parent, nodes=1, functions=POKING)
    chain.write_text(chain.read_text().replace("call: work", "call: poke"))
    return chain


def seen(poking: Path) -> dict[str, Any]:
    """What the node `poke` read, and its environment."""
    found: dict[str, Any] = json.loads((poking.parent / "seen").read_text())
    return found


@contextmanager
def supervised(desk: Desk, *words: str | Path, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """`tinyllm supervise *words`; whatever is left of it at the end is killed."""
    stderr = desk.folder / f"stderr-{len(list(desk.folder.glob('stderr-*')))}"
    with stderr.open("w") as file:
        process = desk.start(
            *("supervise", *words, "--workers", "1", "--durability", "sync"),
            stderr=file.fileno(),
            environment=environment,
        )
    with process:
        try:
            yield Served(process, stderr)
        finally:
            process.kill()


def submit(desk: Desk, graph: Path, trace_id: str, **told: object) -> None:
    assert desk.command("submit", graph, "--task", json.dumps(told), "--id", trace_id).exit_code == 0


def shown(desk: Desk, trace_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(desk.command("show", trace_id, "--json").stdout)
    return found


def until_status(desk: Desk, trace_id: str, status: str) -> None:
    until(lambda: shown(desk, trace_id)["status"] == status, lambda: f"it is {shown(desk, trace_id)['status']}")


def begun(graph: Path, count: int) -> Line:
    def lines() -> list[Line]:
        return [line for line in journal(graph) if line.what == "began"]

    until(lambda: len(lines()) >= count)
    return lines()[count - 1]


def nodes(graph: Path, what: str) -> list[str]:
    return [line.node for line in journal(graph) if line.what == what]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def goes_on_unblamed(desk: Desk, graph: Path, trace_id: str) -> None:
    """Under another supervisor the trace comes to its end, and nothing of what happened is held against it."""
    (graph.parent / "let go").touch()
    (graph.parent / "mended").touch()
    with supervised(desk, graph) as second:
        until_status(desk, trace_id, "completed")
        second.process.terminate()
        assert second.ended() == 0
        assert "apart" not in second.told
        assert "quarantined" not in second.told


# -- told to end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_end_and_claims_nothing_more(desk: Desk, chain: Path, number: signal.Signals) -> None:
    submit(desk, chain, "t", at=1, what="hold")
    with supervised(desk, chain) as served:
        pid = begun(chain, 2).pid
        served.process.send_signal(number)
        served.until_told("draining; once more ends at once")
        submit(desk, chain, "late")
        (chain.parent / "let go").touch()
        assert served.ended() == 0
    assert not is_alive(pid)
    assert nodes(chain, "ended") == ["n0", "n1"]
    assert (shown(desk, "t")["status"], shown(desk, "late")["status"]) == ("interrupted", "queued")


def test_what_does_not_end_is_killed_within_the_grace_and_goes_on_unblamed(desk: Desk, chain: Path) -> None:
    submit(desk, chain, "t", at=1, what="hold")
    with supervised(desk, chain, "--grace", "2") as served:
        pid = begun(chain, 2).pid
        served.process.terminate()
        asked = time.monotonic()
        assert served.ended() == 0
        assert time.monotonic() - asked < SECONDS / 2  # and would be `SECONDS`, if the node were waited for
    assert not is_alive(pid)
    goes_on_unblamed(desk, chain, "t")


def test_a_second_signal_ends_at_once(desk: Desk, chain: Path) -> None:
    submit(desk, chain, "t", at=1, what="hold")
    with supervised(desk, chain) as served:
        pid = begun(chain, 2).pid
        served.process.terminate()
        served.until_told("once more ends at once")
        served.process.terminate()
        assert served.ended() == 130
    assert not is_alive(pid)
    goes_on_unblamed(desk, chain, "t")


# -- killed ----------------------------------------------------------------------------------------------------


def test_workers_of_a_killed_supervisor_end_at_a_durable_point(desk: Desk, chain: Path) -> None:
    submit(desk, chain, "t", at=1, what="hold")
    with supervised(desk, chain) as served:
        pid = begun(chain, 2).pid
        served.process.kill()
        served.ended()
        (chain.parent / "let go").touch()
        until(lambda: not is_alive(pid))
    assert nodes(chain, "ended") == ["n0", "n1"]
    assert shown(desk, "t")["status"] == "interrupted"
    goes_on_unblamed(desk, chain, "t")
    assert nodes(chain, "began") == ["n0", "n1", "n2"]


@pytest.mark.parametrize("what", ["block", "seize"])
def test_a_blocked_worker_of_a_killed_supervisor_ends_by_itself(desk: Desk, chain: Path, what: str) -> None:
    """Also where no thread of Python's has a turn, and the end of the supervisor is not seen."""
    submit(desk, chain, "t", at=1, what=what)
    with supervised(desk, chain, "--grace", "1", "--hang-after", "2") as served:
        pid = begun(chain, 2).pid
        served.process.kill()
        served.ended()
        until(lambda: not is_alive(pid))
    goes_on_unblamed(desk, chain, "t")


# -- used wrongly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "functions", "told"),
    [
        ("id: chain\nnodes: [{id: n0, type: nonsense}]\n", "", "not 'nonsense'"),
        (None, "raise KeyError('x')", "cannot be imported: KeyError"),
    ],
)
def test_a_broken_graph_is_usage(desk: Desk, chain: Path, graph: str | None, functions: str, told: str) -> None:
    if graph is not None:
        chain.write_text(graph)
    (chain.parent / "nodes.py").write_text(functions)
    with supervised(desk, chain) as served:
        assert served.ended() == 2
    assert told in served.told
    assert served.told.count("the supervisor gave up") == 1
    assert "Traceback" not in served.told


def test_two_files_with_one_id_are_usage(desk: Desk, chain: Path) -> None:
    with supervised(desk, chain, write_graph(desk.folder / "other", nodes=1)) as served:
        assert served.ended() == 2
    assert "2 are called 'chain'" in served.told
    assert "Traceback" not in served.told


def test_a_limit_of_an_unknown_graph_is_usage(desk: Desk, chain: Path) -> None:
    with supervised(desk, chain, "--limit", "chian=2") as served:
        assert served.ended() == 2
    assert "which are: chain" in served.told
    assert "Traceback" not in served.told


def test_a_store_that_is_a_file_says_so(desk: Desk, chain: Path) -> None:
    desk.store.touch()
    with supervised(desk, chain) as served:
        assert served.ended() == 1
    assert "is not a directory; choose another path" in served.told
    assert "Traceback" not in served.told


# -- systemd ---------------------------------------------------------------------------------------------------


def test_systemd_is_told_and_workers_do_not_hear_of_it(desk: Desk, poking: Path) -> None:
    place = desk.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.settimeout(SECONDS)
        systemd = {"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "1000000"}
        with supervised(desk, poking, environment=systemd) as served:
            assert manager.recv(4096) == b"READY=1"
            assert desk.command("submit", poking, "--task", "look", "--id", "t").exit_code == 0
            heard = {manager.recv(4096).partition(b"=")[0] for _ in range(3)}
            assert heard == {b"STATUS", b"WATCHDOG"}
            until_status(desk, "t", "completed")
            served.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, served.process.pid, os.WSTOPPED | os.WNOWAIT)
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:  # what it had sent before
                    manager.recv(4096)
            manager.settimeout(1)
            with pytest.raises(TimeoutError):
                manager.recv(4096)
            manager.settimeout(SECONDS)
            served.process.send_signal(signal.SIGCONT)
            assert desk.command("drain").exit_code == 0
            assert served.ended() == 0
            manager.setblocking(False)
            rest = []
            with pytest.raises(BlockingIOError):
                while True:
                    rest.append(manager.recv(4096))
            assert b"STOPPING=1" in rest
    environment = seen(poking)["environment"]
    assert environment["PYTHONPATH"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(environment)


# -- what nodes write ------------------------------------------------------------------------------------------


def test_what_nodes_print_goes_to_stderr_and_they_read_nothing(desk: Desk, poking: Path) -> None:
    with supervised(desk, poking) as served:
        desk.command("submit", poking, "--task", "print", "--id", "t")
        until_status(desk, "t", "completed")
        served.process.terminate()
        assert served.ended() == 0
        assert served.process.stdout is not None
        assert served.process.stdout.read() == ""
    assert seen(poking)["read"] == ""
    for line in ("printed to stdout", "printed to stderr", "written to 1", "said by a child"):
        assert line in served.told.splitlines()
    assert "no message" not in served.told


def test_a_node_that_writes_to_the_channel_does_no_harm(desk: Desk, poking: Path) -> None:
    with supervised(desk, poking) as served:
        for task, trace_id in (("channel", "t"), ("", "after")):
            desk.command("submit", poking, "--task", task, "--id", trace_id)
            until_status(desk, trace_id, "completed")
        served.until_told("says what is no message (")
        served.until_told("says what is no message: more than")
        assert desk.command("drain").exit_code == 0
        assert served.ended() == 0
    assert "Traceback" not in served.told
    assert " died" not in served.told


def test_what_is_redacted_is_neither_stored_nor_logged(desk: Desk, poking: Path) -> None:
    hide = ("--redact", "/xyzzy-[0-9]+/")
    with supervised(desk, poking, *hide, "--log-level", "DEBUG") as served:
        words = ("submit", poking, "--task", "fail of xyzzy-4711", "--id", "t", *hide)
        assert desk.command(*words).exit_code == 0
        until_status(desk, "t", "failed")
        served.process.terminate()
        assert served.ended() == 0
    assert "it had [redacted] in it" in served.told
    assert served.told.count("DEBUG asyncio") >= 2  # the level reaches the worker
    assert "xyzzy-4711" not in served.told
    assert not [path for path in desk.store.rglob("*") if path.is_file() and b"xyzzy-4711" in path.read_bytes()]
