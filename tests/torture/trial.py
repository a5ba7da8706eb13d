"""What all trials have in common: a seed, a number of runs that can each be made again alone, and a way to fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

LOOPS = ("asyncio", "trio")

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""The folder, if there is one, where files lie whose disk is not what is tried."""


class Violation(Exception):
    """A promise was broken."""


@attrs.frozen
class Task:
    """What a trial is to do. All that it makes lies in `folder`."""

    folder: Path
    seed: int
    runs: int
    only: int | None = None
    """Only the run of this number."""
    plant: str | None = None
    """A bug to begin with: a function of tests/torture/plants.py."""

    def plant_it(self) -> None:
        """In this process, for good."""
        if self.plant is not None:
            getattr(importlib.import_module("tests.torture.plants"), self.plant)()

    _under_way: list[int] = attrs.field(factory=list, init=False)

    def numbers(self) -> Iterator[int]:
        """Which runs to make, where there are as many as asked for."""
        for number in range(self.runs) if self.only is None else [self.only]:
            self.begin(number, number)
            yield number

    def begin(self, number: int, done: int) -> None:
        """Run `number` begins; `done` of all that is to be done are."""
        self._under_way[:] = [number]
        if sys.stderr.isatty() and done % 10 == 0:
            print(f"\r{done:,} of {self.runs:,} ", end="", file=sys.stderr, flush=True)

    @property
    def under_way(self) -> int:
        """The run that a violation is about."""
        return self._under_way[0] if self._under_way else 0


@attrs.frozen
class Trial:
    name: str
    about: str
    runs: int
    """In `make torture`, all of which takes less than 15 minutes."""
    long: int
    """In `make torture-long`."""
    run: Callable[[Task], str]
    """Does the task, and says what it saw.

    :raises Violation: a promise was broken.
    """
    on_disk: bool = False
    """How long a disk takes belongs to what is tried. (Else its files lie where that is quickest.)"""
