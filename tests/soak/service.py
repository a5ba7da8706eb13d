"""A supervisor as a process of its own, and another one after it was killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from tests.soak.processes import MARK, Life, Watcher, marked

ROOT = Path(__file__).parents[2]

END_SECONDS = 10.0
"""How long a supervisor that was told to drain may take beyond its grace until this gives it up."""

STRAY_SECONDS = 1.0
"""How long after a supervisor's end one of its processes may be seen still."""


class Ended(Exception):
    """A supervisor ended that nobody had told to."""


class Service:
    """From `with` to its end there is a supervisor, and afterwards nothing of it is left.

    `log`: the file to which all of them, and their workers, write what they have to say. `plant`: a function of
    `planted.py`, which is called in the supervisor before it begins.
    """

    def __init__(self, watcher: Watcher, log: Path, options: Sequence[str], plant: str | None = None) -> None:
        self._watcher = watcher
        self._log = log
        module = ["tinyllm"] if plant is None else ["tests.soak.planted", plant]
        self._command = [sys.executable, "-m", *module, "supervise", *options]
        self.mark = secrets.token_hex(8)
        self.life: Life
        """That of the present supervisor."""

    def __enter__(self) -> Service:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.strays():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _start(self) -> None:
        # As on a user's machine, where what is imported was compiled before.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**env, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for us, and we end it
            )
        life = self._watcher.add(self._process.pid)
        assert life is not None  # until it is waited for, it is there
        self.life = life

    async def replace(self) -> None:
        """Kill the supervisor, and start the next at once."""
        self._process.kill()
        await self._wait()
        for pid in self.strays():  # one that was born just now
            self._watcher.add(pid, self.life)
        self._start()

    def check(self) -> None:
        """:raises Ended: with the end of what it said."""
        code = self._process.poll()
        if code is not None:
            raise Ended(f"the supervisor ended with code {code}:\n{self._log.read_text(errors='replace')[-2000:]}")

    async def end(self, grace: float) -> str | None:
        """Have it drain; what was wrong about how it did that."""
        while not self._watcher.workers(self.life):  # until then it may not know what a signal means
            self.check()
            await anyio.sleep(0.01)
        began = time.monotonic()
        self._process.terminate()
        with anyio.move_on_after(grace + END_SECONDS):
            code = await self._wait()
            took = time.monotonic() - began
            return None if code == 0 and took <= grace else f"told to drain, it ended with code {code} in {took:.1f} s"
        return f"told to drain, the supervisor had not ended {grace + END_SECONDS:.0f} s later"

    async def _wait(self) -> int:
        while (code := self._process.poll()) is None:
            await anyio.sleep(0.002)
        return code

    def strays(self) -> list[int]:
        """Those of its processes that live."""
        return list(marked(self.mark))

    async def left(self) -> list[int]:
        """Those that live when they have had the time to end."""
        with anyio.move_on_after(STRAY_SECONDS):
            while self.strays():
                await anyio.sleep(0.05)
        return self.strays()
