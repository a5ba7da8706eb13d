"""One worker's process, from its start to the cause of its death."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tinyllm.supervisor.deaths import Cause, cause_of
from tinyllm.supervisor.messages import (
    MAX_LINE,
    Assignment,
    Beat,
    Drain,
    Freed,
    Leaving,
    Ready,
    Refused,
    ToWorker,
    Wake,
    decode,
    encode,
)
from tinyllm.supervisor.notify import VARIABLES

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
TICKS = 10
"""Into how many ticks, if they are not shorter than `TICK_SECONDS`, the time is divided that a worker may be silent:
who supervises idle workers is to have little to do."""

TERM_SECONDS = 5.0
"""How long a hung worker has to end by itself."""

START_SECONDS = 120.0
"""How long it may be silent until it is ready: its graph's modules are imported, its lifespan begins, before that."""

State = Literal["starting", "running", "draining", "stopping"]


class Life:
    """`told` is called with what the worker tells that is not about itself: that a trace was refused, or freed."""

    def __init__(
        self,
        assignment: Assignment,
        hang_seconds: float,
        *,
        became_ready: Callable[[Ready], None],
        told: Callable[[Refused | Freed], None],
    ) -> None:
        self._assignment = assignment
        self._hang_seconds = hang_seconds
        self._became_ready = became_ready
        self._told = told
        self._process: Process | None = None
        self._pipe = -1
        """Our end of its stdin. It hears of our death when this is closed."""
        self._tick = max(TICK_SECONDS, hang_seconds / TICKS)
        self._killed = 0
        """What `_killed_for_memory` said when it last lived: it may be among those that were killed since."""
        self._silent = 0
        """Ticks since it was last heard. Not seconds: while this process stands still, or the machine sleeps, it says
        nothing against a worker that it is not heard."""
        self._hung: Cause | None = None
        self._ordered = False
        self._leaving: Leaving | None = None
        self._ended = anyio.Event()
        self.owners: tuple[str, ...] = ()
        self.beat = Beat(0, 0, 0, 0)
        self.since = time.time()
        self._ready_at: float | None = None
        self.lived = 0.0
        """For how many seconds it was ready, when it has ended."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def state(self) -> State:
        if self._hung is not None:
            return "stopping"
        if self._ordered:
            return "draining"
        return "starting" if self._ready_at is None else "running"

    @property
    def leaving(self) -> Leaving | None:
        """What it said when it left of its own accord."""
        return self._leaving

    async def live(self) -> Cause | None:
        """Start the process, and see to it until it has ended; why it did, None where it was told to. Cancelling this
        kills it."""
        self._killed = _killed_for_memory()
        self._process = process = await self._start()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, process, name=f"messages of worker {process.pid}")
                watch = anyio.CancelScope()
                tasks.start_soon(self._watch, process, watch, name=f"watch over worker {process.pid}")
                await process.wait()
                watch.cancel()
                with anyio.move_on_after(TICK_SECONDS):  # what it said last; a child of its may hold the pipe open
                    await self._ended.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):  # bounded: what is killed ends
                self.kill()
                os.close(self._pipe)
                self._pipe = -1
                await process.aclose()
        if self._ready_at is not None:
            self.lived = anyio.current_time() - self._ready_at
        return self._cause(process.returncode or 0, out_of_memory=_killed_for_memory() != self._killed)

    async def _start(self) -> Process:
        env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        # -P: what lies in the working directory is not to be taken for a module of ours.
        command = [sys.executable, "-P", "-m", "tinyllm.supervisor.worker"]
        reads, self._pipe = os.pipe()
        try:
            os.set_blocking(self._pipe, False)
            self._tell(self._assignment)
            return await anyio.open_process(command, stdin=reads, stderr=None, env=env)
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reads)

    def _cause(self, returncode: int, *, out_of_memory: bool) -> Cause | None:
        if self._hung is not None:
            return self._hung
        if self._leaving is not None:
            return None if self._leaving.reason == "drained" else Cause(f"it left: {self._leaving.text}")
        if self._ordered:
            return None
        return cause_of(returncode, out_of_memory=out_of_memory)

    # -- what it is told ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        if self._ready_at is not None:
            self._tell(Wake())

    def drain(self) -> None:
        """Have it come to a durable point, and end."""
        self._ordered = True
        if not self._tell(Drain()) and self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()  # the same to it; it has not read for long

    def kill(self) -> None:
        """End it now. What it had begun is in the store as far as it was durable."""
        if self._process is not None and self._process.returncode is None:
            self._ordered = self._ordered or self._hung is None
            with suppress(ProcessLookupError):
                self._process.kill()

    def _tell(self, message: ToWorker) -> bool:
        """Without waiting: what is told is on its way before anything else happens. Whether there was room for it; a
        worker that does not read is found to hang."""
        if self._pipe < 0:
            return False
        try:
            os.write(self._pipe, encode(message))
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    # -- what it tells -----------------------------------------------------------------------------------------

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        try:
            while True:
                try:
                    line = await lines.receive_until(b"\n", MAX_LINE)
                except anyio.DelimiterNotFound:
                    logger.warning("worker %d says what is no message: more than %d bytes", process.pid, MAX_LINE)
                    lines = BufferedByteReceiveStream(process.stdout)
                    continue
                try:
                    self._hear(decode(line))
                except ValueError as error:
                    logger.warning("worker %d says what is no message (%s): %r", process.pid, error, line[:200])
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            self._ended.set()

    def _hear(self, message: Any) -> None:
        self._silent = 0
        match message:
            case Ready():
                self._ready_at = anyio.current_time()
                self.owners = message.owners
                self._became_ready(message)
            case Beat():
                self.beat = message
            case Refused() | Freed():
                self._told(message)
            case Leaving():
                self._leaving = message
            case _:
                raise ValueError("it is for a worker")

    async def _watch(self, process: Process, scope: anyio.CancelScope) -> None:
        with scope:
            hung = await self._until_it_hangs(process)
            self._hung = hung
            logger.warning("worker %d hangs: %s; it is ended", process.pid, hung.text)
            with suppress(ProcessLookupError):
                process.terminate()
                # To end by itself it has to go on; and it may hold the store's lock, which all others wait for.
                if not hung.within:
                    process.send_signal(signal.SIGCONT)
            await anyio.sleep(TERM_SECONDS)
            self.kill()

    async def _until_it_hangs(self, process: Process) -> Cause:
        """Return when the process is not heard any more; what that comes from."""
        stopped = False
        while True:
            await anyio.sleep(self._tick)
            self._silent += 1
            before, stopped = stopped, self._silent > 1 and _is_stopped(process.pid)
            if before and not stopped:  # it goes on only now, and could not be heard before
                self._silent = 0
            limit = self._hang_seconds
            if self._ready_at is None:
                limit = max(limit, START_SECONDS)
            if self._silent > limit / self._tick:
                what = "it was stopped" if stopped else "its event loop was blocked"
                return Cause(f"{what} for {limit:.0f} s", within=not stopped)
            self._killed = _killed_for_memory()


def _is_stopped(pid: int) -> bool:
    """Whether somebody stopped the process by a signal. (Where /proc does not tell, it is taken for hung.)"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory since it was booted; 0 where it does not tell."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except OSError:
        pass
    return 0
