"""`tinyllm submit`, and what the other commands say of a trace that waits, or is quarantined."""

from __future__ import annotations

import json
import shlex
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import click
import msgspec
import pytest

from tests.cli.desk import Desk
from tinyllm import CheckpointStorage
from tinyllm.cli.submit import parse_time
from tinyllm.cli.text import local_time
from tinyllm.core.deaths import Death, decode_deaths
from tinyllm.core.store import opened_storage
from tinyllm.core.wake import address, supervisors
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import encode_error
from tinyllm.storage.contract import Acquire, Acquired, Disown, Done

DEATHS = [
    {"at": 1.7e9, "cause": "it exited with code 9", "within": True, "pid": 4711, "beside": 0, "step": 1},
    {"at": 1.7e9 + 100, "cause": "it crashed", "within": True, "pid": 4712, "beside": 3, "step": 1},
]


@pytest.fixture
def waiting(desk: Desk) -> Desk:
    """With a trace `demo` that was submitted."""
    result = desk.command("submit", desk.graph, "--task", "4", "--id", "demo", "--priority", "2")
    assert (result.exit_code, result.stdout) == (0, "demo\n")
    return desk


def in_store(desk: Desk, act: Callable[[CheckpointStorage], Any]) -> Any:
    async def go() -> Any:
        async with opened_storage(desk.store) as store:
            return await act(store)

    return anyio.run(go)


def kill(desk: Desk, *, error: str | None = None, deaths: bytes | None = None) -> None:
    """The owner of trace `demo` died."""

    async def act(store: CheckpointStorage) -> None:
        record = await store.trace("demo")
        assert record is not None
        (acquired,) = await store.commit([Acquire(record.trace, "demo", record.epoch, "dead")])
        assert isinstance(acquired, Acquired)
        told = None if error is None else encode_error(ErrorInfo(type=error, message="processes died of it"))
        evidence = msgspec.json.encode(DEATHS) if deaths is None else deaths
        write = Disown(record.trace, "demo", acquired.epoch, "dead", evidence, error=told)
        assert await store.commit([write]) == [Done()]

    in_store(desk, act)


def record(desk: Desk) -> dict[str, Any]:
    (found,) = json.loads(desk.command("list", "--json").stdout)
    assert isinstance(found, dict)
    return found


# -- submit ----------------------------------------------------------------------------------------------------


def test_it_prints_the_id_and_how_to_have_it_executed(desk: Desk) -> None:
    result = desk.command("submit", desk.graph, "--task", "4", "--storage", desk.store)
    name = result.stdout.strip()
    assert name.startswith("squares-")
    assert result.stderr.splitlines() == [
        "queued",
        f"no supervisor serves {desk.store}; start one with:",
        f"  tinyllm supervise {shlex.quote(str(desk.graph))} --storage {shlex.quote(str(desk.store))}",
    ]
    done = desk.command("run", desk.graph, "--task", "4", "--id", name)
    assert (done.exit_code, done.stdout) == (0, "the sum is 14\n")
    assert done.stderr.splitlines()[0] == f"{name}: started"


def test_it_says_nothing_of_supervisors_where_one_listens(desk: Desk) -> None:
    desk.store.mkdir()
    directory = in_store(desk, _directory)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        with address(directory, "x.sock") as path:
            listener.bind(path)
        listener.listen()
        result = desk.command("submit", desk.graph, "--task", "4", "--id", "demo")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "demo\n", "queued\n")
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):  # once is enough
            listener.accept()


async def _directory(store: CheckpointStorage) -> Any:
    return supervisors(store)


def test_it_prints_the_record_as_json(desk: Desk) -> None:
    words = ["--task", "4", "--id", "demo", "--priority", "-3", "--not-before", "2090-01-31T14:05+02:00", "--json"]
    result = desk.command("submit", desk.graph, *words)
    found = json.loads(result.stdout)
    wanted = {"trace_id": "demo", "status": "queued", "step": 0, "owner": None, "priority": -3, "deaths": []}
    assert wanted.items() <= found.items()
    assert (found["not_before"], found["apart"]) == ("2090-01-31T12:05:00.000+00:00", False)
    at = datetime(2090, 1, 31, 12, 5, tzinfo=UTC).timestamp()
    assert result.stderr.splitlines()[0] == f"queued, not before {local_time(at)}"


