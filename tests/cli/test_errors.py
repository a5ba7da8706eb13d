"""What bad input gets: the place and the remedy on stderr, an exit code, nothing on stdout, never a traceback."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import Result

from tests.cli.desk import NODES, Desk
from tinyllm import (
    AlreadyAnswered,
    AnswerRefused,
    CheckpointInUse,
    ErrorInfo,
    ExecutionError,
    LimitReached,
    NodeTimeout,
    NothingToRun,
    QuestionNotOpen,
    TaskResponse,
    TinyLLMError,
    TraceEnded,
)
from tinyllm.cli.main import cli
from tinyllm.cli.options import TRACE
from tinyllm.cli.report import explain, users_line


def check(result: Result, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "fault in tinyllm" not in result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr


# -- graph files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe\x00", b"nodes: [", b"- 1", b"id: x\nnodes: []\n", b"id: x\nid: y\nnodes: []\n"]
)
def test_bad_graph_file(desk: Desk, content: bytes | None) -> None:
    bad = desk.folder / "bad.yaml"
    if content is not None:
        bad.write_bytes(content)
    check(desk.command("run", bad), 2, "error: ", "bad.yaml")
    assert not desk.store.exists()
    validated = desk.command("graph", "validate", bad)
    assert validated.exit_code == 2
    assert "bad.yaml" in validated.stdout


def test_bad_graph_names_the_command_that_checks_it(desk: Desk) -> None:
    desk.graph.write_text(desk.graph.read_text().replace("to_node: total", "to_node: totl"))
    result = desk.command("run", desk.graph)
    check(result, 2, "graph.yaml:9:", "totl")
    assert shlex.split(result.stderr.splitlines()[-1]) == ["tinyllm", "graph", "validate", str(desk.graph)]


def test_folder_as_graph(desk: Desk) -> None:
    check(desk.command("run", desk.folder), 2, "error: ", str(desk.folder))


def test_functions_that_do_not_import(desk: Desk) -> None:
    (desk.folder / "nodes.py").write_text("import nothing_of_that_name\n")
    check(desk.command("run", desk.graph), 2, "nothing_of_that_name")


# -- arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("lang=en", "--set 'lang=\"en\"'"),
        ("limit", "--set limit=20"),
        ("=3", "--set limit=20"),
        ("x=NaN", "--set 'x=\"NaN\"'"),
        ("it=it's", ""),
    ],
)
def test_setting_that_is_not_json_shows_how_it_is_written(desk: Desk, setting: str, remedy: str) -> None:
    result = desk.command("run", desk.graph, "--set", setting)
    check(result, 2, remedy)


def test_the_shown_quoting_works(desk: Desk) -> None:
    refused = desk.command("run", desk.graph, "--set", 'text=it\'s "so"')
    remedy = shlex.split(refused.stderr.partition("write ")[2].replace("│", " "))
    assert desk.command("run", desk.graph, *remedy[:2]).exit_code == 0


@pytest.mark.parametrize(("task", "text"), [("@nowhere.txt", "nowhere.txt"), ("@bytes.bin", "not UTF-8")])
def test_unreadable_task(desk: Desk, task: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    Path("bytes.bin").write_bytes(b"a\xff")
    check(desk.command("run", desk.graph, "--task", task), 2, text)


@pytest.mark.parametrize(
    "words",
    [
        ["--durability", "never"],
        ["--kill-after", "0"],
        ["--log-level", "LOUD"],
        ["--id", "no/slash"],
        ["--id", ""],
        ["--nonsense"],
    ],
)
def test_settings_out_of_range(desk: Desk, words: list[str]) -> None:
    check(desk.command("run", desk.graph, *words), 2, words[0].strip("-") if words[0] != "--id" else "trace_id")


@pytest.mark.parametrize("at", ["-1", "+1", ""])
def test_place_to_fork_at_that_can_be_none(desk: Desk, at: str) -> None:
    desk.command("run", desk.graph, "--id", "demo")
    check(desk.command("fork", "demo", "--at", at), 2, "no step, which is a whole number from 0, no node and no label")


@pytest.mark.parametrize(("at", "hint"), [("1.5", ""), ("$end", ""), ("totl", " (did you mean 'total'?)")])
def test_place_to_fork_at_that_is_not_there(desk: Desk, at: str, hint: str) -> None:
    desk.command("run", desk.graph, "--id", "demo")
    check(desk.command("fork", "demo", "--at", at), 4, f"{at!r}, which is no node, no step and no label{hint}")


def test_checkpoints_of_two_traces(desk: Desk) -> None:
    check(desk.command("checkpoints", "a", "--trace-id", "b"), 2, "once")


# -- traces ----------------------------------------------------------------------------------------------------


def test_unknown_trace_gets_near_misses_and_the_store(desk: Desk) -> None:
    desk.command("run", desk.graph, "--id", "squares-7k3mq")
    for verb in (["resume"], ["show"], ["checkpoints"], ["fork", "--at", "1"]):
        result = desk.command(*verb, "sqaures-7k3mq")
        check(result, 4, str(desk.store), "did you mean squares-7k3mq?")
        assert result.stderr.splitlines()[-1] == "  tinyllm show squares-7k3mq"


def test_ambiguous_prefix(desk: Desk) -> None:
    for name in ("squares-a", "squares-b"):
        desk.command("run", desk.graph, "--id", name)
    check(desk.command("resume", "squares"), 2, "squares-a", "squares-b")


def test_same_id_for_another_task(desk: Desk) -> None:
    desk.command("run", desk.graph, "--id", "demo", "--task", "2")
    result = desk.command("run", desk.graph, "--id", "demo", "--task", "3")
    check(result, 2, "another task", "tinyllm show demo")


def test_node_that_raises_shows_its_place_and_how_to_go_on(desk: Desk) -> None:
    (desk.folder / "broken").touch()
    result = desk.command("run", desk.graph, "--task", "4", "--id", "demo", "--storage", desk.folder / "my store")
    line = NODES.partition("raise Zero")[0].count("\n") + 1
    check(result, 1, "in node 'work'", "  ZeroDivisionError: two is not allowed", f"nodes.py:{line} in work")
    paste = shlex.split(result.stderr.splitlines()[-1])
    assert paste == ["tinyllm", "resume", "demo", "--storage", str(desk.folder / "my store")]
    (desk.folder / "broken").unlink()
    assert desk.command(*paste[1:]).stdout == "the sum is 14\n"


def test_many_failures_are_told_once_and_counted(desk: Desk) -> None:
    nodes = desk.folder / "nodes.py"
    nodes.write_text(nodes.read_text().replace("return n * n", "await anyio.sleep(0.01 * n)\n    return 1 // 0"))
    result = desk.command("run", desk.graph, "--task", "4", "--id", "demo")
    check(result, 1)
    assert result.stderr.count("letting what is running finish") == 1
    assert re.search(r"^demo: failed at step 1 after .*, 2 failures$", result.stderr, re.MULTILINE)


def test_condition_that_fails_offers_to_decide_again_or_to_run_the_node_again(desk: Desk) -> None:
    desk.graph.write_text(
        desk.graph.read_text().replace("to_node: total}", 'to_node: total, condition: "misspelt > 1"}')
    )
    result = desk.command("run", desk.graph, "--task", "1", "--id", "demo")
    check(result, 1, "misspelt")
    commands = [line.strip() for line in result.stderr.splitlines()[-2:]]
    assert commands == ["tinyllm resume demo", "tinyllm fork demo --at work"]
    assert desk.command("show", "demo").stdout.splitlines()[-2:] == [f"  {command}" for command in commands]
    desk.graph.write_text(desk.graph.read_text().replace("misspelt > 1", "structured == 0"))
    assert desk.command("resume", "demo").stdout == "the sum is 0\n"
    assert desk.witnessed() == [0]
    assert desk.command("fork", "demo", "--at", "work").stdout == "the sum is 0\n"
    assert desk.witnessed() == [0, 0]


def test_graph_that_ends_before_an_exit_offers_a_fork_before_its_last_node(desk: Desk) -> None:
    whole = desk.graph.read_text()
    desk.graph.write_text(whole.replace("to_node: total}", 'to_node: total, condition: "structured > 99"}'))
    result = desk.command("run", desk.graph, "--task", "1", "--id", "demo")
    check(result, 1, "without reaching an exit", "mend the graph")
    assert result.stderr.splitlines()[-1] == "  tinyllm fork demo --at work"
    assert desk.command("show", "demo").stdout.splitlines()[-1] == "  tinyllm fork demo --at work"
    desk.graph.write_text(whole)
    assert desk.command("fork", "demo", "--at", "work").stdout == "the sum is 0\n"


def test_node_that_raises_and_json(desk: Desk) -> None:
    (desk.folder / "broken").touch()
    result = desk.command("run", desk.graph, "--task", "4", "--json")
    assert result.exit_code == 1
    assert '"status": "failed"' in result.stdout
    assert '"success": false' in result.stdout


@pytest.mark.parametrize("bad", ["object()", "float('nan')", "'\\ud800'"])
def test_node_that_returns_what_cannot_be_stored(desk: Desk, bad: str) -> None:
    nodes = desk.folder / "nodes.py"
    nodes.write_text(nodes.read_text().replace("return n * n", f"return [1, {bad}]"))
    check(desk.command("run", desk.graph), 1, "in node 'work'", "value[1]")


def explained(error: TinyLLMError) -> tuple[str, list[str], int]:
    context = click.Context(cli)
    context.meta[TRACE] = "demo"
    return explain(error, context)


@pytest.mark.parametrize(
    ("error", "commands", "code"),
    [
        (TraceEnded("demo", "failed"), ["show"], 2),
        (QuestionNotOpen("demo", "a"), ["show"], 4),
        (QuestionNotOpen("demo", "a", ["b"]), ["show"], 4),
        (QuestionNotOpen("demo", "a", ["x.1.a", "x.2.a"], several=True), ["show"], 2),
        (QuestionNotOpen("demo", None, ["a", "b"], several=True), ["show"], 2),
        (AlreadyAnswered("demo", "a"), ["show", "resume"], 2),
        (AnswerRefused("x.1.a", "it must be boolean"), ["show"], 2),
        (NothingToRun("demo"), ["checkpoints"], 2),
        (CheckpointInUse("demo", 3, "a fork starts from it"), ["checkpoints"], 2),
    ],
)
def test_every_error_ends_in_a_line_to_paste(error: TinyLLMError, commands: list[str], code: int) -> None:
    _, lines, exit_code = explained(error)
    assert lines == [f"tinyllm {command} demo" for command in commands]
    assert exit_code == code


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (NodeTimeout("work", 3), "once the node is faster, or its timeout in the graph longer"),
        (LimitReached("max_steps", 5), "once the limit in the graph is higher"),
        (ZeroDivisionError("no"), "once the cause is mended"),
    ],
)
def test_the_cure_is_that_of_the_cause(error: Exception, cure: str) -> None:
    info = ErrorInfo(type=type(error).__name__, message=str(error))
    response = TaskResponse(trace_id="demo", status="failed", error=info)
    text, lines, code = explained(ExecutionError("demo", None, 5, "it failed", response))
    assert text.splitlines()[-1] == f"everything up to there is kept; {cure}:"
    assert (lines, code) == (["tinyllm resume demo"], 1)


# -- stores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["list"], ["show", "demo"], ["resume", "demo"], ["checkpoints"]])
def test_store_that_is_not_there_is_not_made(desk: Desk, verb: list[str]) -> None:
    check(desk.command(*verb, "--storage", desk.folder / "typo"), 4, "typo", "--storage")
    assert not (desk.folder / "typo").exists()


def test_store_that_is_a_file(desk: Desk) -> None:
    check(desk.command("run", desk.graph, "--storage", desk.graph), 1, str(desk.graph), "not accessible")
    check(desk.command("list", "--storage", desk.graph), 1, str(desk.graph), "not accessible")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_store_that_is_read_only(desk: Desk) -> None:
    locked = desk.folder / "locked"
    locked.mkdir(mode=0o500)
    check(desk.command("run", desk.graph, "--storage", locked / "store"), 1, "locked", "not accessible")


def test_store_below_a_file(desk: Desk) -> None:
    check(desk.command("run", desk.graph, "--storage", desk.graph / "store"), 1, "graph.yaml", "not accessible")


# -- bugs ------------------------------------------------------------------------------------------------------


def test_a_bug_is_short_and_says_where_the_traceback_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("tinyllm.core.builder.load_graph", broken)
    short = desk.command("run", desk.graph)
    assert short.exit_code == 1
    assert "fault in tinyllm" in short.stderr
    assert "--log-level DEBUG" in short.stderr
    assert "Traceback" not in short.stderr
    assert "Traceback" in desk.command("run", desk.graph, "--log-level", "DEBUG").stderr


def test_users_line_is_the_innermost_of_their_own() -> None:
    inner = f'  File "{os.__file__}", line 5, in join\n    return 1\n'
    theirs = '  File "/home/me/nodes.py", line 42, in measure\n    os.path.join(1)\n'
    outer = '  File "/home/me/outer.py", line 1, in outer\n    measure()\n'
    assert users_line(outer + theirs + inner) == "/home/me/nodes.py:42 in measure"
    assert users_line(inner) == f"{os.__file__}:5 in join"
    assert users_line("nothing") is None
