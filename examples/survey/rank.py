"""The survey's middle: bring the batches together, and put the files in order."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tinyllm import NodeContext, node

RANKINGS = ("complexity", "lines", "functions", "classes", "imports")


@node
def gather(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """All measures, by path; the files that do not parse apart from them."""
    files = sorted((file for batch in batches for file in batch["files"]), key=lambda file: str(file["path"]))
    return {
        "files": [file for file in files if "reason" not in file],
        "broken": [file for file in files if "reason" in file],
    }


@node
def rank(gathered: dict[str, Any], context: NodeContext) -> dict[str, Any]:
    """The report as data: totals, files from the highest to the lowest by the variable `ranking`, and more."""
    ranking = context.variables.get("ranking", "complexity")
    if ranking not in RANKINGS:
        raise ValueError(f"variable 'ranking' is {ranking!r}; it must be one of {', '.join(RANKINGS)}")
    files = [{**file, "score": score(file, ranking)} for file in gathered["files"]]
    imported = Counter(name for file in files for name in file["imports"])
    hardest = [{"path": file["path"], **file["hardest"]} for file in files if file["hardest"]]
    return {
        "ranking": ranking,
        "totals": {
            "files": len(files) + len(gathered["broken"]),
            "broken": len(gathered["broken"]),
            **{name: sum(file[name] for file in files) for name in ("lines", "functions", "classes", "complexity")},
        },
        "files": sorted(files, key=lambda file: (-file["score"], file["path"])),
        "hardest": sorted(hardest, key=lambda function: (-function["complexity"], function["path"]))[:10],
        "imported": [list(pair) for pair in sorted(imported.items(), key=lambda pair: (-pair[1], pair[0]))[:15]],
        "broken": gathered["broken"],
    }


def score(file: dict[str, Any], ranking: str) -> int:
    figure = file[ranking]
    return len(figure) if isinstance(figure, list) else int(figure)
