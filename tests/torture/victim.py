"""A process to kill: it executes one trace, and tells every event on its standard output.

`run()` starts it, kills it when asked to, and hears it out. Run as a program, this is the victim.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

from tests.torture.forked import ROOT, Forked, Nursery, named

PATIENCE = 60.0
"""Seconds after which a victim that nobody kills is taken to hang."""
ORPHAN_SECONDS = 10
"""How long a worker process may outlive the process that it worked for."""


@attrs.frozen(kw_only=True)
class Order:
    """What the victim does. `graph` and `plant` (a bug to begin with) name a function: `module:function`."""

    graph: str
    task: Any
    folder: str
    """Its store is in there, and what it has to say on standard error."""
    trace_id: str = "t"
    backend: str = "asyncio"
    variables: dict[str, Any] = attrs.field(factory=dict)
    config: dict[str, Any] = attrs.field(factory=dict)
    plant: str | None = None

    @property
    def store(self) -> Path:
        return Path(self.folder, "store")

    @property
    def log(self) -> Path:
        return Path(self.folder, "log")


@attrs.frozen
class Kill:
    """When to kill: `seconds` after the victim has told so many events (0: after its start)."""

    seconds: float
    events: int = 0


@attrs.frozen
class Lived:
    """A victim's life: its events, with the seconds after its start at which each was heard (`at`)."""

    pid: int
    returncode: int
    hung: bool
    """Nobody wanted it dead, but it did not end."""
    seconds: float
    events: list[dict[str, Any]]

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def highest_step(self, kind: str) -> int:
        return max((event["step"] for event in self.of(kind)), default=0)


def run(order: Order, kill: Kill | None = None, nursery: Nursery | None = None) -> Lived:
    """Run a victim until it ends, or `kill` ends it. It starts as a new Python, or from the `nursery`."""
    began = time.monotonic()
    deadline, wanted = began + PATIENCE, False
    events: list[dict[str, Any]] = []
    with _started(order, nursery) as victim:
        assert victim.stdout is not None
        file, told, over, hung = victim.stdout.fileno(), b"", False, False
        while True:
            if kill is not None and len(events) >= kill.events:
                deadline, kill, wanted = time.monotonic() + kill.seconds, None, True
            if not over and not select.select([file], [], [], max(0, deadline - time.monotonic()))[0]:
                victim.kill()
                over, hung = True, not wanted
            data = os.read(file, 1 << 16)
            if not data:
                break
            *lines, told = (told + data).split(b"\n")
            events += [{"at": time.monotonic() - began, **json.loads(line)} for line in lines]
        returncode = victim.wait()
    return Lived(victim.pid, returncode, hung, time.monotonic() - began, events)


@contextmanager
def _started(order: Order, nursery: Nursery | None) -> Iterator[subprocess.Popen[bytes] | Forked]:
    order.log.parent.mkdir(parents=True, exist_ok=True)
    if nursery is not None:
        with nursery.start(f"{__name__}:live", attrs.asdict(order), order.log) as forked:
            yield forked
        return
    command = [sys.executable, "-m", __name__, json.dumps(attrs.asdict(order))]
    with (
        order.log.open("ab") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, start_new_session=True) as victim,
    ):
        yield victim


def adopt_orphans() -> None:
    """Have the worker processes of a killed victim become children of this process, which can wait for them."""
    pr_set_child_subreaper = 36
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def wait_for_group(group: int) -> int:
    """Wait until the process group has ended; returns how many processes it had.

    :raises TimeoutError: one of them does not end.
    """

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"a worker process still runs {ORPHAN_SECONDS} s after the process that it worked for")

    count = 0
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(ORPHAN_SECONDS)
    try:
        while True:
            os.waitpid(-group, 0)
            count += 1
    except ChildProcessError:
        return count
    finally:
        signal.alarm(0)


def live(given: dict[str, Any]) -> None:
    """Be the victim of the order that has those fields."""
    import anyio

    from tinyllm import Executor, ExecutorConfig

    order = Order(**given)

    def tell(event: object) -> None:
        line = json.dumps({"event": type(event).__name__, **attrs.asdict(event)})  # type: ignore[arg-type] # they are
        os.write(1, line.encode() + b"\n")  # at once: what is in a buffer dies with the process

    async def execute() -> None:
        os.write(1, b'{"event": "Opening"}\n')
        config = ExecutorConfig(**order.config)
        async with Executor(named(order.graph)(), config, order.store, on_event=tell) as executor:
            response = await executor.execute(order.task, trace_id=order.trace_id, variables=order.variables)
        os.write(1, json.dumps({"event": "Response", "content": response.content}).encode() + b"\n")

    if order.plant:
        named(order.plant)()
    anyio.run(execute, backend=order.backend)


if __name__ == "__main__":
    live(json.loads(sys.argv[1]))
