"""`tinyllm status` and `tinyllm drain`: what is shown of made-up supervisors, and what is asked of fake ones."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from tests.cli.desk import Desk
from tests.supervisor.made_up import SINCE, status, worker
from tinyllm.cli.supervision import Silent, Standing, standing_lines, standing_object
from tinyllm.core.builder import load_graph
from tinyllm.core.store import opened_storage
from tinyllm.core.submit import submit
from tinyllm.storage.contract import Backlog
from tinyllm.supervisor import control
from tinyllm.supervisor.control import Verb, alive, serving
from tinyllm.supervisor.status import Status, to_json

NOW = SINCE + 4000

MANY_WORDS = "the sum of all the parts is larger than the whole of it, which nobody thought could be " * 9


def test_a_status_on_80_columns() -> None:
    shown = standing_lines(Standing("/var/lib/tinyllm", (status(),)), NOW, 80)
    assert (
        "\n".join(shown)
        == """\
supervisor 5f3a9c0d1b2e4f60: running, started 1 h 06 m ago
  process   4000 on node-7, tinyllm 0.1.0
  graphs    survey, digest
  traces    1,234 waiting, 56 later, 3 running, 1 apart, 2 quarantined
  lag       the oldest has waited 12 s
    tinyllm list --status quarantined
  ended     2,345 completed, 6 failed; 120 in the last minute
  restarts  2
  deaths    2 killed (SIGKILL)
  refused   1 trace that cannot be executed:
    survey-7k3mq: the graph changed since it was recorded
  worker   pid  state           for       running  ended  restarts
       0  4000  running         1 h 06 m        3  1,200  0
       1     -  again in 1.5 s  1 h 06 m        0  1,200  2: killed (SIGKILL)"""
    )


def test_a_supervisor_that_has_nothing_to_tell() -> None:
    idle = status(
        workers=(), backlog=Backlog(0, 0, 0, 0, 0, None), lag=None, restarts=0, deaths={}, refused={}, graphs=("a",)
    )
    assert standing_lines(Standing("/s", (idle,)), NOW, 80)[3:] == [
        "  traces    0 waiting, 0 later, 0 running, 0 apart, 0 quarantined",
        "  lag       nothing waits",
        "  ended     2,345 completed, 6 failed; 120 in the last minute",
        "  restarts  0",
        "  deaths    none",
    ]


@pytest.mark.parametrize("columns", [80, 100])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    long = status(
        graphs=tuple(f"graph-{number}" * 12 for number in range(20)),
        workers=tuple(
            worker(
                number,
                pid=4_194_303,
                apart=True,
                state="draining",
                since=SINCE - 90_000,
                running=1000,
                ended=12_345_678,
                restarts=1_000,
                last_death=f"{MANY_WORDS}\n{MANY_WORDS}",
            )
            for number in range(12)
        ),
        deaths={MANY_WORDS: 3, "exit code 1": 1},
        refused={"t" * 128: MANY_WORDS, "u": "two\nlines"},
    )
    shown = standing_lines(Standing("/s", (long, Silent("b", MANY_WORDS), status())), NOW, columns)
    assert max(map(len, shown)) <= columns
    assert not any("\n" in line for line in shown)
    assert sum(line.strip() == "" for line in shown) == 2  # between the blocks


def test_a_name_is_not_broken_at_its_hyphens() -> None:
    names = tuple(f"survey-of-all-there-is-{number}" for number in range(9))
    shown = "\n".join(standing_lines(Standing("/s", (status(graphs=names),)), NOW, 80))
    assert [name for name in names if name not in shown] == []


def test_what_programs_read() -> None:
    found = standing_object(Standing("/s", (status(), Silent("b", "it hangs"))))
    first, second = found["supervisors"]
    json.dumps(found)
    assert datetime.fromisoformat(first["since"]).timestamp() == SINCE
    assert datetime.fromisoformat(first["backlog"]["oldest"]).timestamp() == SINCE + 60
    assert datetime.fromisoformat(first["workers"][0]["since"]).timestamp() == SINCE + 5
    assert first["workers"][1]["state"] == "waiting"
    assert first["backlog"]["waiting"] == 1_234
    assert set(first) == {field.name for field in attrs.fields(Status)}
    assert second == {"id": "b", "error": "it hangs"}
    assert found["backlog"] is None


# -- against fake supervisors ----------------------------------------------------------------------------------


@attrs.define
class Fake:
    """One that answers as it is told to; it ends when it is to drain."""

    answers: Callable[[Verb], dict[str, Any]]
    asked: list[str] = attrs.field(factory=list)
    over: anyio.Event = attrs.field(factory=anyio.Event)

    async def __call__(self, verb: Verb) -> dict[str, Any]:
        self.asked.append(verb)
        found = self.answers(verb)
        if verb == "drain":
            self.over.set()
        return found


def well(verb: Verb) -> dict[str, Any]:
    return to_json(status()) if verb == "status" else {}


def refuses(verb: Verb) -> dict[str, Any]:
    raise RuntimeError("it cannot just now")


@contextmanager
def supervised(store: Path, **answers: Callable[[Verb], dict[str, Any]]) -> Iterator[dict[str, Fake]]:
    """Fake supervisors of the store, by id, in a thread of their own."""
    fakes: dict[str, Fake] = {}
    seen_alive: set[str] = set()

    def looked(path: Path) -> bool:
        found = alive(path)
        seen_alive.add(path.stem)
        return found

    ready, stop = threading.Event(), threading.Event()

    async def serve(name: str, answer: Callable[[Verb], dict[str, Any]]) -> None:
        fakes[name] = fake = Fake(answer)
        async with serving(store, name, fake):
            if len(fakes) == len(answers):
                ready.set()
            await fake.over.wait()
            while name not in seen_alive:  # it drains for as long as nobody has begun to wait for it
                await anyio.sleep(0.01)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for name, answer in answers.items():
                tasks.start_soon(serve, name, answer)
            while not stop.is_set():
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    thread = threading.Thread(target=partial(anyio.run, main))
    thread.start()
    try:
        assert ready.wait(10)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(control, "alive", looked)
            yield fakes
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def store(desk: Desk) -> Path:
    async def make() -> None:
        async with opened_storage(desk.store):
            pass

    anyio.run(make)
    return desk.store


def test_status_shows_every_supervisor(desk: Desk, store: Path) -> None:
    with supervised(store, a=well, b=refuses, c=lambda _verb: {"id": "c"}):
        found = desk.command("status")
        as_json = json.loads(desk.command("status", "--json").stdout)
    assert found.exit_code == 0, found.output
    blocks = found.stdout.split("\n\n")
    assert blocks[0].startswith("supervisor 5f3a9c0d1b2e4f60: running")
    assert blocks[1] == "supervisor b did not say how it is: RuntimeError: it cannot just now"
    assert "supervisor c did not say how it is: it is of another version" in blocks[2]
    assert [each["id"] for each in as_json["supervisors"]] == ["5f3a9c0d1b2e4f60", "b", "c"]
    assert as_json["store"] == str(store)


def test_status_tells_what_no_supervisor_serves(desk: Desk, store: Path) -> None:
    graph = load_graph(desk.graph)

    async def submitted() -> None:
        async with opened_storage(store) as opened:
            for _ in range(2):
                await submit(graph, "3", opened)

    anyio.run(submitted)
    with supervised(store, a=well):
        found = desk.command("status", "--storage", store)
        as_json = json.loads(desk.command("status", "--json").stdout)
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[-3:] == [
        "",
        f"  unserved  2 of {graph.id}",
        f"    tinyllm supervise {desk.graph} --storage {store}",
    ]
    assert as_json["unserved"] == [{"graph_id": graph.id, "graph_path": str(desk.graph), "waiting": 2}]
    with supervised(store, a=lambda _verb: to_json(status(graphs=(graph.id,)))):
        assert "unserved" not in desk.command("status").stdout
    with supervised(store, a=refuses):
        found = desk.command("status")
        as_json = json.loads(desk.command("status", "--json").stdout)
    assert "  unserved  not known: supervisor a did not say" in found.stdout
    assert as_json["unserved"] is None


def test_status_where_no_supervisor_is(desk: Desk, store: Path) -> None:
    async def submitted() -> None:
        async with opened_storage(store) as opened:
            await submit(load_graph(desk.graph), "3", opened)
            await submit(load_graph(desk.graph), "3", opened, not_before=time.time() + 3600)

    anyio.run(submitted)
    found = desk.command("status", "--storage", store)
    assert found.exit_code == 4
    assert "  traces    1 waiting, 1 later, 0 running, 0 apart, 0 quarantined" in found.stdout.splitlines()
    assert found.stderr.splitlines() == [
        f"error: no supervisor serves the store at {store}; start one:",
        f"  tinyllm supervise {desk.graph} --storage {store}",
    ]
    as_json = desk.command("status", "--json")
    assert as_json.exit_code == 4
    assert json.loads(as_json.stdout)["supervisors"] == []
    assert json.loads(as_json.stdout)["backlog"]["waiting"] == 1


def test_status_of_an_empty_store(desk: Desk, store: Path) -> None:
    found = desk.command("status")
    assert found.exit_code == 4
    assert "  lag       nothing waits" in found.stdout.splitlines()
    assert found.stderr.splitlines()[1] == "  tinyllm supervise GRAPH"


@pytest.mark.parametrize("command", ["status", "drain"])
def test_a_store_that_is_not_there_is_not_made(desk: Desk, command: str) -> None:
    found = desk.command(command)
    assert found.exit_code == 4
    assert "there is no store" in found.stderr
    assert not desk.store.exists()


def test_drain_waits_until_all_have_ended(desk: Desk, store: Path) -> None:
    with supervised(store, a=well, b=well) as fakes:
        found = desk.command("drain")
        assert list((store / "supervisors").iterdir()) == []
        assert [fakes[name].asked for name in "ab"] == [["drain"], ["drain"]]
    assert (found.exit_code, found.stderr) == (0, "draining: a, b\n")
    assert found.stdout == f"2 supervisors of {store} ended: a, b\n"


def test_drain_says_who_could_not_be_told(desk: Desk, store: Path) -> None:
    with supervised(store, a=well, b=refuses):
        found = desk.command("drain", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout) == {
        "store": str(store),
        "ended": ["a"],
        "failed": [{"id": "b", "error": "RuntimeError: it cannot just now"}],
    }
    assert "error: supervisor b was not told to drain: RuntimeError: it cannot just now" in found.stderr


def test_drain_where_no_supervisor_is(desk: Desk, store: Path) -> None:
    found = desk.command("drain")
    assert (found.exit_code, found.stdout) == (4, "")
    assert found.stderr == f"error: no supervisor serves the store at {store}: there is nothing to drain\n"


def test_watch_goes_on_until_it_is_interrupted(desk: Desk, store: Path) -> None:
    with desk.start("status", "--watch", "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["supervisors"] == []  # it waits for one to come
        with supervised(store, a=well):
            while not json.loads(process.stdout.readline())["supervisors"]:
                pass
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_watch_reports_what_goes_wrong(desk: Desk) -> None:
    found = desk.command("status", "--watch")
    assert found.exit_code == 4
    assert "there is no store" in found.stderr


def test_watch_draws_on_a_terminal_and_gives_the_cursor_back(desk: Desk, store: Path) -> None:
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    with supervised(store, a=well):
        process = subprocess.Popen(
            [sys.executable, "-m", "tinyllm", "status", "--watch"],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "80"},
        )
        with process:
            os.close(theirs)
            drawn = b""
            while drawn.count(b"supervisor 5f3a9c0d1b2e4f60") < 2:
                drawn += os.read(ours, 65536)
            process.send_signal(signal.SIGTERM)
            try:
                while part := os.read(ours, 65536):
                    drawn += part
            except OSError:  # on Linux, the end of a terminal that nobody holds open
                pass
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""
    os.close(ours)
    assert drawn.count(b"\x1b[?25l") == drawn.count(b"\x1b[?25h") == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert "  graphs    survey, digest" in text
