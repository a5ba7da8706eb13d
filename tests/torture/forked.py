"""Processes that start in milliseconds: forked from one that has imported everything, and opened and started nothing.

`Nursery` starts them; run as a program, this is the process that they are forked from.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[2]

WARM = (
    "anyio.to_process",
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "sqlite_utils",
    "tinyllm.core.executor",
    "tests.torture.plants",
    "tests.torture.races",
    "tests.torture.small",
    "tests.torture.zombies",
)
"""What is imported before anything is forked, with all that these import: what a process of ours imports anyhow."""


def named(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class Forked:
    """A process in a session of its own. `stdout` is what it says there."""

    def __init__(self, nursery: Nursery, pid: int, stdout: BinaryIO) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._nursery = nursery

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it has not ended."""
        self.kill()
        self.wait()
        self.stdout.close()

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)  # nobody else has this id now: it is reaped only in `wait`

    def wait(self) -> int:
        """Its exit code, or, negative, the signal that ended it; as `subprocess` has it."""
        if self.returncode is None:
            self.returncode = int(self._nursery.ask({"reap": self.pid}))
        return self.returncode


class Nursery:
    """Starts processes from `with` to its end."""

    def __enter__(self) -> Nursery:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._answers = self._socket.makefile("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def start(self, place: str, given: Any, log: Path) -> Forked:
        """A process that calls the function at `place` (`module:function`) with `given`, which goes there as JSON, and
        ends with exit code 0 if that returns. Its standard error is appended to `log`."""
        reading, writing = os.pipe()
        errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            pid = int(self.ask({"call": place, "given": given}, [writing, errors]))
        finally:
            os.close(writing)
            os.close(errors)
        return Forked(self, pid, open(reading, "rb", buffering=0))

    def ask(self, request: dict[str, Any], files: list[int] | None = None) -> bytes:
        socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], files or [])
        return self._answers.readline()


def serve(asked: socket.socket) -> None:
    while True:
        request, files, _, _ = socket.recv_fds(asked, 1 << 16, 2)
        while request and not request.endswith(b"\n"):
            request += asked.recv(1 << 16)
        match json.loads(request or b"null"):
            case None:
                return
            case {"reap": pid}:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            case {"call": place, "given": given}:
                answer = os.fork()
                if answer == 0:
                    asked.close()
                    live(place, given, *files)
                for file in files:
                    os.close(file)
        asked.sendall(b"%d\n" % answer)


def live(place: str, given: Any, stdout: int, stderr: int) -> None:
    """Be the process that was asked for, and end."""
    code = 1
    try:
        os.setsid()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.close(stdout)
        os.close(stderr)
        named(place)(given)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for module in WARM:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))
