"""What is configured as a secret is in no file of the store, no log line and no event; nodes see the same before and
after a resume."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tinyllm import (
    CheckpointConfig,
    CheckpointManager,
    ExecutionContext,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    Message,
    MessagePayload,
    NodeContext,
    Result,
    Send,
)
from tinyllm.core import outside
from tinyllm.core.store import opened_storage
from tinyllm.errors import ExecutionError
from tinyllm.graph.redact import MARK

pytestmark = pytest.mark.anyio

on_one_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # where no loop makes a difference

NAMED, LOOKING = "hunter-two", "sk-abcdefghij0123456789"
"""A secret that is told by its name, and one by how it looks."""
RULES = ("password", re.compile("sk-[a-z0-9]{20}"))
CONFIG = ExecutorConfig(redact=RULES, durability="sync")


def in_files(folder: Path) -> set[str]:
    """Which of the two are in the files of a store."""
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {secret for secret in (NAMED, LOOKING) if secret.encode() in held}


@pytest.fixture
def nothing_leaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """A list for the events that are told. At the end neither these nor the store nor the log know a secret."""
    told: list[Any] = []
    caplog.set_level(logging.DEBUG)
    yield told
    assert not in_files(tmp_path)
    for secret in (NAMED, LOOKING):
        assert secret not in caplog.text
        assert secret not in repr(told)


def graph(seen: list[Any]) -> Graph:
    async def first(task: str, context: NodeContext) -> Result:
        seen.append((task, dict(context.variables)))
        context.logger.warning("it is %s", LOOKING)
        await context.save_progress({"password": NAMED, "at": LOOKING})
        seen.append(context.progress)
        context.set_variable("password", NAMED)
        if context.attempt == 1:
            raise ValueError(f"refused: {LOOKING}")
        return Result({"password": NAMED, "text": f"key {LOOKING}"}, set={"x": LOOKING}, status=LOOKING)

    async def second(value: Any, context: NodeContext) -> Any:
        seen.append((value, dict(context.variables)))
        answer = await context.ask(f"is it {LOOKING}?", name="password", schema={"examples": [LOOKING]})
        seen.append(answer)
        return [Send("third", {"password": NAMED})]

    def third(value: Any, context: NodeContext) -> Any:
        seen.append(value)
        context.logger.error("it is", extra={"password": NAMED})
        return [{"password": NAMED}, LOOKING]

    builder = GraphBuilder("secrets").node(first, retry=2).node(second, targets="third").node(third)
    return builder.edge("first", "second").build()


async def test_everywhere(tmp_path: Path, nothing_leaks: list[Any]) -> None:
    seen: list[Any] = []
    async with Executor(graph(seen), CONFIG, tmp_path, on_event=nothing_leaks.append) as executor:
        paused = await executor.execute(f"do {LOOKING}", trace_id="t", variables={"password": NAMED, "y": LOOKING})
        assert paused.status == "paused"
        assert paused.questions[0].prompt == f"is it {MARK}?"
        assert paused.questions[0].schema == {"examples": [MARK]}
        nothing_leaks.append(paused)
    assert not in_files(tmp_path)
    async with Executor(graph(seen), CONFIG, tmp_path, on_event=nothing_leaks.append) as executor:
        done = await executor.resume_from_checkpoint("t", answers={"password": NAMED})
        nothing_leaks.append(done)
    assert done.value == [[{"password": MARK}, MARK]]  # of a fan-out
    first = (f"do {MARK}", {"password": MARK, "y": MARK})
    progress = {"password": MARK, "at": MARK}
    second = ({"password": MARK, "text": f"key {MARK}"}, {"password": MARK, "x": MARK, "y": MARK})
    assert seen == [first, progress, first, progress, second, second, MARK, {"password": MARK}]


async def test_the_text_of_an_error(tmp_path: Path, nothing_leaks: list[Any]) -> None:
    async def fails(_: str) -> None:
        raise ValueError(f"refused: {LOOKING}") from RuntimeError(LOOKING)

    config = ExecutorConfig(redact=RULES)
    built = GraphBuilder("g").node(fails).build()
    async with Executor(built, config, tmp_path, on_event=nothing_leaks.append) as executor:
        with pytest.raises(ExecutionError) as caught:
            await executor.execute("x")
    assert f"ValueError: refused: {MARK} (from RuntimeError: {MARK})" in str(caught.value)
    nothing_leaks += [str(caught.value), caught.value.response]


def in_worker(_: str) -> str:
    if not _:
        raise ValueError(LOOKING)
    return LOOKING


@on_one_loop
async def test_in_a_worker_process(tmp_path: Path, nothing_leaks: list[Any]) -> None:
    built = GraphBuilder("g").node(in_worker, process=True).build()
    async with Executor(built, CONFIG, tmp_path, on_event=nothing_leaks.append) as executor:
        assert (await executor.execute("x")).value == MARK
        with pytest.raises(ExecutionError, match=r"ValueError: \[redacted\]"):
            await executor.execute("")


@on_one_loop
async def test_from_outside_and_in_forks(tmp_path: Path, nothing_leaks: list[Any]) -> None:
    seen: list[Any] = []
    async with Executor(graph(seen), CONFIG, tmp_path) as executor:
        for name in ("a", "b"):
            await executor.execute("x", trace_id=name)
        await executor.answer("a", {"z": LOOKING})
        async with opened_storage(tmp_path) as storage:
            await outside.answer(storage, "b", LOOKING, redact=RULES)
        fork = await executor.fork("a", at=0, set={"password": NAMED}, new_trace_id="c")
        assert fork.status == "paused"


@on_one_loop
async def test_saved_by_hand(tmp_path: Path, nothing_leaks: list[Any]) -> None:
    context = ExecutionContext(trace_id="t", graph_id="g", variables={"password": NAMED, "x": LOOKING})
    context.messages.append(Message("t", "n", payload=MessagePayload(content=LOOKING, metadata={"password": NAMED})))
    manager = CheckpointManager(tmp_path, CheckpointConfig(redact=RULES))
    await manager.initialize()
    try:
        assert await manager.save_checkpoint(context, "first", force=True)
        context.messages.append(Message("t", "n", payload=MessagePayload(content="more")))
        saved = await manager.save_checkpoint(context, "second", force=True)  # it goes on from what is there
        assert saved is not None
        assert saved.state["variables"] == {"password": MARK, "x": MARK}
        assert [message.payload.content for message in saved.messages] == [MARK, "more"]
        nothing_leaks.append(saved)
    finally:
        await manager.close()


@on_one_loop
async def test_nothing_is_redacted_unasked(tmp_path: Path) -> None:
    async def gives(_: str) -> dict[str, str]:
        return {"password": NAMED, "x": LOOKING}

    async with Executor(GraphBuilder("g").node(gives).build(), None, tmp_path) as executor:
        assert (await executor.execute("x")).value == {"password": NAMED, "x": LOOKING}
    assert in_files(tmp_path) == {NAMED, LOOKING}  # so the check can fail


@on_one_loop
async def test_what_is_deleted_is_gone_from_the_files_too_when_its_space_is_reclaimed(tmp_path: Path) -> None:
    async def gives(_: str) -> str:
        return LOOKING

    async with Executor(GraphBuilder("g").node(gives).build(), None, tmp_path) as executor:
        await executor.execute("x", trace_id="t")
    async with opened_storage(tmp_path) as storage:
        await outside.delete(storage, "t")
        while await storage.reclaim(100):
            await anyio.sleep(0)
    assert not in_files(tmp_path)
