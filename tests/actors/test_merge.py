"""Merged deltas do what those they are made of do, one after the other."""

from __future__ import annotations

import random
from functools import reduce
from typing import Any

import attrs
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.actors.graphs import BOOM, Hand, Record, now, shape
from tests.actors.merging import merge
from tests.actors.worlds import TooLong, Walk, World, worlds
from tinyllm.nodes.call import Failure
from tinyllm.storage.contract import Delta, Leave, Snapshot, StateChange


def chain(world: World, rng: random.Random, failing: int) -> list[Delta]:
    """What a plan of `world` hands over: some activations fail or are cut off, and run again after a resume."""
    record = Record(world.graph)
    walk = Walk(world, rng)
    deltas = [walk.begin()]
    record.admit(walk.plan, deltas[0])

    def keep(delta: Delta) -> None:
        deltas.append(delta)
        record.append(delta)

    while (delta := walk.next()) is not None:
        keep(delta)
        if failing and walk.plan.activations and rng.random() < 0.2:
            failing -= 1
            keep(walk.cut_off())
            # (What saves its progress does so before it fails.)
            if fails := sorted(seq for seq, each in walk.plan.activations.items() if each.node not in world.saves):
                keep(walk.plan.fail(rng.choice(fails), Failure(BOOM), at=0.0, duration_ms=0.0))
            walk.go_on(record.resume())
    return deltas


def stored(world: World, deltas: list[Delta]) -> dict[str, Any]:
    """What is loaded of a trace of these deltas, but for what must differ: revs, and how many rows read a message."""
    record = Record(world.graph)
    walk = Walk(world, random.Random(0))
    record.admit(walk.plan, deltas[0])
    for number in range(1 + sum(len(delta.consumed) for delta in deltas)):
        record.write(Leave(record.key, "t", "answer", bytes([number]), "?", b"1"))
    for delta in deltas[1:]:
        record.append(delta)
    snapshot: Snapshot = record.load()
    said = attrs.asdict(snapshot, recurse=False)
    return {key: value for key, value in said.items() if key not in ("record", "rev")} | {
        "messages": {seq: attrs.evolve(row, consumers=0) for seq, row in snapshot.messages.items()},
        "history": [attrs.evolve(row, consumers=0) for row in now(record.store.messages("t"))],
        "steps": now(record.store.steps("t")),
        "error": snapshot.record.error,
        "commands": {command.id for command in record.commands()},
    }


@st.composite
def chains(draw: st.DrawFn) -> tuple[World, list[Delta]]:
    world = draw(worlds())
    rng = random.Random(draw(st.integers(0, 2**32)))
    try:
        return world, chain(world, rng, draw(st.integers(0, 3)))
    except TooLong:
        assume(False)
        raise


FEWER = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@FEWER
@given(chains(), st.data())
def test_a_merged_delta_stores_what_its_parts_store(made: tuple[World, list[Delta]], data: st.DataObject) -> None:
    world, deltas = made
    assume(len(deltas) > 2)
    start = data.draw(st.integers(1, len(deltas) - 1))
    windows = [(start, data.draw(st.integers(start + 1, len(deltas))))]
    # Chance alone seldom finds the narrow ones in which an activation changes twice.
    windows += [(at, at + 2) for at in range(1, len(deltas) - 1) if deltas[at].changed and deltas[at + 1].changed][:3]
    for start, end in windows:
        merged = reduce(merge, deltas[start:end])
        # Up to the merged delta, and up to the end: what comes later must find what it builds on.
        assert stored(world, [*deltas[:start], merged]) == stored(world, deltas[:end])
        assert stored(world, [*deltas[:start], merged, *deltas[end:]]) == stored(world, deltas)


@FEWER
@given(chains(), st.data())
def test_it_does_not_matter_which_neighbours_are_merged_first(
    made: tuple[World, list[Delta]], data: st.DataObject
) -> None:
    _, deltas = made
    assume(len(deltas) > 3)
    start = data.draw(st.integers(1, len(deltas) - 3))
    first, second, third = deltas[start : start + 3]
    assert merge(merge(first, second), third) == merge(first, merge(second, third))


# -- what is never written -------------------------------------------------------------------------------------


