"""Graphs to kill. Their nodes bear witness, and return what they say there: the store can be held against it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable

from tests.torture.witness import witnessed, write
from tinyllm import Graph, GraphBuilder, NodeContext, Retry

BLOCKED = 0.06
"""Seconds for which a node computes without once giving the loop back."""


def perhaps_die(context: NodeContext) -> None:
    """Kill this process once, in the node that is the n-th to start, if the variable `kill` says so.

    `kill` is `{"at": n, "armed": a file that is removed then}`.
    """
    kill = context.variables.get("kill")
    if kill is None or not os.path.exists(kill["armed"]):
        return
    with open(context.variables["witness"], encoding="ascii") as file:
        started = sum(line.startswith("start") for line in file)
    if started == kill["at"]:
        os.unlink(kill["armed"])
        os.kill(os.getpid(), signal.SIGKILL)


def compute() -> None:
    end = time.perf_counter() + BLOCKED
    while time.perf_counter() < end:
        pass


def blocking(name: str) -> Callable[[int, NodeContext], Awaitable[str]]:
    async def work(value: int, context: NodeContext) -> str:
        key = f"{name} {value}"
        with witnessed(context, key):
            perhaps_die(context)
            compute()
        return key

    work.__name__ = name
    return work


async def numbers(task: str) -> list[int]:
    return list(range(int(task)))


async def joined(values: list[str]) -> str:
    return f"{len(values)}: {', '.join(sorted(values))}"


def blocking_branches() -> Graph:
    """One node, then nine different nodes that block the loop, then a join."""

    async def first(task: str) -> int:
        return int(task)

    builder = GraphBuilder("branches").node(joined, join="all")
    for number in range(9):
        builder.chain(first, work := blocking(f"branch{number}"), joined)
        builder.node(work)
    return builder.build()


def blocking_items() -> Graph:
    """One node that blocks the loop, for each of nine items."""
    work = blocking("work")
    return GraphBuilder("items").edge(numbers, work, for_each=True).edge(work, joined).node(joined, join="all").build()


def chain() -> Graph:
    """Steps one after the other, as many as the task says: a node that leads to itself."""

    async def step(value: int | str, context: NodeContext) -> int:
        number = int(value) - 1
        with witnessed(context, str(number)):
            perhaps_die(context)
        return number

    async def last(value: int) -> str:
        return "done"

    return (
        GraphBuilder("chain", allow_cycles=True)
        .entry(step)
        .edge(step, step, when="structured > 0")
        .edge(step, last, when="structured == 0")
        .build()
    )


def items() -> Graph:
    """A node that waits for nothing, for each item."""

    async def work(value: int, context: NodeContext) -> str:
        with witnessed(context, str(value)):
            perhaps_die(context)
        return str(value)

    return GraphBuilder("items").edge(numbers, work, for_each=True).edge(work, joined).node(joined, join="all").build()


def effects() -> Graph:
    """For each item a cause, and then an effect."""

    async def cause(value: int) -> str:
        return f"cause {value}"

    async def effect(value: str, context: NodeContext) -> str:
        write(context, "start", value)
        perhaps_die(context)
        return value.replace("cause", "effect")

    return (
        GraphBuilder("effects")
        .edge(numbers, cause, for_each=True)
        .chain(cause, effect, joined)
        .node(effect, effects=True)
        .node(joined, join="all")
        .build()
    )


def hold_on(fifo: str) -> str:
    """Runs in a worker process: kill the process that it works for, and then work on, with `fifo` open."""
    file = os.open(fifo, os.O_WRONLY)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(20)
    os.write(file, b"still working")
    return fifo


def work_on(fifo: str) -> str:
    """Runs in a worker process: open `fifo`, and see whether that is the end of it."""
    os.close(os.open(fifo, os.O_WRONLY))
    time.sleep(0.3)
    return "done"


def in_worker() -> Graph:
    return GraphBuilder("worker").node(hold_on, process=True).build()


def die_once(context: NodeContext) -> None:
    """Kill this process, here, the first time."""
    kill = context.variables["kill"]
    if os.path.exists(kill["armed"]):
        os.unlink(kill["armed"])
        os.kill(os.getpid(), signal.SIGKILL)


def saving() -> Graph:
    """Goes through five pages, and dies as soon as it was told that the third is saved."""

    async def pages(task: str, context: NodeContext) -> str:
        done = context.progress or 0
        for page in range(done + 1, int(task) + 1):
            write(context, "start", f"page {page}")
            await context.save_progress(page)
            if page == 3:
                die_once(context)
        return f"{task} pages"

    return GraphBuilder("saving").node(pages).build()


def trying() -> Graph:
    """Fails twice, and dies in its second attempt."""

    async def work(task: str, context: NodeContext) -> str:
        write(context, "start", f"attempt {context.attempt}")
        if context.attempt == 2:
            die_once(context)
        if context.attempt < 3:
            raise ConnectionError(f"attempt {context.attempt}")
        return "done"

    # Long enough for the commit of a failed attempt, also of `async`, which does not wait for it.
    return GraphBuilder("trying").node(work, retry=Retry(max_attempts=3, initial=0.5)).build()


def asking() -> Graph:
    """Asks, and dies the first time it has an answer."""

    async def ask(task: str, context: NodeContext) -> str:
        write(context, "start", "ask")
        answer = await context.ask("and?", schema=str)
        die_once(context)
        return f"{task}: {answer}"

    return GraphBuilder("asking").node(ask).build()
