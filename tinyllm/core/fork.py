"""The first delta of a fork: the parent's frontier at a checkpoint, begun anew, and changed variables."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tinyllm.storage.contract import Delta, Marks, Snapshot, VariableRow, sum_of_changes


def fork_delta(snapshot: Snapshot, variables: Mapping[str, bytes]) -> Delta:
    """What a trace owns when it is forked from `snapshot`; the rest it shares.

    Its rows continue the parent's numbers: what is below the parent's marks is the parent's. Causes are the same: what
    is ordered by them is as it was in the parent, and with the fork's own id they make ids of its own.
    """
    marks, counts = snapshot.marks, snapshot.counts
    seqs = {row.seq: marks.activation + at for at, row in enumerate(snapshot.frontier, start=1)}
    activations = tuple(
        attrs.evolve(
            row,
            seq=seqs[row.seq],
            state="buffered" if row.state == "buffered" else "planned",
            attempts=0,
            error=None,
            tries=0,
            due=None,
            progress=None,
            asked=None,
        )
        for row in snapshot.frontier
    )
    arrivals = tuple(
        attrs.evolve(row, seq=marks.arrival + at, activation=seqs[row.activation])
        for at, row in enumerate(snapshot.arrivals, start=1)
    )
    changed = tuple(
        VariableRow(marks.variable + at, key, "full", marks.variable + at, body)
        for at, (key, body) in enumerate(variables.items(), start=1)
    )
    return attrs.evolve(
        snapshot.following(),
        trace=0,
        epoch=0,
        status="running",
        error=None,
        marks=Marks(
            marks.message,
            marks.activation + len(activations),
            marks.arrival + len(arrivals),
            marks.variable + len(changed),
        ),
        counts=attrs.evolve(
            counts,
            variables=counts.variables + len(variables.keys() - snapshot.variables.keys()),
            changes=sum_of_changes({**snapshot.variables, **{row.key: (row,) for row in changed}}.values()),
        ),
        activations=activations,
        arrivals=arrivals,
        variables=changed,
        size=sum(len(row.body) for row in changed),
    )
