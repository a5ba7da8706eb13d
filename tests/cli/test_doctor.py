"""`tinyllm doctor`: what it says of a store, what it finds, and what it saves."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.desk import Desk


@pytest.fixture
def filled(desk: Desk) -> Desk:
    """Three traces, of which `child` is a fork of `parent`; all completed."""
    for name in ("parent", "other"):
        assert desk.command("run", desk.graph, "--task", "3", "--id", name).exit_code == 0
    assert desk.command("fork", "parent", "--at", "2", "--id", "child").exit_code == 0
    return desk


def damage(store: Path, statement: str) -> None:
    with closing(sqlite3.connect(store / "tinyllm.db", isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount > 0


def key(store: Path, trace: str) -> int:
    with closing(sqlite3.connect(store / "tinyllm.db")) as connection:
        return int(connection.execute("SELECT key FROM traces WHERE trace_id = ?", (trace,)).fetchone()[0])


def test_a_whole_store(filled: Desk) -> None:
    result = filled.command("doctor")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == f"store      {filled.store / 'tinyllm.db'}"
    assert "processes  none has a lease" in lines
    assert "traces     3 completed" in lines
    assert lines[-1] == "check      the file is whole, and every trace can be read"
    assert max(map(len, lines[1:])) <= 80


def test_where_there_is_no_store_none_is_made(desk: Desk) -> None:
    result = desk.command("doctor")
    assert result.exit_code == 4
    assert "there is no store at" in result.stderr
    assert not desk.store.exists()


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE messages SET body = '1' WHERE id >> 32 = {key} AND body = '[0,1,2]'", "message"),
        ("DELETE FROM messages WHERE id = {key} << 32 | 2", "message"),
        ("DELETE FROM steps WHERE id = {key} << 32 | 3", "the record of the step is missing"),
        ("DELETE FROM activations WHERE id >> 32 = {key}", "activations"),
        ("DELETE FROM checkpoints WHERE id >> 32 = {key}", "checkpoint"),
        ("UPDATE graphs SET body = '{{}}'", "definition"),
    ],
)
def test_damage_is_found_and_the_others_are_saved(filled: Desk, statement: str, what: str) -> None:
    damage(filled.store, statement.format(key=key(filled.store, "other")))
    result = filled.command("doctor", "--json")
    assert result.exit_code == 1, result.stdout
    found = json.loads(result.stdout)
    assert found["sound"] is False
    damaged = {each["trace_id"]: each["what"] for each in found["damaged"]}
    assert "other" in damaged
    assert what in damaged["other"]

    shown = filled.command("doctor")
    assert shown.exit_code == 1
    assert "damage     " in shown.stdout
    assert ("tinyllm doctor --salvage DIR" in shown.stderr) == bool(found["intact"])

    target = filled.folder / "saved"
    saved = filled.command("doctor", "--salvage", target)
    assert saved.exit_code == 1
    assert target.exists() == bool(found["intact"])
    if found["intact"]:
        listed = json.loads(filled.command("list", "--storage", target, "--json").stdout)
        assert {each["trace_id"] for each in listed} == {"parent", "child", "other"} - damaged.keys()
        again = filled.command("doctor", "--storage", target)
        assert again.exit_code == 0, again.stdout
        resumed = filled.command("run", filled.graph, "--task", "3", "--id", "parent", "--storage", target)
        assert resumed.stdout == "the sum is 5\n"


def test_a_fork_is_saved_without_its_damaged_parent(filled: Desk) -> None:
    parent = key(filled.store, "parent")
    damage(
        filled.store,
        f"UPDATE messages SET body = '7' WHERE id = (SELECT max(id) FROM messages WHERE id >> 32 = {parent})",
    )
    target = filled.folder / "saved"
    assert filled.command("doctor", "--salvage", target).exit_code == 1
    listed = json.loads(filled.command("list", "--storage", target, "--json").stdout)
    assert {each["trace_id"] for each in listed} == {"child", "other"}
    assert filled.command("show", "child", "--storage", target).exit_code == 0
    assert filled.command("delete", "child", "--yes", "--storage", target).exit_code == 0
    assert filled.command("doctor", "--storage", target).exit_code == 0


def test_nothing_is_saved_into_a_store_that_is_there(filled: Desk) -> None:
    result = filled.command("doctor", "--salvage", filled.store)
    assert result.exit_code != 0
    assert "there is a store already" in result.stderr


def test_a_file_that_is_damaged_itself(filled: Desk) -> None:
    with closing(sqlite3.connect(filled.store / "tinyllm.db")) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (filled.store / "tinyllm.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    result = filled.command("doctor")
    assert result.exit_code == 1
    assert "damage" in result.stdout, result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_trace_goes_on_and_what_was_damaged_is_set_aside(filled: Desk) -> None:
    damage(filled.store, "UPDATE variables SET body = '4' WHERE id = (SELECT max(id) FROM variables WHERE body = '3')")
    (name,) = (each["trace_id"] for each in json.loads(filled.command("doctor", "--json").stdout)["damaged"])
    shown = filled.command("show", name)
    assert shown.exit_code == 1
    assert f"tinyllm resume {name}" in shown.stderr
    resumed = filled.command("resume", name)
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.stdout == "the sum is 5\n"
    lines = resumed.stderr.splitlines()
    assert lines[0].startswith(f"{name}: damaged at step 5: variable 'count', change ")
    assert "  goes on from step 4; run again: total (1); the damaged trace is kept as" in lines[1]
    assert lines[2] == f"resumed {name}: kept 4 steps, 1 run again, 0 lost"
    result = filled.command("doctor")
    assert result.exit_code == 0
    assert f"set aside  {name}.damaged-" in result.stdout


def test_a_trace_that_cannot_be_read_can_be_deleted(filled: Desk) -> None:
    damage(filled.store, "UPDATE traces SET task_digest = 'another' WHERE trace_id = 'other'")
    refused = filled.command("resume", "other")
    assert refused.exit_code == 1
    assert "tinyllm doctor" in refused.stderr
    assert filled.command("delete", "other", "--yes").exit_code == 0
    assert filled.command("doctor").exit_code == 0
    assert filled.command("run", filled.graph, "--task", "3", "--id", "other").exit_code == 0
