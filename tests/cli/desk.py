"""A small graph on disk, and the command in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs
from click.testing import CliRunner, Result

from tinyllm.cli.main import cli

GRAPH = """\
id: squares
functions: [nodes.py]
nodes:
  - {id: plan, type: function}
  - {id: work, type: function, max_concurrency: 2}
  - {id: total, type: function, join: all}
edges:
  - {from_node: plan, to_node: work, for_each: true}
  - {from_node: work, to_node: total}
"""

NODES = """\
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio

from tinyllm import Result, node

HERE = Path(__file__).parent


@node
def plan(task: str):
    return list(range(int(task or 3)))


@node
async def work(n: int):
    with open(HERE / "witness.txt", "a") as witness:
        witness.write(f"{n}\\n")
    if (HERE / "broken").exists() and n == 2:
        raise ZeroDivisionError("two is not allowed")
    if (HERE / "hold").exists() and n >= 2:  # say so, then wait until the test lets go
        print("holding", n, file=sys.stderr, flush=True)
        while (HERE / "hold").exists():
            await anyio.sleep(0.005)
    return n * n


@node
def total(values: list[int], context):
    return Result(f"the sum is {context.variables.get('base', 0) + sum(values)}", set={"count": len(values)})
"""


@attrs.frozen
class Desk:
    """A folder with a graph and a store, and commands that use both."""

    folder: Path

    @property
    def graph(self) -> Path:
        return self.folder / "graph.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def command(self, *words: str | Path, stdin: str | None = None) -> Result:
        """`tinyllm *words` in this process."""
        return CliRunner().invoke(cli, [str(word) for word in words], input=stdin, prog_name="tinyllm")

    def start(
        self, *words: str | Path, stderr: int = subprocess.PIPE, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """`tinyllm *words` in a process of its own, whose terminal is as wide as it really is."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        return subprocess.Popen(
            [sys.executable, "-m", "tinyllm", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})},
        )

    def witnessed(self) -> list[int]:
        """The inputs of every call of `work`, in order."""
        return [int(line) for line in (self.folder / "witness.txt").read_text().split()]
