"""The first delta of a fork: the parent's frontier at a checkpoint, under new ids, and changed variables."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tinyllm.graph.ids import forked_id
from tinyllm.storage.contract import Delta, Marks, Snapshot, VariableRow


def fork_delta(snapshot: Snapshot, trace_id: str, variables: Mapping[str, bytes]) -> Delta:
    """What trace `trace_id` owns when it is forked from `snapshot`; the rest it shares.

    Its rows continue the parent's numbers: what is below the parent's marks is the parent's. Ids are new too, so that
    the fork's activations have keys of their own.
    """
    marks, counts = snapshot.marks, snapshot.counts
    seqs = {row.seq: marks.activation + at for at, row in enumerate(snapshot.frontier, start=1)}
    activations = tuple(
        attrs.evolve(
            row,
            seq=seqs[row.seq],
            id=row.id and forked_id(trace_id, row.id),
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
        attrs.evolve(row, seq=marks.arrival + at, activation=seqs[row.activation], id=forked_id(trace_id, row.id))
        for at, row in enumerate(snapshot.arrivals, start=1)
    )
    changed = tuple(
        VariableRow(marks.variable + at, key, "full", marks.variable + at, body)
        for at, (key, body) in enumerate(variables.items(), start=1)
    )
    return Delta(
        trace=0,
        epoch=0,
        number=0,
        rev=snapshot.rev + 1,
        step=snapshot.step,
        status="running",
        marks=Marks(
            marks.message,
            marks.activation + len(activations),
            marks.arrival + len(arrivals),
            marks.variable + len(changed),
        ),
        counts=attrs.evolve(counts, variables=counts.variables + len(variables.keys() - snapshot.variables.keys())),
        activations=activations,
        arrivals=arrivals,
        variables=changed,
        generation=snapshot.generation,
        generation_step=snapshot.generation_step,
        elapsed=snapshot.elapsed,
        tokens_in=snapshot.tokens_in,
        tokens_out=snapshot.tokens_out,
        size=sum(len(row.body) for row in changed),
    )
