"""The survey's exit: the report, as Markdown and as JSON. It holds no times, ids or absolute paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinyllm import NodeContext, node

SHOWN = 20
BAR = 40


@node(effects=True)
def write(report: dict[str, Any], context: NodeContext) -> str:
    """Write `report.md` and `report.json` into the directory that the variable `out` names; return where they are."""
    out = Path(context.variables.get("out", "survey-report")).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "report.json", json.dumps(report, indent=1, sort_keys=True) + "\n")
    replace(out / "report.md", markdown(report))
    return f"{report['totals']['files']:,} files by {report['ranking']}: {out / 'report.md'}"


def replace(path: Path, text: str) -> None:
    """Write `path` whole or not at all: a kill between two lines leaves the old file."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def markdown(report: dict[str, Any]) -> str:
    totals, ranking = report["totals"], report["ranking"]
    top = report["files"][:SHOWN]
    lines = [
        f"# Survey of {totals['files']:,} Python files",
        "",
        *table(["", "total"], [(name, f"{count:,}") for name, count in totals.items()]),
        "",
        f"## Files by {ranking}",
        "",
        "```text",
        *chart([(file["path"], file["score"]) for file in top]),
        "```",
        "",
        "## The most complex functions",
        "",
        *table(
            ["function", "in", "complexity"],
            [(f"`{f['name']}`", f"{f['path']}:{f['line']}", f["complexity"]) for f in report["hardest"]],
        ),
        "",
        "## The most imported modules",
        "",
        *table(["module", "files"], [(f"`{name}`", f"{count:,}") for name, count in report["imported"]]),
        "",
        "## Files without a measure",
        "",
        *table(["file", "reason"], [(file["path"], file["reason"]) for file in report["broken"]]),
    ]
    return "\n".join(lines) + "\n"


def chart(rows: list[tuple[str, int]]) -> list[str]:
    """A bar for each row, the longest `BAR` characters long."""
    longest = max((score for _, score in rows), default=0) or 1
    width = max((len(name) for name, _ in rows), default=0)
    digits = max((len(f"{score:,}") for _, score in rows), default=0)
    return [
        f"{name:<{width}}  {score:>{digits},}  {'█' * round(BAR * score / longest)}".rstrip() for name, score in rows
    ]


def table(header: list[str], rows: Iterable[tuple[object, ...]]) -> list[str]:
    body = ["| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [f"| {' | '.join(header)} |", "|" + " --- |" * len(header), *body]
