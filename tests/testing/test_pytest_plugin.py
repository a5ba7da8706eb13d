"""The pytest plugin, in a pytest of its own that loads no other but anyio's: installed or not, it is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TESTS = """
import anyio
import pytest

from tinyllm import Executor, GraphBuilder, InMemoryCheckpointStorage

used = []


def shout(task: str) -> str:
    return task.upper()


GRAPH = GraphBuilder("g").node(shout).build()


def test_sync(memory_storage: InMemoryCheckpointStorage) -> None:
    used.append(memory_storage)
    assert Executor(GRAPH, checkpoint_storage=memory_storage).run_sync("a", trace_id="t").value == "A"
    assert Executor(GRAPH, checkpoint_storage=memory_storage).run_sync("a", trace_id="t").value == "A"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.anyio
async def test_async(memory_storage: InMemoryCheckpointStorage) -> None:
    used.append(memory_storage)
    assert await memory_storage.trace("t") is None, "each test has its own"
    async with Executor(GRAPH, checkpoint_storage=memory_storage) as executor:
        assert (await executor.execute("a", trace_id="t")).value == "A"
    assert (await memory_storage.trace("t")).status == "completed"


def test_end() -> None:
    assert len(set(used)) == 3
    assert [anyio.run(storage.traces) for storage in used] == [[], [], []], "what they held is forgotten"
"""


def run(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "tinyllm.pytest_plugin", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [*command, *arguments], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_the_store_serves_tests_on_both_loops_and_on_none(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    assert "4 passed" in run("-p", "anyio", "-W", "error", "test_it.py", cwd=tmp_path)


def test_a_pytest_that_does_not_ask_for_it_pays_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it() -> None:\n"
        "    assert 'tinyllm.pytest_plugin' in sys.modules\n"
        "    assert [name for name in sys.modules if name.startswith('tinyllm.')] == ['tinyllm.pytest_plugin']\n"
    )
    assert "1 passed" in run("test_it.py", cwd=tmp_path)


def test_the_fixture_says_what_it_is(tmp_path: Path) -> None:
    assert "memory_storage" in run("--fixtures", cwd=tmp_path)
