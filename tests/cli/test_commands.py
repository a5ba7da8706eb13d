"""Every command on a small graph: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.cli.desk import Desk


@pytest.fixture
def done(desk: Desk) -> Desk:
    """With a completed trace `demo`."""
    assert desk.command("run", desk.graph, "--task", "4", "--id", "demo").exit_code == 0
    return desk


@pytest.fixture
def failed(desk: Desk) -> Desk:
    """With a trace `demo` of which one node has failed."""
    (desk.folder / "broken").touch()
    assert desk.command("run", desk.graph, "--task", "4", "--id", "demo").exit_code == 1
    (desk.folder / "broken").unlink()
    return desk


# -- run -------------------------------------------------------------------------------------------------------


def test_run_puts_the_result_on_stdout_and_the_rest_on_stderr(desk: Desk) -> None:
    result = desk.command("run", desk.graph, "--task", "4", "--id", "demo")
    assert (result.exit_code, result.stdout) == (0, "the sum is 14\n")
    first, *_, last = result.stderr.splitlines()
    assert first == "demo: started"
    assert last.startswith("demo: completed at step 6 after ")


def test_run_again_prints_the_recorded_result_and_runs_nothing(done: Desk) -> None:
    result = done.command("run", done.graph, "--task", "4", "--id", "demo")
    assert (result.exit_code, result.stdout) == (0, "the sum is 14\n")
    assert result.stderr == "demo: completed before; this is its recorded result\n"
    assert sorted(done.witnessed()) == [0, 1, 2, 3]


def test_run_without_an_id_names_a_typeable_one(desk: Desk) -> None:
    result = desk.command("run", desk.graph)
    name = result.stderr.split(":")[0]
    assert name.startswith("squares-")
    assert desk.command("show", name).exit_code == 0


def test_run_prints_the_response_as_json(desk: Desk) -> None:
    result = desk.command("run", desk.graph, "--task", "4", "--id", "demo", "--json", "--set", "base=100")
    response = json.loads(result.stdout)
    assert response["total_latency_ms"] > 0
    wanted = {"trace_id": "demo", "status": "completed", "success": True, "value": "the sum is 114", "error": None}
    assert wanted.items() <= response.items()
    assert response["content"] == "the sum is 114"
    assert response["nodes_executed"] == 6


@pytest.mark.parametrize("task", ["@task.txt", "-"])
def test_task_comes_from_a_file_or_stdin(desk: Desk, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    (desk.folder / "task.txt").write_text("4")
    result = desk.command("run", desk.graph, "--task", task, stdin="4")
    assert result.stdout == "the sum is 14\n"


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
def test_every_durability_ends_with_the_same_result(desk: Desk, durability: str) -> None:
    result = desk.command("run", desk.graph, "--task", "4", "--durability", durability, "--id", "demo")
    assert result.stdout == "the sum is 14\n"
    assert desk.command("resume", "demo").stdout == "the sum is 14\n"


@pytest.mark.parametrize("where", ["call", "load"])
def test_what_the_users_code_prints_goes_to_stderr(desk: Desk, where: str) -> None:
    nodes = desk.folder / "nodes.py"
    line = '    print("from a node")\n'
    text = nodes.read_text()
    nodes.write_text(
        text.replace("    return list", line + "    return list") if where == "call" else text + line.strip()
    )
    result = desk.command("run", desk.graph, "--task", "4", "--json")
    assert json.loads(result.stdout)["content"] == "the sum is 14"
    assert result.stderr.splitlines().count("from a node") == 1
    validated = desk.command("graph", "validate", desk.graph, "--json")
    assert json.loads(validated.stdout) == []


@pytest.mark.parametrize(("value", "out", "err"), [("None", "", "demo: the result is None\n"), ("''", "\n", "")])
def test_a_result_without_text(desk: Desk, value: str, out: str, err: str) -> None:
    nodes = desk.folder / "nodes.py"
    nodes.write_text(nodes.read_text().replace("return Result(", f"return Result({value}) if True else Result("))
    result = desk.command("run", desk.graph, "--id", "demo")
    assert (result.exit_code, result.stdout) == (0, out)
    assert result.stderr.partition(" after ")[2].partition("\n")[2] == err


# -- resume ----------------------------------------------------------------------------------------------------


def test_resume_says_kept_again_lost_and_runs_only_what_was_not_recorded(failed: Desk) -> None:
    before = failed.witnessed()
    result = failed.command("resume", "demo")
    assert (result.exit_code, result.stdout) == (0, "the sum is 14\n")
    first = result.stderr.splitlines()[0]
    assert first.startswith("resumed demo: kept ")
    assert first.endswith(", 0 lost")
    assert set(failed.witnessed()[len(before) :]) <= {2, 3}


@pytest.mark.parametrize("reference", ["demo", "dem", "@last"])
@pytest.mark.parametrize("group", [[], ["graph"]])
def test_resume_of_a_completed_trace_prints_its_result(done: Desk, reference: str, group: list[str]) -> None:
    result = done.command(*group, "resume", reference)
    assert (result.exit_code, result.stdout) == (0, "the sum is 14\n")


def test_the_promised_long_form_of_resume(done: Desk) -> None:
    result = done.command(
        "graph", "resume", "demo", "--graph", done.graph, "--storage", done.store, "--log-level", "INFO"
    )
    assert (result.exit_code, result.stdout) == (0, "the sum is 14\n")


def test_resume_finds_a_moved_graph_when_it_is_named(failed: Desk) -> None:
    moved = failed.folder / "moved.yaml"
    failed.graph.rename(moved)
    result = failed.command("resume", "demo")
    assert result.exit_code == 2
    assert f"the graph file {failed.graph} is gone" in result.stderr
    assert "tinyllm resume demo --graph FILE" in result.stderr
    assert failed.command("resume", "demo", "--graph", moved).stdout == "the sum is 14\n"


def test_changed_graph_is_refused_with_the_command_that_accepts_it(failed: Desk) -> None:
    text = failed.graph.read_text()
    text = text.replace("edges:", "  - {id: extra, type: function}\nedges:\n  - {from_node: total, to_node: extra}")
    failed.graph.write_text(text)
    nodes = failed.folder / "nodes.py"
    nodes.write_text(nodes.read_text() + "\n\n@node\ndef extra(text: str):\n    return text.upper()\n")
    refused = failed.command("resume", "demo")
    assert refused.exit_code == 2
    assert "extra" in refused.stderr
    paste = shlex.split(refused.stderr.splitlines()[-1])
    assert paste == ["tinyllm", "resume", "demo", "--accept-graph-change"]
    accepted = failed.command(*paste[1:])
    assert (accepted.exit_code, accepted.stdout) == (0, "THE SUM IS 14\n")
    assert "  changed: " in accepted.stderr


# -- fork ------------------------------------------------------------------------------------------------------


def test_fork_at_a_node_shares_what_was_done(done: Desk) -> None:
    before = done.witnessed()
    result = done.command("fork", "demo", "--at", "total", "--set", "base=1000", "--id", "other")
    assert (result.exit_code, result.stdout) == (0, "the sum is 1014\n")
    assert result.stderr.splitlines()[0] == "other: forked from demo at total; 5 steps shared, 1 to run"
    assert "resumed" not in result.stderr
    assert done.witnessed() == before
    assert done.command("resume", "demo").stdout == "the sum is 14\n"


def test_fork_at_a_step_runs_what_came_after(done: Desk) -> None:
    before = done.witnessed()
    result = done.command("fork", "demo", "--at", "1", "--json")
    assert json.loads(result.stdout)["content"] == "the sum is 14"
    assert sorted(done.witnessed()[len(before) :]) == [0, 1, 2, 3]


def test_fork_again_under_the_same_id_goes_on_with_it(done: Desk) -> None:
    words = ("fork", "demo", "--at", "1", "--id", "other")
    (done.folder / "broken").touch()
    assert done.command(*words).exit_code == 1
    (done.folder / "broken").unlink()
    result = done.command(*words)
    assert (result.exit_code, result.stdout) == (0, "the sum is 14\n")
    assert result.stderr.startswith("resumed other: kept ")


def test_fork_of_a_changed_graph_is_refused_with_the_fork_that_accepts_it(done: Desk) -> None:
    done.graph.write_text(
        done.graph.read_text().replace(
            "  - {from_node: work,", "  - {from_node: plan, to_node: total}\n  - {from_node: work,"
        )
    )
    refused = done.command("fork", "demo", "--at", "total", "--set", "base=1", "--id", "other")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")
    paste = shlex.split(refused.stderr.splitlines()[-1])
    words = ["fork", "demo", "--at", "total", "--set", "base=1", "--id", "other", "--accept-graph-change"]
    assert paste == ["tinyllm", *words]
    assert done.command(*words).stdout == "the sum is 15\n"


@pytest.mark.parametrize("at", ["99", "nowhere"])
def test_fork_where_nothing_is_kept_is_not_found(done: Desk, at: str) -> None:
    result = done.command("fork", "demo", "--at", at)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ")
    assert result.stderr.splitlines()[-1] == "  tinyllm checkpoints demo"


# -- list, show, checkpoints -----------------------------------------------------------------------------------


def test_list_is_a_table_or_json(done: Desk) -> None:
    done.command("run", done.graph, "--id", "second")
    heads, *rows = done.command("list").stdout.splitlines()
    assert heads.split() == ["trace", "graph", "status", "step", "updated"]
    assert [row.split()[:4] for row in rows] == [
        ["second", "squares", "completed", "5"],
        ["demo", "squares", "completed", "6"],
    ]
    found = json.loads(done.command("graph", "list", "--json", "--graph-id", "squares").stdout)
    assert [(record["trace_id"], record["graph_id"], record["step"]) for record in found] == [
        ("second", "squares", 5),
        ("demo", "squares", 6),
    ]
    assert found[0]["updated_at"].endswith("+00:00")


def test_list_of_nothing_says_where_it_looked(done: Desk) -> None:
    result = done.command("list", "--status", "failed")
    assert (result.exit_code, result.stdout) == (0, "")
    assert str(done.store) in result.stderr
    assert json.loads(done.command("list", "--status", "failed", "--json").stdout) == []


def test_show_tells_what_a_person_needs(failed: Desk) -> None:
    result = failed.command("show", "demo")
    text = result.stdout
    assert result.exit_code == 0
    for line in ("trace   demo", "graph   squares 1.0.0", "task    4", "  tinyllm resume demo"):
        assert line in text.splitlines()
    assert "failed at step" in text
    assert "ZeroDivisionError: two is not allowed" in text
    assert "nodes.py:" in text
    assert "1 failed" in text


def test_show_as_json_has_all_of_it(failed: Desk) -> None:
    found = json.loads(failed.command("show", "demo", "--json").stdout)
    assert found["error"]["type"] == "ZeroDivisionError"
    assert found["nodes"]["plan"]["done"] == 1
    assert {row["state"] for row in found["frontier"] if row["node_id"] == "work"} >= {"failed"}
    assert found["task"] == "4"


def test_show_looks_into_an_earlier_step(done: Desk) -> None:
    now = done.command("show", "demo").stdout
    assert "count = 4" in now
    text = done.command("show", "demo", "--step", "1").stdout
    assert "as of step 1" in text
    assert "4 to run" in text
    assert "count" not in text
    assert text.splitlines()[-1] == "  tinyllm fork demo --at 1"


def test_checkpoints_of_one_trace_or_of_all(done: Desk) -> None:
    done.command("run", done.graph, "--id", "second")
    heads, *rows = done.command("checkpoints", "demo").stdout.splitlines()
    assert heads.split() == ["step", "rev", "node", "status", "created", "id"]
    assert rows[0].split()[:4] == ["6", "6", "total", "completed"]
    assert all(row.split()[-1].startswith("demo@") for row in rows)
    every = json.loads(done.command("graph", "checkpoints", "--graph-id", "squares", "--json").stdout)
    assert {record["trace_id"] for record in every} == {"demo", "second"}
    promised = done.command(
        "graph", "checkpoints", "--graph-id", "squares", "--trace-id", "demo", "--storage", done.store, "--json"
    )
    assert {record["id"].partition("@")[0] for record in json.loads(promised.stdout)} == {"demo"}
    assert done.command("checkpoints", "--graph-id", "other").stderr.startswith("no such checkpoints in ")


def test_checkpoints_of_several_traces_are_listed_the_newest_first(failed: Desk) -> None:
    failed.command("run", failed.graph, "--id", "second")
    failed.command("resume", "demo")
    every = json.loads(failed.command("checkpoints", "--json").stdout)
    times = [record["created_at"] for record in every]
    assert times == sorted(times, reverse=True)
    order = [record["trace_id"] for record in every]
    assert (order[0], order[-1]) == ("demo", "demo")
    assert "second" in order
    newest = json.loads(failed.command("checkpoints", "--json", "--limit", str(len(every) - 1)).stdout)
    assert newest == every[:-1], "a limit leaves out the oldest, whosever it is"


# -- graph validate --------------------------------------------------------------------------------------------


def test_validate_says_what_is_valid(desk: Desk) -> None:
    result = desk.command("graph", "validate", desk.graph)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{desk.graph}: graph 'squares' is valid: 3 nodes, 2 edges\n"
    assert json.loads(desk.command("graph", "validate", desk.graph, "--json").stdout) == []


def test_validate_lists_every_fault_of_every_file(desk: Desk) -> None:
    bad = desk.folder / "bad.yaml"
    bad.write_text(desk.graph.read_text().replace("to_node: total", "to_node: totl").replace("join: all", "joiin: all"))
    result = desk.command("graph", "validate", desk.graph, bad)
    assert result.exit_code == 2
    assert "is valid" in result.stdout
    assert "totl" in result.stdout
    assert "joiin" in result.stdout
    faults = json.loads(desk.command("graph", "validate", bad, "--json").stdout)
    assert len(faults) >= 2
    assert {"severity", "file", "line", "column", "where", "message"} == faults[0].keys()
    assert {fault["severity"] for fault in faults} == {"error"}


def test_validate_warns_of_what_is_left_to_chance(desk: Desk) -> None:
    nodes = desk.folder / "nodes.py"
    nodes.write_text(nodes.read_text().replace("return n * n", 'return Result(n * n, set={"best": n})'))
    result = desk.command("graph", "validate", desk.graph)
    assert result.exit_code == 0
    assert "is valid" in result.stdout
    assert result.stderr == (
        f"warning: {desk.graph}:1:1: variables.best: several activations of `work` may set it at the same time, and "
        "the last to finish wins; give it the reducer `append`, `add` or `merge`, or set it behind a join\n"
    )
    as_json = desk.command("graph", "validate", desk.graph, "--json")
    (warning,) = json.loads(as_json.stdout)
    assert (as_json.exit_code, as_json.stderr) == (0, "")
    assert (warning["severity"], warning["file"], warning["where"]) == ("warning", str(desk.graph), "variables.best")
    text = desk.graph.read_text()
    desk.graph.write_text(text + "variables: {best: last}\n")
    line = text.count("\n") + 1
    assert desk.command("graph", "validate", desk.graph).stderr.startswith(
        f"warning: {desk.graph}:{line}:13: variables.best: "
    )
    desk.graph.write_text(text + "variables: {best: append}\n")
    assert desk.command("graph", "validate", desk.graph).stderr == ""


# -- help ------------------------------------------------------------------------------------------------------

ALL = ["run", "submit", "resume", "list", "show", "checkpoints", "fork", "answer", "pause", "cancel", "tag", "delete"]


def test_help_lists_every_command_in_one_line(desk: Desk) -> None:
    listed = desk.command("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == ["graph", *ALL, "supervise", "status", "drain", "doctor"]
    assert not [line for line in listed if line.endswith("...")]


def test_help_documents_the_exit_codes(desk: Desk) -> None:
    text = desk.command("--help").stdout
    assert [line.split()[0] for line in text.split("Exit codes:\n")[1].splitlines() if line.strip()] == [
        "0", "1", "2", "3", "4", "130",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ALL)
def test_every_verb_is_also_under_graph(desk: Desk, verb: str) -> None:
    top, nested = (desk.command(*group, verb, "--help") for group in ([], ["graph"]))
    assert (top.exit_code, nested.exit_code) == (0, 0)
    assert top.stdout.partition("\n")[2] == nested.stdout.partition("\n")[2]
    assert "--storage" in top.stdout
    assert "--json" in top.stdout
