"""SIGKILL at chosen instants: what is kept, what runs again, what is lost, and that the trace says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import attrs
import pytest

from tests.crash import graphs
from tests.torture import witness
from tests.torture.victim import Lived, Order, run
from tinyllm import Executor, GraphBuilder, SQLiteCheckpointStorage, StorageConfig
from tinyllm.actors.dispatch import CREDIT
from tinyllm.graph.payload import decode_payload

on_both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@attrs.frozen
class Stored:
    """What a store has of the trace: its step, and what the nodes returned, in order. `checkpoints`: their steps."""

    step: int
    results: list[str]
    checkpoints: list[int]


class Case:
    """One trace of a graph in `graphs.py`, in a directory of its own."""

    def __init__(self, folder: Path, graph: str, loop: str, task: str, *, kill_at: int = 0, **config: Any) -> None:
        armed = folder / "armed"
        armed.touch()
        self.path = folder / "witness"
        self.order = Order(
            graph=f"tests.crash.graphs:{graph}",
            task=task,
            folder=str(folder),
            backend=loop,
            config=config,
            variables={
                witness.FILE: str(self.path),
                "kill": {"at": kill_at, "armed": str(armed)},
            },
        )

    def killed(self, plant: str | None = None) -> Lived:
        """Run it until it kills itself."""
        lived = run(attrs.evolve(self.order, plant=plant and f"tests.crash.deaths:{plant}"))
        assert lived.killed, self.order.log.read_text()
        assert not lived.hung
        return lived

    def resumed(self) -> Lived:
        """Run it to its end."""
        lived = run(self.order)
        assert lived.returncode == 0, self.order.log.read_text()
        return lived

    def lines(self, verb: str) -> list[str]:
        return [line.key for line in witness.read(self.path) if line.verb == verb]

    def stored(self) -> Stored | None:
        return anyio.run(self._read)

    async def _read(self) -> Stored | None:
        storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(self.order.store)))
        await storage.initialize()
        try:
            record = await storage.trace("t")
            if record is None:
                return None
            messages = await storage.messages("t", limit=100_000)
            steps = await storage.steps("t", limit=100_000)
            checkpoints = await storage.checkpoints("t")
        finally:
            await storage.close()
        assert [step.step for step in steps] == list(range(1, record.step + 1))
        results = [str(decode_payload(row.body).value) for row in messages if row.node]
        return Stored(record.step, results, [checkpoint.step for checkpoint in checkpoints])


def told(lived: Lived) -> tuple[int, int, int | None]:
    """What the trace said when it went on: kept, again, lost."""
    (event,) = lived.of("TraceStarted")
    assert event["resumed"]
    return event["kept"], event["again"], event["lost"]


@on_both_loops
@pytest.mark.parametrize("graph", ["blocking_branches", "blocking_items"])
@pytest.mark.parametrize("durability", ["sync", "async"])
def test_what_finished_beside_nodes_that_block_the_loop_does_not_run_again(
    tmp_path: Path, loop: str, graph: str, durability: str
) -> None:
    """The process dies as the sixth of nine starts, and a commit takes about as long as a node."""
    case = Case(tmp_path, graph, loop, "9", kill_at=6, durability=durability)

    case.killed("slow_disk")
    finished, started = case.lines("end"), case.lines("start")
    stored = case.stored()
    lived = case.resumed()

    assert len(finished) == 5
    assert stored is not None
    assert set(finished) <= set(stored.results)
    assert told(lived) == (6, 1, 0)
    assert not set(case.lines("start")[len(started) :]) & set(finished)
    assert len(case.lines("start")) == 10
    assert lived.of("Response")[0]["content"].startswith("9: ")


@on_both_loops
@pytest.mark.parametrize("graph", ["chain", "items"])
def test_async_loses_at_most_the_credit_at_the_tail_and_says_how_much(tmp_path: Path, loop: str, graph: str) -> None:
    case = Case(tmp_path, graph, loop, "300")

    killed = case.killed("before_the_tail_is_written")
    finished, started = case.lines("end"), case.lines("start")
    stored = case.stored()
    lived = case.resumed()

    assert stored is not None
    results = [result for result in stored.results if result in finished]
    seen = killed.highest_step("NodeFinished") - stored.step
    kept, again, lost = told(lived)
    assert kept == stored.step
    assert lost is not None
    assert lost - seen in (0, 1), "it is handed over, and then told"
    assert 1 < lost <= CREDIT
    assert results == finished[: len(results)], "the loss is not at the tail alone"
    assert len(finished) - len(results) <= lost + again
    assert not set(case.lines("start")[len(started) :]) & set(results)
    assert lived.of("Response")


@on_both_loops
def test_exit_keeps_the_admission_alone_and_says_so(tmp_path: Path, loop: str) -> None:
    case = Case(tmp_path, "chain", loop, "20", kill_at=10, durability="exit")

    case.killed()
    lived = case.resumed()

    assert told(lived) == (0, 1, 9)
    assert case.lines("start") == [str(n) for n in (*range(19, 9, -1), *range(19, -1, -1))]


@on_both_loops
def test_the_cause_of_an_effect_is_durable(tmp_path: Path, loop: str) -> None:
    case = Case(tmp_path, "effects", loop, "40", kill_at=15)

    case.killed("slow_disk")
    stored = case.stored()

    assert stored is not None
    assert len(case.lines("start")) == 15
    assert set(case.lines("start")) <= set(stored.results)
    assert case.resumed().of("Response")


@on_both_loops
def test_killed_in_its_first_commit_a_trace_was_never_there(tmp_path: Path, loop: str) -> None:
    case = Case(tmp_path, "chain", loop, "5")

    case.killed("in_first_commit")

    assert case.stored() is None
    assert case.lines("start") == []
    assert not case.resumed().of("TraceStarted")[0]["resumed"]
    assert case.lines("start") == ["4", "3", "2", "1", "0"]


@on_both_loops
def test_killed_after_its_first_commit_a_trace_goes_on(tmp_path: Path, loop: str) -> None:
    case = Case(tmp_path, "chain", loop, "5")

    case.killed("after_first_commit")

    assert case.lines("start") == []
    assert told(case.resumed())[0] == 0
    assert case.lines("start") == ["4", "3", "2", "1", "0"]


@on_both_loops
@pytest.mark.parametrize("death", ["while_pruning", "while_returning_pages"])
def test_killed_while_pruning_a_trace_goes_on(tmp_path: Path, loop: str, death: str) -> None:
    # In `sync` mode the writer has nothing to do between two steps, and prunes then.
    case = Case(tmp_path, "chain", loop, "150", durability="sync", max_checkpoints_per_trace=3)

    case.killed(death)
    stored = case.stored()
    started = len(case.lines("start"))
    lived = case.resumed()

    assert stored is not None
    assert 3 < stored.step < 151
    assert told(lived)[0] == stored.step
    assert not set(case.lines("start")[started:]) & set(stored.results)
    ended = case.stored()
    assert ended is not None
    assert ended.results == [str(n) for n in range(149, -1, -1)] + ["done"]
    assert ended.checkpoints == [151, 150, 149, 0]


@on_both_loops
def test_a_worker_process_dies_with_the_process_that_it_works_for(tmp_path: Path, loop: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)

    Case(tmp_path, "in_worker", loop, str(fifo)).killed()

    assert os.read(reader, 100) == b"", "it worked on"  # the end of the file: nobody has it open any more
    os.close(reader)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_worker_process_outlives_the_thread_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trio starts a process from a thread, and lets that end when it has been idle for some seconds."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def from_thread(start: Callable[[], Any], **_: Any) -> Any:
        started, processes = anyio.Event(), list[Any]()

        def work() -> None:
            processes.append(start())
            anyio.from_thread.run_sync(started.set, token=token)
            fifo.open().close()  # opens when the worker does so

        token = anyio.lowlevel.current_token()
        threading.Thread(target=work).start()
        await started.wait()
        return processes[0]

    monkeypatch.setattr("trio.to_thread.run_sync", from_thread)
    async with Executor(GraphBuilder("worker").node(graphs.work_on, process=True).build()) as executor:
        response = await executor.execute(str(fifo))

    assert response.value == "done"
