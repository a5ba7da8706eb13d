"""SIGKILL within an activation: what it saved, how often it was tried and what it was told outlive its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.crash.test_kill import Case, on_both_loops, told
from tinyllm import AlreadyAnswered, QuestionNotOpen, SQLiteCheckpointStorage
from tinyllm.core import outside

durable = pytest.mark.parametrize("durability", ["sync", "async"])


@on_both_loops
@durable
def test_progress_that_was_saved_is_not_made_again(tmp_path: Path, loop: str, durability: str) -> None:
    case = Case(tmp_path, "saving", loop, "5", durability=durability)
    case.killed()
    lived = case.resumed()
    assert told(lived) == (0, 1, 0)
    assert case.lines("start") == [f"page {page}" for page in range(1, 6)]
    assert lived.of("Response")[0]["content"] == "5 pages"


@on_both_loops
@durable
def test_an_attempt_that_was_killed_keeps_its_number_and_the_budget(tmp_path: Path, loop: str, durability: str) -> None:
    case = Case(tmp_path, "trying", loop, "x", durability=durability)
    case.killed()
    assert case.lines("start") == ["attempt 1", "attempt 2"]
    assert case.resumed().of("Response")[0]["content"] == "done"
    assert case.lines("start") == ["attempt 1", "attempt 2", "attempt 2", "attempt 3"]


@on_both_loops
@durable
def test_an_answer_that_was_given_is_never_asked_for_again(tmp_path: Path, loop: str, durability: str) -> None:
    case = Case(tmp_path, "asking", loop, "x", durability=durability)
    paused = case.resumed()
    assert [event["question"]["prompt"] for event in paused.of("NodePaused")] == ["and?"]

    async def answer(value: Any) -> None:
        storage = SQLiteCheckpointStorage(case.order.store)
        await storage.initialize()
        try:
            await outside.answer(storage, "t", value)
        finally:
            await storage.close()

    anyio.run(answer, "yes")
    case.killed()
    with pytest.raises((QuestionNotOpen, AlreadyAnswered)):
        anyio.run(answer, "no")
    lived = case.resumed()
    assert lived.of("Response")[0]["content"] == "x: yes"
    assert not lived.of("NodePaused")
    assert len(case.lines("start")) == 3
