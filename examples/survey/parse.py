"""The survey's work: parse each file of a batch and measure it. Runs in worker processes."""

from __future__ import annotations

import ast
import os
import warnings
from pathlib import Path
from typing import Any

from tinyllm import node

Functions = (ast.FunctionDef, ast.AsyncFunctionDef)
Decisions = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)


@node
def parse(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch's `number`, and as `files` what `measure_file` says of each."""
    bear_witness(batch)
    return {"number": batch["number"], "files": [measure_file(Path(batch["root"]), path) for path in batch["files"]]}


def bear_witness(batch: dict[str, Any]) -> None:
    """Append a line to the file that $SURVEY_WITNESS names: a record of what ran that tinyllm has no part in."""
    if path := os.environ.get("SURVEY_WITNESS"):
        witness = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(witness, f"{batch['number']} {len(batch['files'])}\n".encode())  # one write: lines never mix
        finally:
            os.close(witness)


def measure_file(root: Path, path: str) -> dict[str, Any]:
    """The file's `path`, its number of `lines` and its `measure`; or, if it does not parse, `path` and `reason`."""
    try:
        source = (root / path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old code's bad escapes are no business of a survey
            tree = ast.parse(source)
    except SyntaxError as error:
        return {"path": path, "reason": f"does not parse: {error.msg}"}
    except OSError as error:
        return {"path": path, "reason": f"cannot be read: {error.strerror}"}
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested deeper than the parser goes
        return {"path": path, "reason": f"does not parse: {type(error).__name__}"}
    return {"path": path, "lines": len(source.splitlines()), **measure(tree)}


def measure(tree: ast.AST) -> dict[str, Any]:
    """How many `functions` and `classes`; `imports` (names, no relative ones), `complexity` and `hardest`.

    A function's cyclomatic complexity is 1 and 1 for each decision in it, those in functions inside it not counted.
    The file's is the sum over its functions, and its decisions outside of them. `hardest` is the function of the
    highest complexity: `{"name", "line", "complexity"}`, or None.
    """
    functions: list[dict[str, Any]] = []
    imports: set[str] = set()
    classes = outside = 0
    todo: list[tuple[ast.AST, dict[str, Any] | None]] = [(tree, None)]
    while todo:  # not recursive: generated code nests deeper than Python's stack
        at, function = todo.pop()
        if isinstance(at, Functions):
            function = {"name": at.name, "line": at.lineno, "complexity": 1}
            functions.append(function)
        elif isinstance(at, ast.ClassDef):
            classes += 1
        elif isinstance(at, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in at.names)
        elif isinstance(at, ast.ImportFrom) and at.module and not at.level:
            imports.add(at.module.partition(".")[0])
        elif taken := decisions(at):
            if function is None:
                outside += taken
            else:
                function["complexity"] += taken
        todo.extend((child, function) for child in ast.iter_child_nodes(at))
    return {
        "functions": len(functions),
        "classes": classes,
        "imports": sorted(imports),
        "complexity": outside + sum(f["complexity"] for f in functions),
        "hardest": max(functions, key=lambda f: (f["complexity"], -f["line"]), default=None),
    }


def decisions(at: ast.AST) -> int:
    """How many ways `at` adds to those through the code around it."""
    if isinstance(at, ast.BoolOp):
        return len(at.values) - 1
    if isinstance(at, ast.comprehension):
        return 1 + len(at.ifs)
    return int(isinstance(at, Decisions))
