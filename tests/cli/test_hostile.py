"""What the command line prints and runs of a store, and of a graph, that somebody else wrote."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.cli.desk import Desk
from tinyllm.cli.text import printable, say_json
from tinyllm.storage.sqlite.library import sqlite3

COMMAND = "\x1b]0;owned\x07\x9b31m\u202e"
"""Sets a terminal's title, its colour in the eight bits of C1, and the direction of text."""

GRAPH = """\
id: g
functions: [nodes.py]
nodes: [{id: a, type: function}, {id: b, type: function}]
edges: [{from_node: a, to_node: b}]
"""
NODES = f"""\
from tinyllm import node

COMMAND = {COMMAND!r}

@node
async def a(task, context):
    context.logger.warning("the log %s", COMMAND)
    return await context.ask("the prompt " + COMMAND, name="n") if task == "ask" else COMMAND

@node
def b(value):
    raise ValueError("the error " + COMMAND)
"""


@pytest.fixture
def store(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.graph.write_text(GRAPH)
    (tmp_path / "nodes.py").write_text(NODES)
    return desk


def commands_nothing(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x9b\u202e")


def test_nothing_that_is_printed_commands_the_terminal(store: Desk) -> None:
    options = ["--storage", str(store.store)]
    store.command("run", store.graph, "--id", "failed", *options)
    store.command("run", store.graph, "--id", "asking", "--task", "ask", *options)
    with closing(sqlite3.connect(store.store / "tinyllm.db")) as connection:
        connection.execute("UPDATE traces SET graph_id = ?, graph_path = ?", (COMMAND, f"/{COMMAND}"))
        connection.execute("UPDATE traces SET trace_id = ? WHERE trace_id = 'failed'", (f"a{COMMAND}",))
        connection.commit()
    verbs = [["list"], ["checkpoints"], ["doctor"], ["show", "a"], ["show", "asking"]]
    verbs += [[*verb, "--json"] for verb in verbs]
    verbs += [["resume", "a"], ["cancel", "a"], ["delete", "a"], ["fork", "a", "--at", COMMAND]]
    verbs += [["resume", COMMAND], ["tag", "asking", COMMAND], ["answer", "asking", COMMAND]]
    verbs += [["answer", "asking", "5", "--question", COMMAND], ["list", "--graph-id", COMMAND]]
    for verb in verbs:
        told = store.command(*verb, *options)
        assert commands_nothing(told.output), verb
        assert "fault in tinyllm" not in told.output, verb
        assert told.exception is None or isinstance(told.exception, SystemExit), verb


def test_what_a_node_logs_and_raises_commands_no_terminal(store: Desk) -> None:
    told = store.command("run", store.graph, "--storage", store.store)
    assert "the log" in told.stderr
    assert "the error" in told.stderr
    assert commands_nothing(told.output)


@pytest.mark.parametrize(
    "words",
    [
        ["show", "\udcff"],
        ["list", "--graph-id", "\udcff"],
        ["run", "\udcff"],
        ["run", "GRAPH", "--id", "\udcff"],
        ["run", "GRAPH", "--task", "\udcff"],
        ["run", "GRAPH", "--set", "\udcff=5"],
        ["run", "GRAPH", "--id", "../x"],
        ["run", "GRAPH", "--id", "a\nb"],
        ["run", "GRAPH", "--id", "a" * 1_000_000],
        ["run", "GRAPH", "--id", "' OR 1 --"],
        ["show", "a" * 1_000_000],
        ["show", "%"],
    ],
)
def test_what_can_be_no_name_is_a_mistake_of_who_typed_it(store: Desk, words: list[str]) -> None:
    store.command("run", store.graph, "--id", "asking", "--task", "ask", "--storage", store.store)
    told = store.command(*(store.graph if word == "GRAPH" else word for word in words), "--storage", store.store)
    assert told.exit_code in (2, 4), told.output
    assert "fault in tinyllm" not in told.output
    assert {path.name for path in store.folder.iterdir()} <= {"store", "graph.yaml", "nodes.py", "__pycache__"}


def test_another_users_store_does_not_choose_what_is_run(store: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    store.command("run", store.graph, "--id", "asking", "--task", "ask", "--storage", store.store)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    told = store.command("resume", "asking", "--storage", store.store)
    assert told.exit_code == 2
    assert "it is another user's store" in told.output
    assert f"tinyllm resume asking --graph {store.graph}" in told.output
    assert store.command("resume", "asking", "--graph", store.graph, "--storage", store.store).exit_code == 3


def test_json_tells_the_same_by_numbers() -> None:
    told = CliRunner().invoke(click.Command("x", callback=lambda: say_json({COMMAND: [COMMAND, "é\n\t"]})))
    assert commands_nothing(told.output)
    assert json.loads(told.output) == {COMMAND: [COMMAND, "é\n\t"]}
    assert "é" in told.output


def test_what_people_write_stays() -> None:
    text = "tabs\tand\nlines, é, 日本, 👩‍🚀"
    assert printable(text) == text


def test_secrets_are_neither_stored_nor_logged(store: Desk) -> None:
    (store.folder / "nodes.py").write_text(
        "from tinyllm import node\n\n@node\ndef a(x):\n    return x + ' ' + 'sk-0123456789'\n\n"
        "@node\nasync def b(x, context):\n"
        "    if x != 'x [redacted]' or context.variables['password'] != '[redacted]':\n        raise KeyError(x)\n"
        "    await context.ask('say', name='password')\n    raise ValueError('sk-0123456789')\n"
    )
    redact = ["--redact", "pass*", "--redact", "/sk-[0-9]+/", "--storage", str(store.store)]
    secrets = ["--set", 'password="hunter"', "--task", "x"]
    asked = store.command("run", store.graph, "--id", "t", *secrets, *redact)
    assert asked.exit_code == 3, asked.output
    assert "tinyllm answer t" in asked.output or "tinyllm resume t" in asked.output
    assert "--redact 'pass*' --redact '/sk-[0-9]+/'" in asked.output
    assert store.command("answer", "t", '"hunter"', *redact).exit_code == 0
    failed = store.command("resume", "t", "--log-level", "DEBUG", *redact)
    assert "ValueError: [redacted]" in failed.output
    held = b"".join(path.read_bytes() for path in store.store.rglob("*") if path.is_file())
    for secret in ("hunter", "sk-0123456789"):
        assert secret.encode() not in held
        assert secret not in asked.output + failed.output
    assert store.command("run", store.graph, "--redact", "/(/", "--storage", store.store).exit_code == 2
    assert store.command("run", store.graph, "--redact", "/a*/", "--storage", store.store).exit_code == 2
