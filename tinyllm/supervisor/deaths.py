"""Why workers die, and which traces are to blame for it. Pure: nothing here looks or waits.

A trace that ran when its worker died *from within* may have killed it: the process ended itself, crashed, ran out of
memory, or its event loop was blocked until the supervisor had enough. All that ran there are suspected, and executed
apart, each alone in a process: there it either dies again, which settles it, or gets past what was running then.

A worker that was killed from outside proves nothing: somebody's `kill -9` hits whatever runs. But some traces have
themselves killed in ways that look like that. So such deaths count, too, from the third on at which no step of a trace
has ended: no accident hits the same one again and again. What died without a supervisor that saw it is not counted at
all: a machine that is booted again proves nothing either.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import attrs

from tinyllm.core.deaths import Death

LIMIT = 3
"""Deaths that count, after which a trace is quarantined."""

ACCIDENTS = 2
"""Deaths from outside, one after the other at the same step, that do not count."""

KEPT = 16
"""How many deaths of a trace are remembered, the newest."""

_CRASHES = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
        signal.SIGXCPU,
        signal.SIGXFSZ,
    }
)
"""Signals that a process brings on itself."""


@attrs.frozen
class Cause:
    """Why a worker is dead. `within`: something that ran in it did that."""

    text: str
    within: bool = False


def cause_of(returncode: int, *, out_of_memory: bool) -> Cause:
    """Why a process ended that nobody told to end. `returncode`: as of `subprocess`. `out_of_memory`: the kernel killed
    something for want of memory while it lived."""
    if returncode >= 0:
        return Cause(f"it exited with code {returncode}", within=True)
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if -returncode in _CRASHES:
        return Cause(f"it crashed ({name})", within=True)
    if -returncode == signal.SIGKILL and out_of_memory:
        return Cause("it was killed for want of memory", within=True)
    return Cause(f"it was killed from outside ({name})")


def blame(deaths: Sequence[Death]) -> int:
    """How many of the deaths at which a trace ran count against it; 0: it is not suspected."""
    accidents = 0
    for death in reversed(deaths):
        if death.within or death.step != deaths[-1].step:
            break
        accidents += 1
    return sum(death.within for death in deaths) + max(0, accidents - ACCIDENTS)


def verdict(deaths: Sequence[Death]) -> str | None:
    """What is said of a trace that is to be quarantined; None if it is not."""
    if blame(deaths) < LIMIT:
        return None
    listed = "; ".join(
        f"{death.cause} (pid {death.pid}, {_beside(death.beside)}, at step {death.step})" for death in deaths
    )
    return f"{len(deaths)} workers died while they executed it: {listed}"


def _beside(others: int) -> str:
    return "alone" if not others else f"beside {others} other{'' if others == 1 else 's'}"


def remember(deaths: Sequence[Death], new: Death) -> tuple[Death, ...]:
    return (*deaths, new)[-KEPT:]
