"""The survey of `examples/survey`, with a witness at every node, and a small input for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from tests.torture.piece import Piece
from tests.torture.witness import FILE, witnessed
from tinyllm import Graph, NodeContext, load_graph, node
from tinyllm.graph.node import NodeFunction

SURVEY = load_graph(Path(__file__).parents[2] / "examples" / "survey" / "survey.yaml")
FILES, BATCH = 60, 2
REPORTS = ("report.md", "report.json")


@node
def find(task: str, context: NodeContext) -> Any:
    with witnessed(context, "list"):
        return SURVEY.functions["find"].call(task, context)


@node
def parse(batch: dict[str, Any], context: NodeContext) -> Any:
    with witnessed(context, f"parse {batch['number']}"):
        return SURVEY.functions["parse"].call(batch)


@node
def gather(batches: list[dict[str, Any]], context: NodeContext) -> Any:
    with witnessed(context, "gather"):
        return SURVEY.functions["gather"].call(batches)


@node
def rank(gathered: dict[str, Any], context: NodeContext) -> Any:
    with witnessed(context, "rank"):
        return SURVEY.functions["rank"].call(gathered, context)


@node(effects=True)
def write(report: dict[str, Any], context: NodeContext) -> Any:
    with witnessed(context, "write"):
        return SURVEY.functions["write"].call(report, context)


def survey() -> Graph:
    functions: list[Callable[..., Any]] = [find, parse, gather, rank, write]
    return attrs.evolve(SURVEY, functions={function.__name__: NodeFunction.of(function) for function in functions})


def key(source: str, value: Any) -> str:
    """The key that the witness has of the activation that returned `value`."""
    return f"parse {value['number']}" if source == "parse" else source


def piece(folder: Path, seed: str) -> Piece:
    """Of an input that is made in `folder`."""
    make_input(folder, FILES, seed)
    batches = FILES // BATCH
    parses = {f"parse {number}" for number in range(1, batches + 1)}
    before = {"list": set[str](), "gather": {"list", *parses}, "rank": {"list", *parses, "gather"}}
    before["write"] = {*before["rank"], "rank"}
    return Piece(
        graph=f"{__name__}:survey",
        task=str(folder),
        steps=batches + 4,
        variables=lambda folder: {"batch_size": BATCH, "out": str(folder / "out"), FILE: str(folder / FILE)},
        key=key,
        causes=lambda work: before.get(work, {"list"}),
        has_effects=lambda work: work == "write",
        result=lambda folder, _: b"".join((folder / "out" / name).read_bytes() for name in REPORTS),
    )


def make_input(folder: Path, files: int, seed: str) -> None:
    """`files` Python files, in folders, of 20 to 300 lines; every twentieth does not parse."""
    rng = random.Random(seed)
    for number in range(files):
        path = folder / f"part{number % 7}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = [f"import module{rng.randrange(files)}"]
        for function in range(rng.randint(3, 40)):
            body += [f"def function{function}(x):", f"    if x > {rng.randrange(99)} and x:", "        x = -x"]
            body += [f"    return [y for y in range(x) if y % {rng.randint(2, 9)}]", ""]
        path.write_text("\n".join(body) + ("\ndef (:\n" if number % 20 == 19 else "\n"))
