"""A supervisor in a program, with real worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from tests.supervisor.work import Line, journal, run_again, write_graph
from tinyllm import (
    CheckpointStorage,
    ConfigError,
    Executor,
    ExecutorConfig,
    Graph,
    SQLiteCheckpointStorage,
    Supervisor,
    SupervisorGaveUp,
    load_graph,
    submit,
)
from tinyllm.supervisor.control import Verb, serving
from tinyllm.supervisor.messages import Leaving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"])
"""For what takes seconds, and is decided without a loop, or in a worker: it runs on one of them."""

HANG_SECONDS = 4
"""Few, but more than a worker on a busy machine may be silent for."""


@attrs.frozen
class Bench:
    """A graph in a folder, and a store."""

    graph: Path
    storage: CheckpointStorage

    @property
    def loaded(self) -> Graph:
        return load_graph(self.graph)

    def supervisor(self, **settings: Any) -> Supervisor:
        config = ExecutorConfig(durability="sync")  # what a test has seen to end is recorded
        return Supervisor([self.graph], self.storage.name, config=config, **{"workers": 1, "grace": 5.0, **settings})

    async def submit(self, trace_id: str, *, priority: int = 0, not_before: float | None = None, **told: Any) -> None:
        await submit(
            self.loaded,
            json.dumps(told),
            self.storage,
            trace_id=trace_id,
            priority=priority,
            not_before=not_before,
        )

    async def status(self, trace_id: str) -> str:
        record = await self.storage.trace(trace_id)
        assert record is not None
        return record.status

    async def until(self, trace_id: str, status: str) -> None:
        async def there() -> bool:
            return await self.status(trace_id) == status

        await until(there)

    def lines(self, trace_id: str, what: str = "began") -> list[Line]:
        return [line for line in journal(self.graph) if (line.trace_id, line.what) == (trace_id, what)]

    async def begun(self, trace_id: str, count: int = 1) -> Line:
        """The `count`th time that a node of the trace began."""

        async def there() -> bool:
            return len(self.lines(trace_id)) >= count

        await until(there)
        return self.lines(trace_id)[count - 1]


async def until(there: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(30):
        while not await there():
            await anyio.sleep(0.01)


async def died(supervisor: Supervisor, cause: str) -> None:
    """One worker died, of that."""

    async def counted() -> bool:
        return (await supervisor.status()).deaths == {cause: 1}

    await until(counted)


@pytest.fixture
async def bench(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Bench]:
    storage = SQLiteCheckpointStorage(tmp_path / "store")
    await storage.initialize()
    yield Bench(write_graph(tmp_path / "graph", nodes=3), storage)
    await storage.close()


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    with anyio.fail_after(60):
        async with supervisor:
            yield supervisor


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_was_submitted_is_executed_in_other_processes(bench: Bench) -> None:
    await bench.submit("before")
    async with running(bench.supervisor(workers=2)) as supervisor:
        await bench.submit("after")
        for trace_id in ("before", "after"):
            await bench.until(trace_id, "completed")
        pids = {worker.pid for worker in (await supervisor.status()).workers}
        assert {line.pid for line in journal(bench.graph)} <= pids
    assert not any(is_alive(pid) for pid in pids if pid is not None)
    assert [line.node for line in bench.lines("before", "ended")] == ["n0", "n1", "n2"]


async def test_what_a_killed_worker_left_goes_on_in_another_and_is_not_blamed(bench: Bench) -> None:
    await bench.submit("t", at=1, what="hold")
    async with running(bench.supervisor(workers=2)) as supervisor:
        first = await bench.begun("t", 2)
        os.kill(first.pid, signal.SIGKILL)
        second = await bench.begun("t", 3)
        assert (second.node, second.pid != first.pid) == ("n1", True)
        (bench.graph.parent / "let go").touch()
        await bench.until("t", "completed")
        await died(supervisor, "it was killed from outside (SIGKILL)")
        assert (await supervisor.status()).restarts == 1
    record = await bench.storage.trace("t")
    assert record is not None
    assert not record.apart
    assert await run_again(bench.graph, bench.storage, ["t"]) == []


@on_asyncio
async def test_a_trace_that_kills_its_workers_is_quarantined_and_those_beside_it_are_not(bench: Bench) -> None:
    await bench.submit("poison", at=1, what="exit")
    beside = [f"beside-{number}" for number in range(4)]
    for trace_id in beside:
        await bench.submit(trace_id, seconds=0.1)
    async with running(bench.supervisor()) as supervisor:
        await bench.until("poison", "quarantined")
        for trace_id in beside:
            await bench.until(trace_id, "completed")
        assert (await supervisor.status()).backlog.quarantined == 1
        record = await bench.storage.trace("poison")
        assert record is not None
        deaths = json.loads(record.deaths or b"")
        assert [death["cause"] for death in deaths] == ["it exited with code 7"] * 3
        assert [death["beside"] for death in deaths[1:]] == [0, 0]
        assert len([line for line in bench.lines("poison") if line.node == "n1"]) == 3
        assert len([line for line in bench.lines("poison") if line.node == "n0"]) == 1
    (bench.graph.parent / "mended").touch()
    async with Executor(bench.loaded, checkpoint_storage=bench.storage) as executor:
        response = await executor.resume_from_checkpoint("poison", force=True)
    assert response.success


@on_trio
async def test_a_worker_whose_event_loop_is_blocked_is_ended(bench: Bench) -> None:
    await bench.submit("t", at=1, what="block")
    async with running(bench.supervisor(hang_seconds=HANG_SECONDS)) as supervisor:
        await bench.begun("t", 2)
        (bench.graph.parent / "mended").touch()
        await bench.until("t", "completed")
        await died(supervisor, "its event loop was blocked for 4 s")


@on_asyncio
async def test_a_worker_may_take_its_time_to_import_its_graph(bench: Bench) -> None:
    functions = bench.graph.parent / "nodes.py"
    functions.write_text(f"import time\n\ntime.sleep(4)\n{functions.read_text()}")
    async with running(bench.supervisor(hang_seconds=2)) as supervisor:
        assert (await supervisor.status()).restarts == 0


@on_asyncio
async def test_a_worker_that_was_stopped_is_ended_and_no_trace_is_blamed(bench: Bench) -> None:
    await bench.submit("t", at=1, what="hold")
    async with running(bench.supervisor(workers=2, hang_seconds=HANG_SECONDS)) as supervisor:
        os.kill((await bench.begun("t", 2)).pid, signal.SIGSTOP)
        await bench.begun("t", 3)
        (bench.graph.parent / "let go").touch()
        await bench.until("t", "completed")
        await died(supervisor, "it was stopped for 4 s")
    record = await bench.storage.trace("t")
    assert record is not None
    assert not record.apart


@on_asyncio
async def test_a_worker_that_was_stopped_may_end_by_itself(bench: Bench) -> None:
    """It does not hold what all others wait for until it is killed, and what it had begun is not begun again."""
    await bench.submit("t", seconds=0.5)
    async with running(bench.supervisor(workers=2, hang_seconds=HANG_SECONDS)) as supervisor:
        os.kill((await bench.begun("t", 2)).pid, signal.SIGSTOP)
        await bench.until("t", "completed")

        async def counted() -> bool:
            return list((await supervisor.status()).deaths) == [f"it was stopped for {HANG_SECONDS} s"]

        await until(counted)
    assert [line.node for line in bench.lines("t")] == ["n0", "n1", "n2"]


@on_trio
async def test_a_suspect_that_gets_past_what_ran_goes_on_among_the_others(bench: Bench) -> None:
    """It is killed with the poison, executed apart, and then not any more."""
    write_graph(bench.graph.parent, nodes=5)  # what runs when it is acquitted ends where it began
    await bench.submit("long", at=1, what="hold", seconds=0.5)  # and that it has come so far, is to be seen meanwhile
    async with running(bench.supervisor()) as supervisor:
        await bench.begun("long", 2)
        await bench.submit("poison", at=0, what="exit")
        await bench.begun("long", 3)
        for trace_id in ("long", "poison"):
            record = await bench.storage.trace(trace_id)
            assert record is not None
            assert record.apart
        (bench.graph.parent / "let go").touch()
        await bench.until("long", "completed")
        await bench.until("poison", "quarantined")
        pids = {worker.pid for worker in (await supervisor.status()).workers if not worker.apart}
    assert bench.lines("long")[-1].pid in pids


@on_asyncio
async def test_the_highest_priority_goes_first_and_then_the_oldest(bench: Bench) -> None:
    for trace_id, priority in (("a", 0), ("b", 0), ("c", 5), ("d", -1), ("e", 5)):
        await bench.submit(trace_id, priority=priority)
    async with running(bench.supervisor(concurrency=1)):
        await bench.until("d", "completed")
    assert [line.trace_id for line in journal(bench.graph) if (line.node, line.what) == ("n0", "began")] == [*"ceabd"]


@on_trio
async def test_nothing_begins_before_its_time(bench: Bench) -> None:
    then = time.time() + 1.5
    await bench.submit("later", not_before=then)
    await bench.submit("never", not_before=then + 1000)
    async with running(bench.supervisor()) as supervisor:
        await bench.until("later", "completed")
        assert bench.lines("later")[0].at >= then
        assert (await supervisor.status()).backlog.later == 1
    assert await bench.status("never") == "queued"


@on_asyncio
async def test_of_a_graph_with_a_limit_no_more_are_executed_at_once(bench: Bench) -> None:
    names = [f"t{number}" for number in range(8)]
    for trace_id in names:
        await bench.submit(trace_id, seconds=0.02)
    async with running(bench.supervisor(workers=2, limits={"chain": 2})):
        for trace_id in names:
            await bench.until(trace_id, "completed")
    edges = [(line.at, 1) for name in names for line in bench.lines(name) if line.node == "n0"]
    edges += [(line.at, -1) for name in names for line in bench.lines(name, "ended") if line.node == "n2"]
    at_once = 0
    for _, change in sorted(edges):
        at_once += change
        assert at_once <= 2


async def test_a_drain_lets_what_runs_come_to_a_durable_point(bench: Bench) -> None:
    await bench.submit("t", at=1, what="hold")
    async with running(bench.supervisor()) as supervisor:
        await bench.begun("t", 2)
        supervisor.drain()
        await bench.submit("too-late")
        (bench.graph.parent / "let go").touch()
        await supervisor.drained()
        assert (await supervisor.status()).state == "stopping"
    assert await bench.status("t") == "interrupted"
    assert await bench.status("too-late") == "queued"
    assert [line.node for line in bench.lines("t", "ended")] == ["n0", "n1"]
    async with running(bench.supervisor()):
        await bench.until("t", "completed")
        await bench.until("too-late", "completed")
    assert [line.node for line in bench.lines("t")] == ["n0", "n1", "n2"]


@on_asyncio
async def test_others_hear_when_there_is_something_to_go_on_with(bench: Bench) -> None:
    heard: list[Verb] = []

    async def answer(verb: Verb) -> dict[str, Any]:
        heard.append(verb)
        return {}

    await bench.submit("t", at=1, what="hold")
    async with running(bench.supervisor()) as supervisor:
        await bench.begun("t", 2)
        async with serving(Path(bench.storage.name), "other", answer):
            supervisor.drain()
            (bench.graph.parent / "let go").touch()
            await supervisor.drained()

            async def woken() -> bool:
                return "wake" in heard

            await until(woken)


async def test_what_does_not_end_within_the_grace_is_killed_and_goes_on_later(bench: Bench) -> None:
    await bench.submit("t", at=1, what="hold")
    async with running(bench.supervisor(grace=1.0)):
        first = await bench.begun("t", 2)
    assert not is_alive(first.pid)
    (bench.graph.parent / "let go").touch()
    async with running(bench.supervisor()):
        await bench.until("t", "completed")
    record = await bench.storage.trace("t")
    assert record is not None
    assert record.deaths is None


@on_trio
async def test_two_supervisors_of_one_store_share_the_work(bench: Bench) -> None:
    names = [f"t{number}" for number in range(4)]
    async with running(bench.supervisor(concurrency=2)) as one, running(bench.supervisor(concurrency=2)) as other:
        for trace_id in names:
            await bench.submit(trace_id, at=1, what="hold")
        for trace_id in names:
            await bench.begun(trace_id, 2)
        (bench.graph.parent / "let go").touch()
        for trace_id in names:
            await bench.until(trace_id, "completed")
        pids = [{worker.pid for worker in (await each.status()).workers} for each in (one, other)]
    assert all({line.pid for line in journal(bench.graph)} & each for each in pids)
    assert all(len(bench.lines(name)) == 3 for name in names)


@on_asyncio
async def test_a_trace_that_does_not_fit_its_graph_is_left_alone_and_said_so(bench: Bench) -> None:
    await bench.submit("t")
    write_graph(bench.graph.parent, nodes=2)
    await bench.submit("fits")
    async with running(bench.supervisor()) as supervisor:
        await bench.until("fits", "completed")

        async def refused() -> bool:
            return "t" in (await supervisor.status()).refused

        await until(refused)
        status = await supervisor.status()
        assert "accept" in status.refused["t"]
        assert status.backlog.later == 1
    assert not bench.lines("t")


@on_trio
async def test_a_failed_trace_is_failed_and_not_tried_again(bench: Bench) -> None:
    await bench.submit("t", at=1, what="fail")
    async with running(bench.supervisor()) as supervisor:
        await bench.until("t", "failed")

        async def counted() -> bool:
            return (await supervisor.status()).failed == 1

        await until(counted)
    assert len(bench.lines("t")) == 2


@on_asyncio
async def test_a_supervisor_of_a_broken_graph_gives_up_at_once_and_says_why(bench: Bench) -> None:
    bench.graph.write_text("id: chain\nnodes: [{id: n0, type: nonsense}]\n")
    with pytest.raises(SupervisorGaveUp, match="nonsense"):
        async with bench.supervisor(workers=2):
            pytest.fail("it cannot begin")


@on_trio
async def test_a_supervisor_whose_workers_die_for_no_traces_sake_gives_up(bench: Bench) -> None:
    (bench.graph.parent / "nodes.py").write_text("import os\nos._exit(3)\n")
    with anyio.fail_after(30), pytest.raises(SupervisorGaveUp, match="exited with code 3"):
        async with bench.supervisor():
            pytest.fail("it cannot begin")


async def test_an_error_in_the_block_is_raised_as_it_is_and_nothing_is_left_running(bench: Bench) -> None:
    pids: list[int | None] = []
    with pytest.raises(KeyError, match="mine"):
        async with bench.supervisor() as supervisor:
            pids += [worker.pid for worker in (await supervisor.status()).workers]
            raise KeyError("mine")
    assert pids
    assert not any(is_alive(pid) for pid in pids if pid is not None)


async def test_a_cancelled_host_leaves_nothing_running(bench: Bench) -> None:
    pids: list[int | None] = []
    async with anyio.create_task_group() as tasks, bench.supervisor() as supervisor:
        pids += [worker.pid for worker in (await supervisor.status()).workers]
        tasks.cancel_scope.cancel()
        await anyio.sleep_forever()
    assert pids
    assert not any(is_alive(pid) for pid in pids if pid is not None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 0}, "workers"),
        ({"concurrency": True}, "concurrency"),
        ({"limits": {"chain": 0}}, "chain"),
        ({"grace": float("nan")}, "grace"),
        ({"hang_seconds": 1}, "hang_seconds"),
    ],
)
async def test_a_setting_out_of_its_range_is_refused(bench: Bench, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        bench.supervisor(**settings)


@on_asyncio
async def test_a_limit_of_a_graph_that_there_is_not_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="chian"):
        async with bench.supervisor(limits={"chian": 2}):
            pytest.fail("it cannot begin")


@pytest.mark.parametrize("graphs", ["one.yaml", Path("one.yaml"), []])
async def test_graphs_are_a_list_of_files(graphs: Any) -> None:
    with pytest.raises(ConfigError, match="list of paths"):
        Supervisor(graphs)


@on_asyncio
async def test_a_supervisor_does_not_begin_twice(bench: Bench) -> None:
    supervisor = bench.supervisor()
    async with running(supervisor):
        pass
    with pytest.raises(SupervisorGaveUp, match="make another"):
        async with supervisor:
            pytest.fail("it cannot begin")


async def test_a_host_that_is_cancelled_while_it_starts_leaves_nothing_running(bench: Bench) -> None:
    with anyio.fail_after(30):
        for seconds in (0.0, 0.001, 0.1):
            with anyio.move_on_after(seconds):
                async with bench.supervisor():
                    await anyio.sleep_forever()
    assert list((Path(bench.storage.name) / "supervisors").glob("*")) == []


@on_asyncio
async def test_a_task_of_its_own_that_is_cancelled_ends_it_with_an_error(bench: Bench) -> None:
    """As asyncio itself can do it, which would leave a supervisor that has no worker."""
    with anyio.fail_after(30), pytest.raises(SupervisorGaveUp, match="cancelled"):
        async with bench.supervisor():
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "worker 1")
            task.cancel()
            await anyio.sleep_forever()


async def test_its_socket_is_gone_when_it_has_drained(bench: Bench) -> None:
    """So whoever told it to drain need not wait for its host."""
    async with running(bench.supervisor()) as supervisor:
        assert list((Path(bench.storage.name) / "supervisors").glob("*.sock")) != []
        supervisor.drain()
        await supervisor.drained()
        assert list((Path(bench.storage.name) / "supervisors").glob("*")) == []


@on_trio
async def test_a_store_that_failed_a_worker_is_no_traces_fault(bench: Bench) -> None:
    await bench.submit("t", at=1, what="hold")
    async with running(bench.supervisor(workers=2)) as supervisor:
        first = await bench.begun("t", 2)
        for slot in supervisor._slots:
            if slot.life is not None and slot.life.pid == first.pid:
                slot.life._leaving = Leaving("store", "it is full")  # as it says itself, before it ends
        os.kill(first.pid, signal.SIGKILL)
        await bench.begun("t", 3)
        (bench.graph.parent / "let go").touch()
        await bench.until("t", "completed")
        assert (await supervisor.status()).deaths == {"it left: it is full": 1}
    record = await bench.storage.trace("t")
    assert record is not None
    assert record.deaths is None
