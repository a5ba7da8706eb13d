"""A small graph on disk, and the command in this process or in one of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
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

NODES = '''\
import os
import sys
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
'''


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

    def command(self, *words: str | Path) -> Result:
        """`tinyllm *words` in this process."""
        return CliRunner().invoke(cli, [str(word) for word in words], prog_name="tinyllm")

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """`tinyllm *words` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tinyllm", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def witnessed(self) -> list[int]:
        """The inputs of every call of `work`, in order."""
        return [int(line) for line in (self.folder / "witness.txt").read_text().split()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    (tmp_path / "nodes.py").write_text(NODES)
    monkeypatch.setenv("TINYLLM_STORAGE", str(tmp_path / "store"))
    return Desk(tmp_path)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """`--log-level` sets up the root logger of the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)

