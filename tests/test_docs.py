"""What the README and the docs show is what happens: every block of theirs is run here.

A ```console block is typed, line by line after `$`, and must print what stands below, in which `...` stands for
anything. A ```python block is run. A block under a `<!-- file: NAME -->` line is that file. ```sh is for what is typed
in a clone; its `make` targets are checked. One directory serves a whole page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import attrs
import pytest

import tinyllm
import tinyllm.errors
from tinyllm import (
    Edge,
    ErrorInfo,
    ExecutorConfig,
    GraphBuilder,
    Message,
    MessagePayload,
    Node,
    NodeContext,
    TaskResponse,
    load_graph,
)
from tinyllm.actors.events import Event
from tinyllm.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Block(NamedTuple):
    line: int
    language: str
    file: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    pattern = re.compile(r"(?:^<!-- file: (\S+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    source = page.read_text(encoding="utf-8")
    for match in pattern.finditer(source):
        yield Block(source[: match.start(3)].count("\n"), match[2], match[1], match[3])


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what it should print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines(keepends=True)
        end = next(number for number, line in enumerate(lines) if not line.endswith("\\\n")) + 1
        yield "".join(lines[:end]).strip(), "".join(lines[end:]).strip()


def fits(wanted: str, printed: str) -> bool:
    """Whether `printed` is `wanted`, in which `...` stands for anything in a line, or alone for any lines, or none."""
    lines = [".*".join(map(re.escape, line.split("..."))) + "\n" for line in wanted.splitlines()]
    pattern = "".join("(?:.*\n)*" if line == ".*\n" else line for line in lines)
    return re.fullmatch(pattern, printed + "\n" if printed else "") is not None


def run(command: list[str] | str, page: Path) -> str:
    environment = {
        "HOME": str(page),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }
    shell = isinstance(command, str)
    if isinstance(command, str) and "--kill-after" in command:
        command = f"exec {command}"  # shells differ in what they say of a child that was killed
    finished = subprocess.run(
        command, shell=shell, cwd=page, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed = finished.returncode == -signal.SIGKILL
    assert killed or finished.returncode == 0, f"{command}: exit {finished.returncode}\n{finished.stdout}"
    return finished.stdout.strip() + ("\nKilled" if killed else "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem.lower())
def test_page(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            script = tmp_path / "block.py"
            script.write_text(block.text, encoding="utf-8")
            print(where, run([sys.executable, str(script)], tmp_path))
        elif block.language == "console":
            for command, wanted in commands(block.text):
                printed = run(command, tmp_path)
                assert fits(wanted, printed.strip()), f"{where}: $ {command}\n{printed}\n-- wanted --\n{wanted}"
        else:
            assert block.language in ("sh", "text"), f"{where}: nothing checks a {block.language!r} block"
            assert set(re.findall(r"\bmake ([a-z]+)", block.text)) <= TARGETS, where
    for graph in tmp_path.glob("*.yaml"):
        assert load_graph(graph).nodes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem.lower())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_reference_names_everything() -> None:
    classes = [Node, Edge, ExecutorConfig, TaskResponse, Message, MessagePayload, ErrorInfo, *get_args(Event)]
    names = {field.name for each in classes for field in attrs.fields(each)}
    names |= {each.__name__ for each in get_args(Event)}
    for owner in (NodeContext, GraphBuilder):
        names |= {name for name in vars(owner) if not name.startswith("_")}
    names |= {name for command in cli.commands.values() for option in command.params for name in option.opts}
    names |= {name for name in dir(tinyllm) if name.endswith("Error") or name in vars(tinyllm.errors)}
    names -= {"questions", "total_tokens_in", "total_tokens_out"}  # nothing fills them yet
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert sorted(name for name in names if not re.search(rf"(?<!\w){name}\b", reference)) == []


def test_the_checks_of_this_file_can_fail() -> None:
    assert fits("kept ... steps\n...\nKilled", "kept 3 steps\nKilled")
    assert fits("kept ... steps\n...\nKilled", "kept 3 steps\nand\nso on\nKilled")
    assert not fits("kept ... steps", "kept 3 step")
    assert not fits("kept ... steps", "kept 3\n4 steps")
    assert not fits("", "more")
    assert list(commands("$ a \\\n  b\nout\n$ c\n")) == [("a \\\n  b", "out"), ("c", "")]
