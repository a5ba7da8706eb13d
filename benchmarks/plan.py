"""What is run: each workload, and in it each variant of each system. A table, and how to read it.

The sizes of slow peers are smaller where a run of theirs would take minutes; what is compared is the cost of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

TITLES = {
    "w1": "W1: a chain of 1,000 trivial nodes, 200 bytes of state",
    "w2": "W2: a message of 1 KiB at each step",
    "w3": "W3: traces of 50 nodes at once (100 of them)",
    "w4": "W4: the newest state is loaded",
    "w5": "W5: 5 MiB of nested JSON that do not change, and a counter",
    "w6": "W6: one node, 50 in parallel, their join; 20 times",
    "w7": "W7: 10,000 traces of 10 nodes at once",
    "w8": "W8: one trace of 100,000 steps that keeps 100 checkpoints and a history of 100 messages",
    "w9": "W9: a list of 1 MiB that grows by an item at each step",
    "w10": "W10: a fan-out of 10,000",
}

FOLDERS = {
    "w1": "w1_chain",
    "w2": "w2_messages",
    "w3": "w3_many",
    "w4": "w4_load",
    "w5": "w5_big",
    "w6": "w6_fan",
    "w7": "w7_crowd",
    "w8": "w8_long",
    "w9": "w9_list",
    "w10": "w10_wide",
}

FLOOR = ("commit", "rows", "hop", "prototype", "read_decode")
"""What is measured without any engine: `floor/<name>.py`, in tinyllm's venv."""

# Each row: workload, system, modes, loops, sizes, and the sizes of `--quick` in the same order.
_TABLE: tuple[tuple[str, str, str, str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("w1", "commit", "sync", "asyncio", (1000,), (1000,)),
    ("w1", "rows", "sync", "asyncio", (10_000,), (10_000,)),
    ("w1", "hop", "none", "asyncio trio uvloop", (10_000,), (10_000,)),
    ("w1", "prototype", "none async sync", "asyncio trio uvloop", (1000,), (300,)),
    ("w1", "tinyllm", "none async sync", "asyncio trio uvloop", (1000,), (300,)),
    ("w1", "tinyllm", "memory interval", "asyncio", (1000,), (300,)),
    ("w1", "langgraph", "none exit async sync", "asyncio", (1000,), (100,)),
    ("w1", "dbos", "shipped walfull", "asyncio", (1000,), (50,)),
    ("w1", "burr", "none shipped shipped-async", "asyncio", (1000,), (100,)),
    ("w2", "tinyllm", "async", "asyncio", (250, 1000, 2500, 10_000), (50, 200, 500, 2000)),
    ("w2", "langgraph", "async", "asyncio", (250, 1000), (20, 100)),
    ("w2", "langgraph", "async-delta", "asyncio", (250, 1000, 2500), (20, 100, 200)),
    ("w2", "dbos", "shipped walfull", "asyncio", (250, 1000), (20, 50)),
    ("w2", "burr", "shipped", "asyncio", (250, 1000), (20, 100)),
    ("w3", "tinyllm", "none async sync", "asyncio", (100,), (20,)),
    ("w3", "tinyllm", "async", "trio uvloop", (100,), (20,)),
    ("w3", "langgraph", "none async sync", "asyncio", (100,), (5,)),
    ("w3", "dbos", "shipped walfull", "asyncio", (20,), (2,)),
    ("w4", "read_decode", "none", "asyncio", (2000, 10_000), (500, 2000)),
    ("w4", "tinyllm", "async", "asyncio", (2000, 10_000), (500, 2000)),
    ("w4", "langgraph", "async", "asyncio", (2000, 10_000), (500, 2000)),
    ("w4", "langgraph", "async-delta", "asyncio", (2000,), (200,)),
    ("w5", "tinyllm", "none async sync", "asyncio", (1000,), (200,)),
    ("w5", "langgraph", "none async sync", "asyncio", (20,), (3,)),
    ("w6", "tinyllm", "none async sync", "asyncio", (20,), (5,)),
    ("w6", "langgraph", "none async sync", "asyncio", (20,), (2,)),
    ("w7", "tinyllm", "async", "asyncio", (10_000,), (1000,)),
    ("w8", "tinyllm", "async", "asyncio", (100_000,), (5000,)),
    ("w9", "tinyllm", "none async", "asyncio", (1000,), (200,)),
    ("w9", "langgraph", "none async async-delta", "asyncio", (50,), (10,)),
    ("w10", "tinyllm", "none async sync", "asyncio", (10_000,), (1000,)),
    ("w10", "langgraph", "none async sync", "asyncio", (1000,), (100,)),
)


@dataclass(frozen=True)
class Variant:
    workload: str
    system: str
    mode: str
    loop: str
    n: int
    """The size of the full benchmark, by which a variant is known."""
    size: int
    """The size that is run: smaller under `--quick`."""

    @property
    def script(self) -> str:
        if self.system in FLOOR:
            return f"floor/{self.system}.py"
        return f"{FOLDERS[self.workload]}/on_{self.system}.py"

    @property
    def venv(self) -> str:
        return "tinyllm" if self.system in FLOOR else self.system

    def __str__(self) -> str:
        return f"{self.workload} {self.system} {self.mode} {self.loop} n={self.size}"


def variants(quick: bool, only: set[str]) -> list[Variant]:
    """All variants, or those of the workloads `only` names, in the order of the table."""
    return [
        Variant(workload, system, mode, loop, n, small if quick else n)
        for workload, system, modes, loops, sizes, quick_sizes in _TABLE
        if not only or workload in only
        for mode in modes.split()
        for loop in loops.split()
        for n, small in zip(sizes, quick_sizes, strict=True)
    ]
