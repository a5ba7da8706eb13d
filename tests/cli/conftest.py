"""What the tests of the command line share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.desk import GRAPH, NODES, Desk


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
