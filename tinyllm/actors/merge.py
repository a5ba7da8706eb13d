"""Two neighbouring deltas as one: what was born and died in between is never written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from tinyllm.storage.contract import ActivationRow, Delta, StateChange, VariableRow


def merge(earlier: Delta, later: Delta) -> Delta:
    """The delta that does what `earlier` and then `later` do; both are of one trace and epoch.

    Ended activations that neither delta plans are kept as ended; of a variable only the rows that its newest version
    needs are kept; a message that is not history and whose readers have all gone is dropped.
    """
    ended = set(later.ended)
    activations = _applied(_applied(earlier.activations, earlier), later)
    gone = {row.seq for row in activations if row.seq in ended}
    arrivals = (*earlier.arrivals, *later.arrivals)
    dead = [row.message for row in activations if row.seq in gone] + [
        row.message for row in arrivals if row.activation in gone
    ]
    unread = Counter(message for message in dead if message is not None)
    messages = [
        attrs.evolve(row, consumers=row.consumers - unread[row.seq]) if unread[row.seq] else row
        for row in (*earlier.messages, *later.messages)
    ]
    messages = [row for row in messages if row.history or row.consumers]
    born = {row.seq for row in earlier.activations}
    variables = _newest(earlier.variables, later.variables)
    planned = [row for row in (*activations, *later.activations) if row.seq not in gone]
    changed_later = {change.activation for change in later.changed}
    changed = [
        change
        for change in (*(c for c in earlier.changed if c.activation not in changed_later), *later.changed)
        if change.activation not in born | ended
    ]
    return attrs.evolve(
        later,
        messages=tuple(messages),
        activations=tuple(planned),
        arrivals=tuple(row for row in arrivals if row.activation not in gone),
        fired=tuple(fired for fired in (*earlier.fired, *later.fired) if fired.activation not in born | ended),
        changed=tuple(changed),
        ended=tuple(seq for seq in (*earlier.ended, *later.ended) if seq not in gone),
        variables=variables,
        steps=(*earlier.steps, *later.steps),
        task=later.task or earlier.task,
        consumed=(*earlier.consumed, *later.consumed),
        size=sum(len(row.body) for row in messages)
        + sum(len(row.body) for row in variables)
        + sum(_state_size(row) for row in planned)
        + sum(_state_size(change) for change in changed),
    )


def _applied(rows: Iterable[ActivationRow], delta: Delta) -> list[ActivationRow]:
    """`rows` with what `delta` does to them."""
    fired = {change.activation: change for change in delta.fired}
    changed = {change.activation: change for change in delta.changed}
    applied = []
    for row in rows:
        if change := fired.get(row.seq):
            row = attrs.evolve(row, id=change.id, depth=change.depth, state="planned")
        if state := changed.get(row.seq):
            row = state.applied_to(row)
        applied.append(row)
    return applied


def _state_size(row: ActivationRow | StateChange) -> int:
    return len(row.progress or b"") + len(row.asked or b"")


def _newest(earlier: tuple[VariableRow, ...], later: tuple[VariableRow, ...]) -> tuple[VariableRow, ...]:
    base = {row.key: row.base for row in (*earlier, *later)}
    return tuple(row for row in (*earlier, *later) if row.base == base[row.key])