def test_the_same_id_and_task_are_one_trace(waiting: Desk) -> None:
    again = waiting.command("submit", waiting.graph, "--task", "4", "--id", "demo")
    assert (again.exit_code, again.stdout) == (0, "demo\n")
    assert again.stderr.startswith("queued before; nothing was changed\n")
    assert waiting.command("resume", "demo").exit_code == 0
    ended = waiting.command("submit", waiting.graph, "--task", "4", "--id", "demo")
    assert (ended.exit_code, ended.stdout) == (0, "demo\n")
    assert ended.stderr == "completed before; nothing was submitted\n  tinyllm show demo\n"
    other = waiting.command("submit", waiting.graph, "--task", "5", "--id", "demo")
    assert (other.exit_code, other.stdout) == (2, "")
    assert "exists with another task" in other.stderr
    assert len(json.loads(waiting.command("list", "--json").stdout)) == 1


def test_what_it_waits_for_is_not_changed_and_that_is_said(desk: Desk) -> None:
    words = ("submit", desk.graph, "--task", "4", "--id", "demo")
    first = desk.command(*words, "--priority", "2", "--not-before", "2090-01-31T14:05")
    assert first.stderr.startswith("queued, not before 2090-01-31 14:05")
    again = desk.command(*words, "--priority", "9", "--not-before", "+10m")
    assert (again.exit_code, again.stdout) == (0, "demo\n")
    assert again.stderr.startswith("queued before, not before 2090-01-31 14:05")
    assert again.stderr.splitlines()[0].endswith("; nothing was changed")
    assert record(desk)["priority"] == 2


