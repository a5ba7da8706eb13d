"""The first delta of a fork: the parent's frontier at a checkpoint, under new ids, and changed variables."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tinyllm.graph.ids import forked_id
from tinyllm.storage.contract import Counts, Delta, Snapshot, VariableRow


def fork_delta(snapshot: Snapshot, trace_id: str, variables: Mapping[str, bytes]) -> Delta:
    """What trace `trace_id` owns when it is forked from `snapshot`. The rest it shares.

    Rows keep their numbers, and continue the parent's. Ids are new: the fork's activations have keys of their own.
    """
    seq = snapshot.marks.variable
    rows = [
        VariableRow(seq + offset, key, "full", seq + offset, body)
        for offset, (key, body) in enumerate(variables.items(), start=1)
    ]
    counts = snapshot.counts
    added = len(variables.keys() - snapshot.variables.keys())
    return Delta(
        trace=0,
        epoch=0,
        number=0,
        rev=snapshot.rev,
        step=snapshot.step,
        status="running",
        marks=attrs.evolve(snapshot.marks, variable=seq + len(rows)),
        counts=Counts(counts.messages, counts.frontier, counts.variables + added),
        activations=tuple(
            attrs.evolve(row, id=row.id and forked_id(trace_id, row.id), attempts=0, error=None)
            if row.state == "buffered"
            else attrs.evolve(row, id=forked_id(trace_id, row.id), state="planned", attempts=0, error=None)
            for row in snapshot.frontier
        ),
        arrivals=tuple(attrs.evolve(row, id=forked_id(trace_id, row.id)) for row in snapshot.arrivals),
        variables=tuple(rows),
        size=sum(len(row.body) for row in rows),
    )
