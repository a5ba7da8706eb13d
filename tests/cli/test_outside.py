"""Questions, and the commands that act on a trace from outside: what they print, their exit codes, what comes next."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path

import anyio
import attrs
import pytest

from tests.cli.desk import Desk
from tests.cli.test_signals import until
from tinyllm import ExecutorConfig, Retry
from tinyllm.actors.events import Event, NodeRetried
from tinyllm.cli.look import STATUSES
from tinyllm.core.builder import load_graph
from tinyllm.core.executor import Executor
from tinyllm.core.store import opened_storage

REVIEW = """\
id: letters
functions: [review.py]
nodes:
  - {id: draft, type: function}
  - {id: review, type: function}
  - {id: send, type: function, join: all}
edges:
  - {from_node: draft, to_node: review, for_each: true}
  - {from_node: review, to_node: send}
"""

NODES = """\
from tinyllm import node


@node
def draft(task: str):
    return task.split()


@node
async def review(name: str, context):
    context.add_tokens(1200, 34)
    good = await context.ask(f"Send the letter to {name}?", name=name, schema=bool)
    return f"{name}: {'sent' if good else 'kept'}"


@node
def send(results: list[str]):
    return ", ".join(results)
"""


@pytest.fixture
def letters(desk: Desk) -> Desk:
    """Of which the graph asks once for each word of its task."""
    desk.graph.write_text(REVIEW)
    (desk.folder / "review.py").write_text(NODES)
    return desk


@pytest.fixture
def asking(letters: Desk) -> Desk:
    """With a trace `demo` that asks `ann`."""
    assert letters.command("run", letters.graph, "--task", "ann", "--id", "demo").exit_code == 3
    return letters


@pytest.fixture
def interrupted(desk: Desk) -> Desk:
    """With a trace `demo` that was stopped before anything ran."""

    async def make() -> None:
        executor: Executor

        def stop(_: object) -> None:
            executor.stop()

        async with (
            opened_storage(desk.store) as storage,
            Executor(load_graph(desk.graph), ExecutorConfig(), storage, on_event=stop) as executor,
        ):
            await executor.execute("4", trace_id="demo")

    anyio.run(make)
    return desk


def status(desk: Desk, trace: str = "demo") -> str:
    found: str = json.loads(desk.command("show", trace, "--json").stdout)["status"]
    return found


# -- questions -------------------------------------------------------------------------------------------------


def test_run_that_asks_ends_paused_with_the_line_that_answers(letters: Desk) -> None:
    result = letters.command("run", letters.graph, "--task", "ann", "--id", "demo")
    assert (result.exit_code, result.stdout) == (3, "")
    started, ended, *asked = result.stderr.splitlines()
    assert started == "demo: started"
    assert ended.startswith("demo: paused at step 1 after ")
    assert asked == [
        "node review asks: Send the letter to ann?",
        "  (it takes true or false)",
        "  tinyllm resume demo --answer ann=true",
    ]
    answered = letters.command(*shlex.split(asked[-1])[1:])
    assert (answered.exit_code, answered.stdout) == (0, "ann: sent\n")


def test_run_again_of_what_waits_shows_the_question_and_runs_nothing(asking: Desk) -> None:
    for words in (("run", asking.graph, "--task", "ann", "--id", "demo"), ("resume", "demo")):
        result = asking.command(*words)
        assert (result.exit_code, result.stdout) == (3, "")
        first, *_, last = result.stderr.splitlines()
        assert first == "demo: paused before; nothing was run"
        assert last == "  tinyllm resume demo --answer ann=true"


def test_several_answers_of_which_one_may_stand_alone(letters: Desk) -> None:
    assert letters.command("run", letters.graph, "--task", "ann bob cid", "--id", "demo").exit_code == 3
    result = letters.command("resume", "demo", "--answer", "ann=true", "--answer", "cid=false")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == "  tinyllm resume demo --answer bob=true"
    result = letters.command("resume", "demo", "--answer", "false")
    assert (result.exit_code, result.stdout) == (0, "ann: sent, bob: kept, cid: kept\n")


def test_question_is_an_object_in_json(letters: Desk) -> None:
    result = letters.command("run", letters.graph, "--task", "ann", "--id", "demo", "--json")
    assert result.exit_code == 3
    response = json.loads(result.stdout)
    (question,) = response["questions"]
    assert (response["status"], response["success"]) == ("paused", False)
    assert list(question) == ["id", "node_id", "activation_id", "name", "prompt", "schema"]
    assert (question["node_id"], question["name"], question["schema"]) == ("review", "ann", {"type": "boolean"})
    assert json.loads(letters.command("show", "demo", "--json").stdout)["questions"] == [question]
    assert letters.command("resume", "demo", "--answer", f"{question['id']}=true").stdout == "ann: sent\n"


def test_answer_leaves_the_executing_to_a_resume(asking: Desk) -> None:
    result = asking.command("answer", "demo", "false")
    assert (result.exit_code, result.stdout) == (0, "demo: 'ann' of node review is answered\n")
    assert result.stderr == "continue with:\n  tinyllm resume demo\n"
    assert status(asking) == "interrupted"
    assert asking.command("resume", "demo").stdout == "ann: kept\n"


def test_answer_may_be_a_negative_number(letters: Desk) -> None:
    nodes = letters.folder / "review.py"
    nodes.write_text(nodes.read_text().replace("schema=bool", "schema=int"))
    letters.command("run", letters.graph, "--task", "ann", "--id", "demo")
    assert letters.command("answer", "demo", "-5", "--question", "ann").exit_code == 0


def test_answer_shows_what_is_still_open(letters: Desk) -> None:
    letters.command("run", letters.graph, "--task", "ann bob", "--id", "demo")
    result = letters.command("answer", "demo", "true", "--question", "bob", "--json")
    assert json.loads(result.stdout)["name"] == "bob"
    asked = letters.command("show", "demo").stdout
    assert "bob?" not in asked
    result = letters.command("answer", "demo", "true", "--question", "ann")
    assert result.stderr == "continue with:\n  tinyllm resume demo\n"


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (["resume", "demo", "--answer", "dan=true"], 4, ["'dan' is no open question", "review.", "tinyllm show demo"]),
        (["resume", "demo", "--answer", "ann=3"], 2, ["does not fit", "nothing was recorded", "tinyllm show demo"]),
        (["answer", "demo", "3", "--question", "ann"], 2, ["does not fit", "must be boolean", "tinyllm show demo"]),
        (["resume", "demo", "--answer", "true"], 2, ["asks several questions; name the one", "tinyllm show demo"]),
        (["answer", "demo", "true"], 2, ["asks several questions; name the one", "tinyllm show demo"]),
        (["answer", "demo", "yes"], 2, ["'yes' is not JSON", "'\"yes\"'"]),
        (["resume", "demo", "--answer", "ann=yes"], 2, ["'yes' is not JSON", "--answer 'ann=\"yes\"'"]),
        (["resume", "demo", "--answer", "ann=true", "--answer", "ann=false"], 2, ["answered twice"]),
    ],
)
def test_answers_that_are_refused(letters: Desk, words: list[str], code: int, texts: list[str]) -> None:
    letters.command("run", letters.graph, "--task", "ann bob", "--id", "demo")
    result = letters.command(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in result.stderr
    assert len(json.loads(letters.command("show", "demo", "--json").stdout)["questions"]) == 2


def test_of_several_answers_none_is_recorded_where_one_is_refused(letters: Desk) -> None:
    letters.command("run", letters.graph, "--task", "ann bob", "--id", "demo")
    assert letters.command("resume", "demo", "--answer", "ann=true", "--answer", "bob=3").exit_code == 2
    result = letters.command("resume", "demo", "--answer", "ann=false", "--answer", "bob=true")
    assert result.stdout == "ann: kept, bob: sent\n"


def test_a_question_is_answered_once(asking: Desk) -> None:
    asking.command("answer", "demo", "true")
    result = asking.command("answer", "demo", "false")
    assert result.exit_code == 4
    assert "asks nothing" in result.stderr
    assert asking.command("resume", "demo").stdout == "ann: sent\n"
    late = asking.command("answer", "demo", "false")
    assert late.exit_code == 2
    assert late.stderr.splitlines()[-1] == "  tinyllm show demo"


# -- pause, cancel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [[], ["graph"]])
def test_pause_of_what_nobody_executes(interrupted: Desk, group: list[str]) -> None:
    result = interrupted.command(*group, "pause", "demo")
    assert (result.exit_code, result.stdout) == (0, "demo: paused at step 0\n")
    assert result.stderr == "continue with:\n  tinyllm resume demo\n"
    assert status(interrupted) == "paused"
    again = interrupted.command("run", interrupted.graph, "--task", "4", "--id", "demo")
    assert (again.exit_code, again.stderr.splitlines()[-1]) == (3, "  tinyllm resume demo")
    assert interrupted.command("resume", "demo").stdout == "the sum is 14\n"


def test_cancel_ends_a_trace_for_good(asking: Desk) -> None:
    result = asking.command("cancel", "demo")
    assert (result.exit_code, result.stdout) == (0, "demo: cancelled at step 1\n")
    assert result.stderr == "a fork can start from what is kept:\n  tinyllm checkpoints demo\n"
    resumed = asking.command("resume", "demo")
    assert (resumed.exit_code, resumed.stdout) == (1, "")
    assert resumed.stderr.splitlines()[0] == "demo: cancelled before; nothing was run"
    shown = asking.command("show", "demo").stdout
    assert shown.splitlines()[-1] == "  tinyllm checkpoints demo"
    assert "asks" not in shown
    for words in (["cancel", "demo"], ["pause", "demo"], ["answer", "demo", "true"]):
        refused = asking.command(*words)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.splitlines()[-1] == "  tinyllm show demo"


def test_commands_print_the_trace_as_json(interrupted: Desk) -> None:
    assert json.loads(interrupted.command("pause", "demo", "--json").stdout)["status"] == "paused"
    assert json.loads(interrupted.command("cancel", "demo", "--json").stdout)["status"] == "cancelled"


@pytest.mark.timeout(60)
def test_a_running_trace_is_cancelled_by_the_process_that_executes_it(desk: Desk) -> None:
    (desk.folder / "hold").touch()
    with desk.start("run", desk.graph, "--task", "9", "--id", "demo") as process:
        until(process, "holding")
        refused = desk.command("delete", "demo", "--yes")
        assert refused.exit_code == 1
        assert refused.stderr.splitlines()[-1] == "  tinyllm delete demo --yes"
        result = desk.command("cancel", "demo")
        assert result.exit_code == 0
        assert result.stdout == f"demo: process {process.pid} on {os.uname().nodename} will stop it\n"
        assert result.stderr.splitlines()[-1] == "  tinyllm show demo"
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert "demo: cancelled at step 3 after " in err
    assert err.splitlines()[-1] == "  tinyllm checkpoints demo"
    assert status(desk) == "cancelled"
    assert desk.command("delete", "demo", "--yes").stdout == "demo: deleted\n"


@pytest.mark.timeout(60)
def test_a_question_is_answered_while_others_are_at_work(letters: Desk) -> None:
    held = NODES.replace("    good = await", '    if name == "slow":\n        await hold()\n    good = await')
    hold = """
