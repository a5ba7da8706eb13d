"""Real processes that are killed, and go on: SIGKILL at a durable step, Ctrl-C once and twice, SIGTERM."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.desk import Desk
from tinyllm.cli.text import plural

pytestmark = pytest.mark.timeout(60)


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read stderr up to the line that has `text`."""
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} never came:\n{read}")


@pytest.fixture
def held(desk: Desk) -> Iterator[subprocess.Popen[str]]:
    """A process with steps 1 to 3 done (plan, two of work), and two activations that hold until the file is gone."""
    (desk.folder / "hold").touch()
    process = desk.start("run", desk.graph, "--task", "9", "--id", "demo")
    with process:
        until(process, "holding")
        until(process, "holding")
        yield process
        process.kill()


def test_first_signal_saves_and_says_how_to_go_on(desk: Desk, held: subprocess.Popen[str]) -> None:
    held.send_signal(signal.SIGINT)
    told = until(held, "stopping demo")
    assert "letting 2 running nodes finish; Ctrl-C again to exit now" in told
    (desk.folder / "hold").unlink()
    out, err = held.communicate()
    assert (held.returncode, out) == (130, "")
    assert err.splitlines()[-2:] == ["continue with:", "  tinyllm resume demo"]
    first = desk.witnessed()
    assert sorted(first) == [0, 1, 2, 3]

    resumed = desk.command("resume", "demo")
    assert resumed.stdout == "the sum is 204\n"
    assert resumed.stderr.splitlines()[0] == "resumed demo: kept 5 steps, 0 run again, 0 lost"
    assert sorted(desk.witnessed()) == list(range(9))


def test_sigterm_is_like_the_first(desk: Desk, held: subprocess.Popen[str]) -> None:
    held.send_signal(signal.SIGTERM)
    until(held, "stopping demo")
    (desk.folder / "hold").unlink()
    held.communicate()
    assert held.returncode == 130
    assert desk.command("resume", "demo").stdout == "the sum is 204\n"


def test_second_signal_exits_now_and_loses_nothing_that_was_durable(desk: Desk, held: subprocess.Popen[str]) -> None:
    held.send_signal(signal.SIGINT)
    until(held, "stopping demo")
    held.send_signal(signal.SIGINT)
    _, err = held.communicate()
    assert held.returncode == 130
    assert err.splitlines()[-1] == "  tinyllm resume demo"
    (desk.folder / "hold").unlink()
    durable = json.loads(desk.command("show", "demo", "--json").stdout)["nodes"]

    resumed = desk.command("resume", "demo")
    assert resumed.stdout == "the sum is 204\n"
    # Of the steps that had ended some may not have been durable yet: no promise, so no number, is made of those.
    kept = sum(work["done"] for work in durable.values())
    assert resumed.stderr.startswith(f"resumed demo: kept {plural(kept, 'step')}, ")
    assert set(desk.witnessed()) == set(range(9))
    assert len(desk.witnessed()) == 4 + 9 - durable.get("work", {"done": 0})["done"]


def test_the_same_command_goes_past_each_rehearsed_kill(desk: Desk) -> None:
    words = ("run", desk.graph, "--task", "20", "--id", "demo", "--durability", "sync", "--kill-after")
    kept = 0
    for kill_after in (5, 10, 15):
        process = desk.start(*words, str(kill_after))
        out, err = process.communicate()
        assert (process.returncode, out) == (-signal.SIGKILL, "")
        opening = f"resumed demo: kept {kept} steps, " if kept else "demo: started"
        assert err.startswith(opening)
        killed = re.search(r"demo: killing this process, (\d+) steps are durable", err)
        assert killed is not None
        assert int(killed[1]) >= kill_after
        kept = json.loads(desk.command("show", "demo", "--json").stdout)["step"]
        assert kept >= int(killed[1])
    process = desk.start(*words, "15")
    out, err = process.communicate()
    assert (process.returncode, out) == (0, f"the sum is {sum(n * n for n in range(20))}\n")
    assert err.startswith(f"resumed demo: kept {kept} steps, ")
    assert set(desk.witnessed()) == set(range(20))


def test_sync_and_kill_runs_nothing_recorded_again(desk: Desk) -> None:
    words = ("run", desk.graph, "--task", "12", "--id", "demo", "--durability", "sync", "--kill-after", "5")
    process = desk.start(*words)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = desk.witnessed()
    done = json.loads(desk.command("show", "demo", "--json").stdout)["nodes"]["work"]["done"]
    assert done >= 4
    result = desk.command("resume", "demo")
    assert result.stdout == "the sum is 506\n"
    assert len(desk.witnessed()) - 12 <= 2  # those that were running
    assert len(desk.witnessed()) - len(before) == 12 - done


def test_kill_after_a_step_that_was_kept_kills_nothing(desk: Desk) -> None:
    desk.command("run", desk.graph, "--task", "4", "--id", "demo")
    process = desk.start("fork", "demo", "--at", "total", "--kill-after", "3")
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, "the sum is 14\n")


def test_broken_pipe_is_quiet(desk: Desk) -> None:
    desk.command("run", desk.graph, "--id", "demo")
    process = desk.start("show", "demo", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == ""
    process.wait()