def test_variables_are_set_and_secrets_are_not_stored(desk: Desk) -> None:
    words = ["--task", "4", "--set", "base=100", "--set", 'token="hunter2"', "--redact", "token"]
    name = desk.command("submit", desk.graph, *words).stdout.strip()
    assert "hunter2" not in desk.command("show", name, "--json").stdout
    assert desk.command("resume", name).stdout == "the sum is 114\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--not-before", "tomorrow"], "'tomorrow' is neither a time such as"),
        (["--not-before", "+10"], "'+10' is neither"),
        (["--not-before", "10m"], "'10m' is neither"),
        (["--not-before", "9999-01-01"], "'not_before'"),
        (["--priority", "1e3"], "--priority"),
        (["--priority", str(2**53)], "'priority'"),
        (["--id", "no good"], "'trace_id'"),
    ],
)
def test_what_is_out_of_range_is_refused(desk: Desk, words: list[str], said: str) -> None:
    result = desk.command("submit", desk.graph, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "fault in tinyllm" not in result.stderr


def test_a_time_is_local_or_of_its_zone_or_from_now() -> None:
    assert parse_time(None) is None
    assert parse_time("2030-01-31T14:05") == datetime(2030, 1, 31, 14, 5).timestamp()
    assert parse_time("2030-01-31") == datetime(2030, 1, 31).timestamp()
    assert parse_time("2030-01-31T14:05Z") == datetime(2030, 1, 31, 14, 5, tzinfo=UTC).timestamp()
    assert parse_time("1960-01-01") == 0
    before = time.time()
    assert before + 5400 <= (parse_time("+1.5h") or 0) <= time.time() + 5400
    for text in ("", "+", "+-1s", "14:05"):
        with pytest.raises(click.BadParameter):
            parse_time(text)


# -- what is seen of it ----------------------------------------------------------------------------------------


def test_what_waits_is_listed_and_shown(waiting: Desk) -> None:
    waiting.command("submit", waiting.graph, "--id", "later", "--not-before", "+2h")
    waiting.command("run", waiting.graph, "--id", "done")
    listed = json.loads(waiting.command("list", "--status", "queued", "--json").stdout)
    assert {each["trace_id"] for each in listed} == {"demo", "later"}
    assert [line.split()[:3] for line in waiting.command("list", "--status", "queued").stdout.splitlines()[1:]] == [
        ["later", "squares", "queued"],
        ["demo", "squares", "queued"],
    ]
    shown = waiting.command("show", "demo").stdout
    assert "queued at step 0, rev 0" in shown
    assert "waits   with priority 2\n" in shown
    assert shown.endswith("it waits for a supervisor; execute it here with:\n  tinyllm resume demo\n")
    due = next(each["not_before"] for each in listed if each["trace_id"] == "later")
    at = local_time(datetime.fromisoformat(due).timestamp())
    assert f"waits   with priority 0, not before {at}\n" in waiting.command("show", "later").stdout
    assert "\nwaits " not in waiting.command("show", "done").stdout


def test_what_waits_is_cancelled_and_paused(waiting: Desk) -> None:
    waiting.command("submit", waiting.graph, "--task", "4", "--id", "second")
    assert waiting.command("cancel", "demo").stdout == "demo: cancelled at step 0\n"
    paused = waiting.command("pause", "second")
    assert paused.stdout == "second: paused at step 0\n"
    assert waiting.command("resume", "second").stdout == "the sum is 14\n"


def test_deaths_are_told_before_it_is_quarantined(waiting: Desk) -> None:
    kill(waiting)
    found = record(waiting)
    assert (found["status"], len(found["deaths"])) == ("queued", 2)
    assert "processes that died while they executed it (2)" in waiting.command("show", "demo").stdout


def test_a_quarantined_one_shows_why_and_is_released_by_force(waiting: Desk) -> None:
    kill(waiting, error="WorkerDied")
    found = record(waiting)
    assert (found["status"], found["deaths"][0]["at"]) == ("quarantined", "2023-11-14T22:13:20.000+00:00")
    assert [{**told, "at": None} for told in found["deaths"]] == [{**told, "at": None} for told in DEATHS]
    lines = waiting.command("show", "demo").stdout.splitlines()
    at = lines.index("processes that died while they executed it (2)")
    assert lines[at + 1 : at + 3] == [
        f"  {local_time(1_700_000_000)}: it exited with code 9; process 4711, at step 1",
        f"  {local_time(1_700_000_100)}: it crashed; process 4712, at step 1, beside 3 other traces",
    ]
    assert lines[-1] == "  tinyllm resume demo --force"
    refused = waiting.command("resume", "demo")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        "error: trace 'demo' is quarantined: processes died of it; once the cause is mended, release it: resume it "
        "with force (--force)",
        "  tinyllm show demo",
        "  tinyllm resume demo --force",
    ]
    released = waiting.command("resume", "demo", "--force")
    assert (released.exit_code, released.stdout) == (0, "the sum is 14\n")
    assert record(waiting)["deaths"] == []


def test_one_that_was_damaged_is_not_released(waiting: Desk) -> None:
    kill(waiting, error="CheckpointDamaged", deaths=b"null")
    assert waiting.command("show", "demo").stdout.endswith("a fork can start from:\n  tinyllm checkpoints demo\n")
    refused = waiting.command("resume", "demo", "--force")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1] == "  tinyllm checkpoints demo"


@pytest.mark.parametrize(
    "stored", [b"", b"{}", b'[{"at": "x"}]', b"[1]", b'[{"at":1e300,"cause":"","pid":1,"beside":0,"step":0}]']
)
def test_deaths_that_make_no_sense_are_none(stored: bytes) -> None:
    assert decode_deaths(stored) == ()


def test_deaths_are_read_as_they_are_written() -> None:
    assert decode_deaths(None) == ()
    assert decode_deaths(msgspec.json.encode(DEATHS)) == tuple(Death(**told) for told in DEATHS)  # type: ignore[arg-type]