async def hold():
    while (Path(__file__).parent / "hold").exists():
        await anyio.sleep(0.005)
"""
    (letters.folder / "review.py").write_text(f"from pathlib import Path\n\nimport anyio\n{held}\n{hold}")
    (letters.folder / "hold").touch()
    with letters.start("run", letters.graph, "--task", "ann slow", "--id", "demo") as process:
        paste = until(process, "tinyllm answer").splitlines()[-1]
        result = letters.command(*shlex.split(paste)[1:])
        assert result.stderr == f"process {process.pid} on {os.uname().nodename} goes on with it\n"
        shown = letters.command("show", "demo").stdout
        assert f"it is being executed by process {process.pid}" in shown
        until(process, "review: 'ann' is answered")
        (letters.folder / "hold").unlink()
        _, err = process.communicate()
    assert process.returncode == 3
    assert err.splitlines()[-1] == "  tinyllm resume demo --answer slow=true"
    assert "ann?" not in err


@pytest.mark.timeout(60)
def test_a_trace_is_taken_from_a_process_that_is_stopped(desk: Desk) -> None:
    (desk.folder / "hold").touch()
    with desk.start("run", desk.graph, "--task", "4", "--id", "demo") as process:
        until(process, "holding")
        while json.loads(desk.command("show", "demo", "--json").stdout)["step"] < 3:
            """It may be in the middle of a commit, and stopped there it would hold the lock."""
        process.send_signal(signal.SIGSTOP)
        try:
            (desk.folder / "hold").unlink()
            refused = desk.command("resume", "demo")
            assert refused.exit_code == 1
            assert "tinyllm resume demo --take-over" in refused.stderr
            taken = desk.command("resume", "demo", "--take-over")
            assert (taken.exit_code, taken.stdout) == (0, "the sum is 14\n")
        finally:
            process.send_signal(signal.SIGCONT)
        _, err = process.communicate()
    assert process.returncode == 1
    assert "was taken over by another process" in err
    assert desk.command("doctor").exit_code == 0


# -- tag, checkpoints ------------------------------------------------------------------------------------------


def test_labels_are_listed_shown_and_taken_away(desk: Desk) -> None:
    desk.command("run", desk.graph, "--task", "4", "--id", "demo")
    result = desk.command("tag", "demo", "good start", "--step", "1")
    assert result.stdout == "demo@1, at step 1, is named 'good start'\n"
    assert result.stderr.splitlines()[-1] == "  tinyllm fork demo --at 1"
    heads, *rows = desk.command("checkpoints", "demo").stdout.splitlines()
    assert heads.split()[-1] == "label"
    assert [row.split()[0] for row in rows if row.endswith("good start")] == ["1"]
    assert "labels  good start (step 1)" in desk.command("show", "demo").stdout.splitlines()
    assert json.loads(desk.command("show", "demo", "--json").stdout)["labels"] == {"demo@1": "good start"}
    assert json.loads(desk.command("tag", "demo", "end", "--json").stdout)["label"] == "end"

    unknown = desk.command("tag", "demo", "good", "--remove")
    assert unknown.exit_code == 4
    assert "'good start' at step 1" in unknown.stderr
    assert desk.command("tag", "demo", "x", "--step", "99").exit_code == 4
    removed = desk.command("tag", "demo", "good start", "--remove")
    assert (removed.stdout, removed.stderr) == ("demo@1, at step 1, is no longer named 'good start'\n", "")
    assert "good start" not in desk.command("checkpoints", "demo").stdout


def test_checkpoints_say_how_many_were_pruned(desk: Desk) -> None:
    async def make(storage: Path, keep: int) -> None:
        config = ExecutorConfig(max_checkpoints_per_trace=keep)
        async with opened_storage(storage) as opened, Executor(load_graph(desk.graph), config, opened) as executor:
            await executor.execute("40", trace_id="demo")

    anyio.run(make, desk.store, 5)
    result = desk.command("checkpoints", "demo")
    rows = result.stdout.splitlines()[1:]
    newest = json.loads(desk.command("show", "demo", "--json").stdout)["rev"]
    assert len(rows) < newest
    assert result.stderr == f"{newest + 1 - len(rows)} older checkpoints of demo were pruned\n"
    assert desk.command("checkpoints", "demo", "--limit", "3").stderr == "the newest 3; --limit shows more\n"
    assert desk.command("checkpoints", "demo", "--json").stderr == ""


# -- delete ----------------------------------------------------------------------------------------------------


def test_delete_asks_nobody_in_a_script(asking: Desk) -> None:
    result = asking.command("delete", "demo")
    assert result.exit_code == 2
    assert "tinyllm delete demo --yes" in result.stderr
    assert status(asking) == "paused"
    assert asking.command("delete", "demo", "--yes").stdout == "demo: deleted\n"
    assert asking.command("show", "demo").exit_code == 4


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1)])
def test_delete_asks_on_a_terminal(asking: Desk, typed: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = asking.command("delete", "demo", stdin=typed)
    assert result.exit_code == code
    assert "delete demo (paused at step 1) with all its checkpoints?" in result.stderr
    assert (asking.command("show", "demo").exit_code == 4) == (code == 0)


# -- list, show ------------------------------------------------------------------------------------------------


def test_list_knows_every_status(asking: Desk) -> None:
    assert asking.command("list", "--status", "paused").stdout.splitlines()[1].split()[:3] == [
        "demo",
        "letters",
        "paused",
    ]
    for known in STATUSES:
        assert asking.command("list", "--status", known).exit_code == 0


def test_show_counts_tokens_time_and_what_is_paused(asking: Desk) -> None:
    lines = asking.command("show", "demo").stdout.splitlines()
    assert any(re.fullmatch(r"time    .* of execution", line) for line in lines)
    assert [line.split() for line in lines if line.startswith("review")] == [["review", "0", "1", "paused"]]
    assert lines[-3:] == [
        "node review asks: Send the letter to ann?",
        "  (it takes true or false)",
        "  tinyllm resume demo --answer ann=true",
    ]
    asking.command("resume", "demo", "--answer", "true")
    assert "tokens  1,200 in, 34 out" in asking.command("show", "demo").stdout.splitlines()
    assert json.loads(asking.command("show", "demo", "--json").stdout)["total_tokens_out"] == 34


def test_show_says_when_an_attempt_is_made_again_and_in_which_generation(desk: Desk) -> None:
    (desk.folder / "broken").touch()
    graph = load_graph(desk.graph)
    retried = attrs.evolve(graph.nodes["work"], retry=Retry(max_attempts=2, initial=100, jitter=0))
    graph = attrs.evolve(graph, nodes={**graph.nodes, "work": retried})

    async def make() -> None:
        def stop(event: Event) -> None:
            if isinstance(event, NodeRetried):
                executor.stop()

        async with opened_storage(desk.store) as storage, Executor(graph, None, storage, on_event=stop) as executor:
            await executor.execute("2", trace_id="demo")
            await executor.execute("3", resume_trace_id="demo")

    anyio.run(make)
    shown = desk.command("show", "demo").stdout
    assert "generation  2, since step 4" in shown
    assert re.search(r"^work .* 1 to retry in 1 m \d\d s$", shown, re.MULTILINE)
    found = json.loads(desk.command("show", "demo", "--json").stdout)
    assert found["generation"] == 2
    assert [row["due"] is not None for row in found["frontier"] if row["node_id"] == "work"] == [True]


# -- all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["answer", "1"], ["pause"], ["cancel"], ["tag", "x"], ["delete", "--yes"]])
def test_a_trace_that_is_not_there(asking: Desk, words: list[str]) -> None:
    result = asking.command(words[0], "demu", *words[1:])
    assert (result.exit_code, result.stdout) == (4, "")
    assert "did you mean demo?" in result.stderr
    nowhere = asking.command(words[0], "demo", *words[1:], "--storage", asking.folder / "typo")
    assert nowhere.exit_code == 4
    assert not (asking.folder / "typo").exists()
