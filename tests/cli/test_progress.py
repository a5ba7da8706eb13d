"""What the events of a trace make of its progress, and how a view shows it: no executor, no terminal, a given clock."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.actors.events import (
    Committed,
    Event,
    NodeAnswered,
    NodeFailed,
    NodeFinished,
    NodePaused,
    NodeRetried,
    NodeStarted,
    Planned,
    StoreRecovered,
    StoreStalled,
    TraceEnded,
    TraceStarted,
)
from tinyllm.cli.progress import WINDOW, Progress
from tinyllm.cli.view import PlainView, opening, screen
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.questions import Question
from tinyllm.storage.contract import StepRow

FRESH = TraceStarted("demo", False, 0, 0, 0, (), {"list": 1})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def finished(node: str, step: int) -> NodeFinished:
    return NodeFinished("demo", node, step, 1.0)


def after(*events: tuple[float, Event]) -> Progress:
    progress = Progress(["list", "parse", "rank"])
    for at, event in events:
        progress.apply(event, at)
    return progress


# -- counting --------------------------------------------------------------------------------------------------


def test_counts_follow_the_events() -> None:
    progress = after(
        (0, FRESH),
        (0, NodeStarted("demo", "list")),
        (1, finished("list", 1)),
        (1, Planned("demo", "parse", 5)),
        (1, NodeStarted("demo", "parse")),
        (1, NodeStarted("demo", "parse")),
        (2, finished("parse", 2)),
        (2, NodeFailed("demo", "parse", ErrorInfo(type="E", message="m"))),
        (2, Committed("demo", 1, 3)),
    )
    assert (progress.nodes["list"].done, progress.nodes["list"].outstanding) == (1, 0)
    parse = progress.nodes["parse"]
    assert (parse.done, parse.running, parse.waiting, parse.failed) == (1, 0, 3, 1)
    assert (progress.step, progress.durable_step) == (2, 1)
    assert not progress.nodes["rank"].seen


def test_resumed_trace_counts_what_was_kept() -> None:
    rows = [StepRow(step, step, "list" if step == 1 else "parse", 0.0, 1.0) for step in range(1, 9)]
    progress = Progress(["list", "parse"], rows)
    progress.apply(TraceStarted("demo", True, 4, 0, 0, (), {"parse": 2}), 0)
    assert {node: counts.kept for node, counts in progress.nodes.items()} == {"list": 1, "parse": 3}
    assert (progress.step, progress.durable_step) == (4, 4)


@given(
    st.lists(
        st.one_of(
            st.builds(NodeStarted, st.just("demo"), st.sampled_from("ab")),
            st.builds(Planned, st.just("demo"), st.sampled_from(["a", "b", "$end"]), st.integers(0, 5)),
            st.builds(NodeFinished, st.just("demo"), st.sampled_from("ab"), st.integers(1, 99), st.just(1.0)),
            st.builds(Committed, st.just("demo"), st.integers(0, 99), st.integers(0, 99)),
        )
    ),
    st.floats(0, 1000),
)
def test_whatever_comes_nothing_is_negative_and_it_can_be_shown(events: list[Event], at: float) -> None:
    progress = Progress("ab")
    for event in [FRESH, *events]:
        progress.apply(event, at)
    assert all(min(n.running, n.waiting, n.done) >= 0 for n in progress.nodes.values())
    assert "$end" not in progress.nodes
    assert all(len(line) <= 79 for line in screen(progress, at + 1, 79, 20))


# -- estimates -------------------------------------------------------------------------------------------------


def test_time_left_is_what_is_planned_at_the_pace_of_late() -> None:
    started = NodeStarted("demo", "parse")
    events: list[tuple[float, Event]] = [(0, FRESH), (0, Planned("demo", "parse", 100)), (0, started)]
    for step in range(1, 21):  # two a second
        events += [(step / 2, finished("parse", step)), (step / 2, started)]
    progress = after(*events)
    assert progress.nodes["parse"].per_second(10) == pytest.approx(2)
    assert progress.nodes["parse"].left(10) == pytest.approx(40)
    left = progress.left(10)
    assert left is not None
    assert left[0] == pytest.approx(40)
    assert not left[1]  # nothing says how long `list` takes, or that `rank` will not come
    assert "at least 40 s left" in progress.sentence(10)


def test_time_left_is_about_all_once_every_node_was_reached() -> None:
    progress = Progress(["list"])
    progress.apply(FRESH, 0)
    progress.apply(Planned("demo", "list", 2), 0)
    for step in (1, 2):
        progress.apply(NodeStarted("demo", "list"), 2 * step - 2)
        progress.apply(finished("list", step), 2 * step)
    assert progress.sentence(4) == "2 done, 1 to go, 2 not durable yet, 30/min, about 2.0 s left"


def test_a_store_that_takes_no_writes_is_shown_until_it_does() -> None:
    progress = after((0, FRESH), (0, NodeStarted("demo", "list")), (2, finished("list", 1)))
    progress.apply(StoreStalled("demo", "the disk is full"), 3)
    assert "1 not durable yet, waiting for the store" in progress.sentence(4)
    progress.apply(StoreRecovered("demo"), 5)
    assert "waiting for the store" not in progress.sentence(6)


def test_the_first_round_is_left_out_of_an_estimate() -> None:
    """Two at once, whose workers take 9 seconds to start, then one second each."""
    progress = Progress(["list"])
    progress.apply(TraceStarted("demo", False, 0, 0, 0, (), {"list": 10}), 0)
    for _ in range(2):
        progress.apply(NodeStarted("demo", "list"), 0)
    left = []
    for step in range(1, 8):
        at = 10 + (step - 1) // 2
        progress.apply(finished("list", step), at)
        progress.apply(NodeStarted("demo", "list"), at)
        left.append(progress.left(at))
    assert left[:3] == [None] * 3
    assert [each and each[0] for each in left[3::2]] == [pytest.approx(3), pytest.approx(2)]


def test_nothing_is_estimated_from_nothing() -> None:
    progress = after((0, FRESH), (0, NodeStarted("demo", "list")))
    assert progress.left(5) is None
    assert "left" not in progress.sentence(5)


def test_pace_falls_while_nothing_ends() -> None:
    progress = after((0, FRESH), (0, NodeStarted("demo", "list")), (1, finished("list", 1)))
    paces = [progress.pace.per_second(at) for at in (2, 10, WINDOW)]
    assert all(pace is not None for pace in paces)
    assert paces == sorted(paces, reverse=True, key=lambda pace: pace or 0)
    assert progress.pace.per_second(WINDOW + 2) is None


def test_time_without_work_does_not_slow_a_node() -> None:
    progress = after(
        (0, FRESH),
        (0, NodeStarted("demo", "list")),
        (1, finished("list", 1)),
        (20, Planned("demo", "list", 3)),
        (20, NodeStarted("demo", "list")),
        (21, finished("list", 2)),
        (21, NodeStarted("demo", "list")),
        (22, finished("list", 3)),
    )
    assert progress.nodes["list"].per_second(22) == pytest.approx(1)


# -- plain lines -----------------------------------------------------------------------------------------------


def test_plain_view_is_sparse_and_grows_sparser(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = PlainView(Progress(["list", "parse"]), clock=clock)
    view.event(FRESH)
    view.event(Planned("demo", "parse", 10_000))
    for step in range(1, 10_001):  # 1,000 seconds, ten steps in each
        clock.now += 0.1
        view.event(finished("parse", step))
    view.event(TraceEnded("demo", "completed", 10_000))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "demo: started"
    assert lines[-1] == "demo: completed at step 10,000 after 16 m 40 s"
    assert 20 < len(lines) < 60
    assert all(len(line) <= 80 for line in lines[:3])


def test_plain_view_says_nothing_where_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = PlainView(Progress(["list"]), clock=clock)
    view.event(FRESH)
    clock.now += 3600
    view.close()
    assert capsys.readouterr().err == "demo: started\n"


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (FRESH, ["demo: started"]),
        (
            TraceStarted("demo", False, 0, 0, 0, ("node parse: code",), {}),
            ["demo: started", "  changed: node parse: code"],
        ),
        (TraceStarted("demo", True, 31, 2, 0, (), {}), ["resumed demo: kept 31 steps, 2 run again, 0 lost"]),
        (TraceStarted("demo", True, 1, 0, 3, (), {}), ["resumed demo: kept 1 step, 0 run again, 3 lost"]),
        (
            TraceStarted("demo", True, 31, 0, None, ("node parse: code",), {}),
            [
                "resumed demo: kept 31 steps, 0 run again, how many were lost is not known",
                "  changed: node parse: code",
            ],
        ),
    ],
)
def test_opening_says_what_a_resume_costs(event: TraceStarted, lines: list[str]) -> None:
    assert opening(event) == lines


def test_opening_of_a_fork_says_what_is_shared() -> None:
    event = TraceStarted("other", True, 5, 0, 0, ("node parse: code",), {"parse": 2, "rank": 1, "$end": 1})
    assert opening(event, "demo at step 5") == [
        "other: forked from demo at step 5; 5 steps shared, 3 to run",
        "  changed: node parse: code",
    ]


# -- the live table --------------------------------------------------------------------------------------------


def test_screen_shows_nodes_that_have_something_to_show() -> None:
    progress = after(
        (0, FRESH), (0, NodeStarted("demo", "list")), (2, finished("list", 1)), (2, Planned("demo", "parse", 7))
    )
    lines = screen(progress, 4, 79, 20)
    assert [line.split() for line in lines[:3]] == [
        ["node", "done", "running", "waiting", "rate", "time", "left"],
        ["list", "1", "0", "0"],
        ["parse", "0", "0", "7"],
    ]
    assert lines[-1].startswith("4.0 s: 1 done, 1 not durable yet")


def test_screen_of_what_has_ended_estimates_nothing() -> None:
    progress = after((0, FRESH), (0, NodeStarted("demo", "list")), (1, finished("list", 1)))
    progress.apply(Planned("demo", "list", 5), 1)
    progress.apply(TraceEnded("demo", "interrupted", 1), 1)
    assert [line.split() for line in screen(progress, 1, 79, 20)[1:]] == [["list", "1", "0", "5"]]


def test_screen_never_grows_out_of_the_terminal() -> None:
    names = [f"node_with_a_rather_long_name_{number}" for number in range(100)]
    progress = Progress(names)
    progress.apply(TraceStarted("demo", False, 0, 0, 0, (), dict.fromkeys(names, 3)), 0)
    progress.apply(NodeStarted("demo", names[77]), 0)
    lines = screen(progress, 1, 60, 12)
    assert len(lines) <= 12
    assert all(len(line) <= 60 for line in lines)
    assert ["1", "2"] in [line.split()[2:4] for line in lines]  # the one that runs is among those shown
    assert "and 91 nodes more" in lines


# -- retries, questions, handled failures ----------------------------------------------------------------------

TIMEOUT = ErrorInfo(type="TimeoutError", message="no answer")


def asked(node: str = "parse") -> NodePaused:
    question = Question(
        trace_id="demo", node_id=node, activation_id="ab" * 16, name="ok", prompt="Go on?", schema={"type": "boolean"}
    )
    return NodePaused("demo", node, question)


def test_another_attempt_waits_again() -> None:
    progress = after(
        (0, FRESH),
        (0, NodeStarted("demo", "list")),
        (1, NodeRetried("demo", "list", TIMEOUT, 1, 4.0)),
        (1, Planned("demo", "list", 1)),
    )
    counts = progress.nodes["list"]
    assert (counts.running, counts.waiting, counts.failed) == (0, 1, 0)


def test_what_asks_waits_until_it_is_answered() -> None:
    progress = after((0, FRESH), (0, NodeStarted("demo", "list")), (1, asked("list")))
    counts = progress.nodes["list"]
    assert (counts.running, counts.waiting, counts.asking, counts.left(9)) == (0, 1, 1, None)
    assert not progress.at_work
    assert screen(progress, 4, 79, 20)[1].split() == ["list", "0", "0", "1", "1", "asking"]
    progress.apply(NodeAnswered("demo", "list", "ok"), 5)
    progress.apply(Planned("demo", "list", 1), 5)
    assert (counts.running, counts.waiting, counts.asking) == (0, 1, 0)
    assert progress.at_work


def test_a_handled_failure_is_a_step() -> None:
    progress = after(
        (0, FRESH),
        (0, NodeStarted("demo", "list")),
        (1, NodeFailed("demo", "list", TIMEOUT, "rank")),
        (1, Planned("demo", "rank", 1)),
        (1, Committed("demo", 1, 1)),
    )
    counts = progress.nodes["list"]
    assert (counts.done, counts.failed, counts.outstanding) == (1, 0, 0)
    assert (progress.step, progress.failed) == (1, 0)


def test_notes_say_what_goes_wrong_and_who_handles_it(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(Progress(["list", "parse"]), clock=Clock())
    for event in (
        FRESH,
        NodeStarted("demo", "list"),
        NodeRetried("demo", "list", TIMEOUT, 2, 4.0),
        NodeFailed("demo", "parse", ErrorInfo(type="ValueError", message="bad\n" * 99), "rank"),
        NodeFailed("demo", "list", TIMEOUT, "rank"),
    ):
        view.event(event)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "demo: started"
    assert lines[1] == "list: attempt 2 failed (TimeoutError: no answer), again in 4.0 s"
    assert lines[2].startswith("parse: failed (ValueError: bad bad ")
    assert lines[2].endswith("…), rank handles it")
    assert lines[3] == "list: failed (TimeoutError: no answer), rank handles it"
    assert max(map(len, lines)) == 79


def test_a_thousand_retries_do_not_flood_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = PlainView(Progress(["list"]), clock=clock)
    view.event(FRESH)
    for _ in range(1000):  # ten seconds, a hundred in each
        clock.now += 0.01
        view.event(NodeStarted("demo", "list"))
        view.event(NodeRetried("demo", "list", TIMEOUT, 1, 1.0))
        view.event(Planned("demo", "list", 1))
    lines = capsys.readouterr().err.splitlines()
    assert 15 < len(lines) < 25
    assert re.fullmatch(r"list: .* again in 1.0 s \(and \d+ like it before\)", lines[3])


def test_a_question_is_shown_at_once_only_where_something_else_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(Progress(["list", "parse"]), clock=Clock())
    view.event(FRESH)
    event = asked()
    view.event(event)
    assert capsys.readouterr().err.splitlines() == [
        "demo: started",
        "node parse asks: Go on?",
        "  (it takes true or false)",
        f"  tinyllm answer demo true --question {event.question.id}",
    ]
    view.event(NodeAnswered("demo", "parse", "ok"))
    assert capsys.readouterr().err == "parse: 'ok' is answered\n"
    view.event(NodeStarted("demo", "list"))
    view.event(asked("list"))
    assert capsys.readouterr().err == ""