def test_what_was_born_and_died_inside_is_not_there() -> None:
    hand = Hand(shape("a -> b", "b -> c"))
    first, second = hand.finish("a", 1), hand.finish("b", 2)
    merged = merge(first, second)
    assert [row.node for row in merged.activations] == ["c"]
    assert merged.ended == first.ended
    assert [step.node for step in merged.steps] == ["a", "b"]
    assert [row.consumers for row in merged.messages] == [0, 1]
    assert (merged.number, merged.step, merged.counts, merged.marks) == (2, 2, second.counts, second.marks)


@given(
    st.builds(
        StateChange,
        st.just(2),
        st.sampled_from(["planned", "paused", "failed", "cancelled"]),
        st.integers(0, 9),
        st.none() | st.binary(),
        st.integers(0, 9),
        st.none() | st.floats(allow_nan=False),
        st.none() | st.binary(),
        st.none() | st.binary(),
    )
)
def test_a_new_state_inside_is_told_of_the_row_itself_as_a_whole(change: StateChange) -> None:
    hand = Hand(shape("a -> b"))
    planned = hand.finish("a")
    (row,) = planned.activations
    changed = attrs.evolve(planned, messages=(), activations=(), changed=(change,))
    merged = merge(attrs.evolve(planned, activations=(attrs.evolve(row, tries=7, due=1.0, asked=b"?"),)), changed)
    (told,) = merged.activations
    assert attrs.asdict(told) == attrs.asdict(row) | attrs.asdict(change, filter=attrs.filters.exclude("activation"))
    state = len(change.progress or b"") + len(change.asked or b"")
    assert merged.size == sum(len(message.body) for message in merged.messages) + state
    # One that is told of a row from before is the later one, as a whole.
    earlier = attrs.evolve(changed, changed=(attrs.evolve(change, due=3.0, progress=b"earlier", asked=None),))
    both = merge(earlier, changed)
    assert (both.changed, both.size) == ((change,), state)


def test_commands_are_consumed_in_order_and_the_later_task_is_the_last() -> None:
    hand = Hand(shape("a -> b", "b -> c"))
    first, second = hand.finish("a"), hand.finish("b")
    first, then = attrs.evolve(first, consumed=(1, 2), task="one"), attrs.evolve(second, consumed=(3,), task="two")
    assert (merge(first, then).consumed, merge(first, then).task) == ((1, 2, 3), "two")
    assert (merge(first, second).consumed, merge(first, second).task) == ((1, 2), "one")
    assert merge(attrs.evolve(first, task=None), then).task == "two"


def test_a_round_that_fired_where_it_was_opened_is_planned() -> None:
    hand = Hand(shape("a -> j", "a -> b", "j -> e", "b -> e", joins=["j"]))
    first = hand.finish("a", 1)
    assert [row.state for row in first.activations if row.node == "j"] == ["buffered"]
    merged = merge(first, hand.finish("b", 2))
    (row,) = (row for row in merged.activations if row.node == "j")
    assert (row.state, row.id) == ("planned", hand.live("j")[0].id)
    assert merged.fired == ()


def test_of_a_variable_only_what_its_newest_version_needs_is_kept() -> None:
    hand = Hand(shape("a -> a", variables={"log": "append"}))
    deltas = [
        hand.finish("a", None, set={"x": 1, "log": "p"}),
        hand.finish("a", None, set={"x": 2}),
        hand.finish("a", None, set={"x": 3, "log": "q"}),
    ]
    merged = reduce(merge, deltas)
    assert [(row.key, row.kind, row.body) for row in merged.variables] == [
        ("log", "full", b"[]"),
        ("log", "append", b'"p"'),
        ("x", "full", b"3"),
        ("log", "append", b'"q"'),
    ]
    bodies = [row.body for row in merged.messages] + [row.body for row in merged.variables]
    assert merged.size == sum(map(len, bodies))


def test_a_failure_inside_is_told_of_the_row_itself() -> None:
    hand = Hand(shape("a -> b", "a -> c"))
    planned = hand.finish("a")
    merged = merge(planned, hand.fail("b"))
    assert merged.changed == ()
    assert [(row.node, row.state, row.attempts) for row in merged.activations] == [
        ("b", "failed", 1),
        ("c", "planned", 0),
    ]
