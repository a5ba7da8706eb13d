"""What the README and the docs show is what happens: every block of theirs is run here.

A ```console block is typed, line by line after `$`, and must print what stands below, in which `...` stands for
anything; what ends in ` &` goes on beside the rest of its page, which has to end it. A ```python block is run. A block
under a `<!-- file: NAME -->` line is that file. ```sh is for what is typed in a clone; its `make` targets are checked.
One directory serves a whole page. A ```{name} block is a directive: the docs are built here too, as `make docs` builds
them, so that `make test` finds what would break them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import attrs
import click
import pytest

import tinyllm
from tinyllm import (
    CheckpointManager,
    CheckpointStorage,
    ExecutionContext,
    Executor,
    GraphBuilder,
    NodeContext,
    Supervisor,
    load_graph,
    testing,
)
from tinyllm.actors.events import Event
from tinyllm.cli.main import cli
from tinyllm.cli.main import graph as graph_commands
from tinyllm.graph.conditions import FIELDS
from tinyllm.graph.evaluate import FUNCTIONS, METHODS
from tinyllm.supervisor.status import Status, WorkerStatus

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Block(NamedTuple):
    line: int
    language: str
    file: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    pattern = re.compile(r"(?:^<!-- file: (\S+) -->\n)?^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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


def environment(page: Path) -> dict[str, str]:
    return {
        "HOME": str(page),
        "PYTHONPATH": str(ROOT),  # the code beside these pages, also where the environment is another clone's
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }


def run(command: list[str] | str, page: Path) -> str:
    shell = isinstance(command, str)
    if isinstance(command, str) and "--kill-after" in command:
        command = f"exec {command}"  # shells differ in what they say of a child that was killed
    finished = subprocess.run(
        command,
        shell=shell,
        cwd=page,
        env=environment(page),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed = finished.returncode == -signal.SIGKILL
    assert killed or finished.returncode == 0, f"{command}: exit {finished.returncode}\n{finished.stdout}"
    return finished.stdout.strip() + ("\nKilled" if killed else "")


@contextmanager
def beside(command: str, page: Path) -> Iterator[None]:
    """Runs beside the block, at the end of which it must have ended, or end now, by itself and well."""
    process = subprocess.Popen(
        f"exec {command}", shell=True, cwd=page, env=environment(page), stdout=subprocess.DEVNULL
    )
    with process:
        try:
            yield
            assert process.wait(timeout=20) == 0, f"{command}: exit {process.returncode}"
        finally:
            process.kill()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).with_suffix("").as_posix().lower())
def test_page(page: Path, tmp_path: Path) -> None:
    with ExitStack() as behind:
        check_page(page, tmp_path, behind)


def check_page(page: Path, tmp_path: Path, behind: ExitStack) -> None:
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
                if command.endswith(" &"):
                    behind.enter_context(beside(command.removesuffix(" &"), tmp_path))
                    continue
                printed = run(command, tmp_path)
                assert fits(wanted, printed.strip()), f"{where}: $ {command}\n{printed}\n-- wanted --\n{wanted}"
        elif not block.language.startswith("{"):
            assert block.language in ("sh", "text"), f"{where}: nothing checks a {block.language!r} block"
            assert set(re.findall(r"\bmake ([a-z]+)", block.text)) <= TARGETS, where
    for graph in tmp_path.glob("*.yaml"):
        assert load_graph(graph).nodes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).with_suffix("").as_posix().lower())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# -- the built docs --------------------------------------------------------------------------------------------


def build(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *options, str(source), str(target)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(DOCS / "_ext")])}
    return subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All that the built reference has an entry for; the build must not warn."""
    target = tmp_path_factory.mktemp("docs")
    built = build(DOCS, target)
    assert built.returncode == 0, built.stdout
    inventory = (target / "objects.inv").read_bytes().split(b"\n", 4)[4]  # four lines of heading, then zlib's
    return set(re.findall(r"^(.+?) \w+:\w+ ", zlib.decompress(inventory).decode(), re.MULTILINE))


@pytest.mark.timeout(240)  # about ten seconds on a machine that does nothing else
def test_the_reference_has_every_name(entries: set[str]) -> None:
    public = {f"tinyllm.{name}": getattr(tinyllm, name) for name in tinyllm.__all__ if name != "__version__"}
    public |= {f"tinyllm.actors.events.{each.__name__}": each for each in get_args(Event)}
    names = {*public, *(f"tinyllm.testing.{name}" for name in testing.__all__)}
    public |= {f"{each.__module__}.{each.__name__}": each for each in (Status, WorkerStatus)}
    for name, each in public.items():
        if isinstance(each, type) and attrs.has(each):
            names |= {f"{name}.{field.alias}" for field in attrs.fields(each)}  # `state` for `_state`
    for each in (
        CheckpointManager,
        CheckpointStorage,
        ExecutionContext,
        Executor,
        GraphBuilder,
        NodeContext,
        Supervisor,
    ):
        names |= {f"tinyllm.{each.__name__}.{name}" for name in vars(each) if not name.startswith("_")}
    commands = {name: command for name, command in cli.commands.items() if command is not graph_commands}
    commands |= {f"graph-{n}": command for n, command in graph_commands.commands.items() if n not in commands}
    for name, command in commands.items():
        options = [option for option in command.params if isinstance(option, click.Option)]
        names |= {f"tinyllm-{name}.{text}" for option in options for text in option.opts}
    assert sorted(names - entries) == []


def test_the_reference_has_all_of_a_condition() -> None:
    page = (DOCS / "reference" / "conditions.md").read_text(encoding="utf-8")
    assert [name for name in (*FIELDS, *FUNCTIONS, *METHODS) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("said", "instead", "fault"),
    [
        ("for_each: whether", "# ", "is no `key: sentence`"),
        ("weight: nothing yet\n", "", "an edge takes weight: say here what that means"),
        ("weight: nothing yet", "weight: nothing yet\nheight: nor this", "an edge takes no height"),
        ("```{graph-keys} EDGE", "```{graph-keys} HEDGE", "the schema has no keys 'HEDGE'"),
        ("```{graph-keys} EDGE", "```text", "no page has a `graph-keys` block for EDGE"),
    ],
)
def test_a_key_of_graph_files_and_its_sentence_need_each_other(
    said: str, instead: str, fault: str, tmp_path: Path
) -> None:
    page = (DOCS / "reference" / "graph-files.md").read_text(encoding="utf-8")
    assert said in page
    (tmp_path / "index.md").write_text(page.replace(said, instead), encoding="utf-8")
    built = build(tmp_path, tmp_path / "built", "-C", "-D", "extensions=myst_parser,graph_keys", "-b", "dummy")
    assert built.returncode != 0
    assert fault in built.stdout


def test_the_checks_of_this_file_can_fail() -> None:
    assert fits("kept ... steps\n...\nKilled", "kept 3 steps\nKilled")
    assert fits("kept ... steps\n...\nKilled", "kept 3 steps\nand\nso on\nKilled")
    assert not fits("kept ... steps", "kept 3 step")
    assert not fits("kept ... steps", "kept 3\n4 steps")
    assert not fits("", "more")
    assert list(commands("$ a \\\n  b\nout\n$ c\n")) == [("a \\\n  b", "out"), ("c", "")]
