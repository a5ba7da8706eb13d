"""The soak in short, and that it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.soak.checks import late, read_log, unfinished
from tests.soak.figures import Seen, Spread, Submitted, at_once, ran_again, starts, unwatched
from tests.soak.processes import MARK, Life, Watcher, marked
from tests.soak.service import ROOT
from tests.soak.torment import Stop, plan
from tests.supervisor.work import Line, run_again, write_graph
from tinyllm import Executor, load_graph
from tinyllm.core.store import opened_storage


def soak(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.soak", "--keep", str(folder / "soak"), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(120)
def test_all_complete_whatever_is_killed_and_stopped(tmp_path: Path) -> None:
    finished = soak(tmp_path, "--seconds", "6", "--traces", "24", "--nodes", "6", "--seed", "3")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "seed 3" in finished.stdout
    assert "1 supervisor killed" in finished.stdout


@pytest.mark.timeout(120)
def test_a_supervisor_that_leaves_what_is_owned_is_noticed(tmp_path: Path) -> None:
    options = ("--seconds", "4", "--traces", "20", "--deadline", "2", "--seed", "3", "--plant", "leave_what_is_owned")
    finished = soak(tmp_path, *options)

    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "is interrupted at step" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


def test_the_same_seed_is_the_same_torment() -> None:
    assert plan(1, 600, 720) == plan(1, 600, 720) != plan(2, 600, 720)
    found = plan(1, 600, 720)
    assert [torment.what for torment in found].count("supervisor") == 35
    assert sum(torment.what in ("kill", "stop") for torment in found) == 360
    assert all(0.5 <= torment.seconds <= 6 for torment in found if torment.what == "stop")


# -- made-up figures -------------------------------------------------------------------------------------------

BOSS = Life(1, "1", None, 0.0)


def worker(pid: int, died: float | None = None, parent: Life = BOSS) -> Life:
    return Life(pid, "1", parent, 0.0, died)


def line(at: float, pid: int, what: str = "began", node: str = "n0", trace_id: str = "t") -> Line:
    return Line(at, pid, what, trace_id, node)


def seen(lines: Sequence[Line], lives: Sequence[Life], stops: Sequence[Stop] = (), **submitted: float) -> Seen:
    return Seen(
        lines=lines,
        lives=lives,
        stops=stops,
        submitted={trace_id: Submitted(at, at) for trace_id, at in submitted.items()},
        concurrency=2,
        last_node="n1",
    )


def test_from_a_death_to_when_a_trace_runs_again() -> None:
    lives = [BOSS, worker(2, died=20.0), worker(3)]
    (again,) = ran_again(seen([line(10, 2), line(21.5, 3), line(22, 3, "ended")], lives))
    assert (again.seconds, again.with_supervisor) == (1.5, False)


def test_what_a_worker_gave_up_before_it_died_did_not_wait_for_that() -> None:
    lives = [BOSS, worker(2, died=20.0), worker(3)]
    assert ran_again(seen([line(10, 2, "ended"), line(11, 3, node="n1")], lives)) == []


def test_a_death_by_which_the_supervisor_was_gone_is_told_apart() -> None:
    dead = Life(1, "1", None, 0.0, died=21.0)
    (again,) = ran_again(seen([line(10, 2), line(21.5, 3)], [dead, worker(2, 20.0, dead), worker(3, None, dead)]))
    assert again.with_supervisor


@pytest.mark.parametrize(("count", "noticed"), [(1, False), (2, True)])
def test_more_than_one_of_a_hundred_too_late_is_a_violation(count: int, noticed: bool) -> None:
    lives = [BOSS, worker(2, died=20.0), worker(3)]
    lines = [line(10, 2, trace_id=f"t{number}") for number in range(100)]
    lines += [line(23 if number < count else 21, 3, trace_id=f"t{number}") for number in range(100)]
    assert bool(late(seen(lines, lives))) == noticed
    assert late(seen(lines[:99] + lines[100:199], lives)) == []  # too few
    assert late(seen(lines, lives, [Stop(BOSS, 19.0, 22.0, writing=True)])) == []


def test_percentiles_are_numbers_that_were_there() -> None:
    assert Spread.of(range(1, 101)) == Spread(100, 50, 99, 100)
    assert Spread.of([7.0]) == Spread(1, 7.0, 7.0, 7.0)
    assert Spread.of([]) == Spread(0, 0.0, 0.0, 0.0)


def test_a_trace_in_two_processes_at_once_is_noticed() -> None:
    lines = [line(10, 2), line(12, 3)]
    assert at_once(seen(lines, [BOSS, worker(2), worker(3)]))
    assert not at_once(seen(lines, [BOSS, worker(2, died=10.5), worker(3)]))
    assert not at_once(seen([line(10, 2, "ended"), line(12, 3)], [BOSS, worker(2), worker(3)]))


def test_a_process_that_was_not_watched_is_noticed() -> None:
    assert unwatched(seen([line(10, 9)], [BOSS, worker(2)]))


def test_a_start_counts_where_a_worker_could() -> None:
    lines = [line(1, 2, trace_id="a"), line(10.03, 2, trace_id="b")]
    lives = [BOSS, worker(2)]
    took, others = starts(seen(lines, lives, a=0.9, b=10.0))
    assert took == pytest.approx([0.03])
    assert others == pytest.approx([0.1])  # nobody knew yet whether it could
    stopped = [Stop(lives[1], 9.0, 11.0)]
    assert starts(seen(lines, lives, stopped, a=0.9, b=10.0))[0] == []
    crowded = [line(1, 2, trace_id=trace_id) for trace_id in ("a", "c")] + lines[1:]
    assert starts(seen(crowded, lives, a=0.9, b=10.0, c=0.95))[0] == []


def test_what_must_not_happen_is_found_in_the_log() -> None:
    log = read_log(
        "W worker 1 (pid 7) died, which executed 3: it was killed from outside (SIGKILL); another follows in 0.0 s\n"
        "W worker 8 hangs: it was stopped for 3 s; it is ended\n"
        "E trace 't1' is quarantined; `tinyllm show t1` tells why\n"
        "W trace 't2' is left alone for 60 s, as it cannot be executed: no\n"
        "Traceback (most recent call last):\n"
    )
    assert log.deaths == {"it was killed from outside (SIGKILL)": 1}
    assert log.hangs == 1
    assert [each.split(":")[0] for each in log.forbidden] == ["quarantined", "refused", "a traceback"]


# -- real processes and stores ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_is_wrong_with_a_trace_is_found(tmp_path: Path, anyio_backend: str) -> None:
    file = write_graph(tmp_path / "graph", nodes=2)
    async with opened_storage(tmp_path / "store") as storage:
        async with Executor(load_graph(file), checkpoint_storage=storage) as executor:
            await executor.execute("{}", trace_id="t")
        assert await unfinished("chain", storage, ["t"], 2) == []
        assert await run_again(file, storage, ["t"]) == []

        recorded, count = await unfinished("chain", storage, ["t"], 3)
        assert "recorded were n0, n1" in recorded
        assert "count is 2, not 3" in count
        assert "is not there" in (await unfinished("chain", storage, ["gone"], 2))[0]
        with (file.parent / "journal").open("a") as journal:
            journal.write(f"{time.time():.6f} 1 began t n0\n")
        (again,) = await run_again(file, storage, ["t"])
        assert "t: n0 was recorded at" in again


def test_a_death_is_seen_and_a_stray_process_found() -> None:
    mark = f"{os.getpid()}-{time.time()}"
    with (
        subprocess.Popen(["sleep", "100"], env={**os.environ, MARK: mark}) as process,
        Watcher() as watcher,
    ):
        try:
            life = watcher.add(process.pid)
            assert list(marked(mark)) == [process.pid]
        finally:
            process.kill()
        assert life is not None
        while life.died is None:
            time.sleep(0.01)
        assert list(marked(mark)) == []
