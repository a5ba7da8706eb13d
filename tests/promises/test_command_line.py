"""The two commands that users were given, with their options as they were written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from tinyllm import TaskResponse
from tinyllm.cli.main import cli

RESUME = r"""
tinyllm graph resume <trace-id> \
  --graph graphs/my-graph.yaml \
  --storage /path/to/checkpoints \
  --log-level INFO
"""

CHECKPOINTS = r"""
tinyllm graph checkpoints \
  --graph-id my-graph \
  --trace-id trace-123 \
  --storage /path/to/checkpoints
"""

GRAPH = """\
id: my-graph
functions: [nodes.py]
nodes: [{id: node1}, {id: node2}]
edges: [{from_node: node1, to_node: node2}]
"""

NODES = """\
from pathlib import Path

from tinyllm import node


@node
def node1(task: str):
    return f"{task} > node1"


@node
def node2(value: str):
    if (Path(__file__).parent / "broken").exists():
        raise ConnectionError("node2 is broken")
    return f"{value} > node2"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With `graphs/my-graph.yaml`, and in `store` a trace `trace-123` of which `node2` has failed."""
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "my-graph.yaml").write_text(GRAPH)
    (graphs / "nodes.py").write_text(NODES)
    (graphs / "broken").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLLM_STORAGE", str(tmp_path / "not-this-one"))
    command = "tinyllm run graphs/my-graph.yaml --task Process --id trace-123 --storage store"
    assert paste(command).exit_code == 1
    (graphs / "broken").unlink()
    return tmp_path


def paste(text: str, filled_in: Mapping[str, str] | None = None) -> Result:
    """The command `text` in this process."""
    for placeholder, value in (filled_in or {}).items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    _, *words = shlex.split(text.replace("\\\n", " "))
    return CliRunner().invoke(cli, words, prog_name="tinyllm")


@pytest.mark.usefixtures("folder", "root_logging")
def test_resume_from_checkpoint() -> None:
    result = paste(RESUME, {"<trace-id>": "trace-123", "/path/to/checkpoints": "store"})
    assert (result.exit_code, result.stdout) == (0, "Process > node1 > node2\n")


@pytest.mark.usefixtures("folder", "root_logging")
def test_resume_of_an_unknown_trace_finds_no_checkpoint() -> None:
    result = paste(RESUME, {"<trace-id>": "trace-124", "/path/to/checkpoints": "store"})
    assert (result.exit_code, result.stdout) == (4, "")
    assert "no checkpoint found" in result.stderr
    assert "trace-123" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("folder")
def test_list_checkpoints() -> None:
    result = paste(CHECKPOINTS, {"/path/to/checkpoints": "store"})
    assert result.exit_code == 0
    assert "node1" in result.stdout
    assert "failed" in result.stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "left", ["", "--graph-id my-graph", "--trace-id trace-123", "--graph-id other-graph"], ids=lambda left: left or "no"
)
def test_every_filter_of_checkpoints_is_optional(left: str) -> None:
    result = paste(f"tinyllm graph checkpoints {left} --storage store")
    assert result.exit_code == 0
    assert ("node1" in result.stdout) is (left != "--graph-id other-graph")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command",
    ["resume trace-123", "run graphs/my-graph.yaml --task Process --id trace-124"],
    ids=["resume", "run"],
)
def test_json_is_the_response_by_its_field_names(command: str) -> None:
    result = paste(f"tinyllm {command} --storage store --json")
    response = json.loads(result.stdout)
    assert response.keys() == {*(field.name for field in attrs.fields(TaskResponse)), "success"}
    assert (response["content"], response["success"], response["nodes_executed"]) == (
        "Process > node1 > node2",
        True,
        2,
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("listing", ["list", "checkpoints"])
def test_a_listing_in_json_is_one_array_of_objects(listing: str) -> None:
    result = paste(f"tinyllm {listing} --storage store --json")
    first, *_ = json.loads(result.stdout)
    assert {"trace_id": "trace-123", "graph_id": "my-graph", "status": "failed", "step": 1}.items() <= first.items()
