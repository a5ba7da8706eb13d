"""The survey's entry: which files there are, in batches."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Any

from tinyllm import NodeContext, node

SHIPPED = Path(__file__).resolve().parent
SKIPPED = frozenset({"__pycache__", "dist-packages", "site-packages"})


@node
def find(task: str, context: NodeContext) -> list[dict[str, Any]]:
    """The files under the directory `task`, as batches `{"number", "root", "files"}` with paths relative to `root`.

    An empty task, or `stdlib`, is the standard library and the three files in `broken/`, which do not parse.
    """
    size = context.variables.get("batch_size", 20)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"variable 'batch_size' is {size!r}; it must be a number of files, at least 1")
    if task.strip() in ("", "stdlib"):
        standard = Path(sysconfig.get_path("stdlib"))
        broken = [f"broken/{path}" for path in python_files(SHIPPED / "broken")]
        found = [(standard, python_files(standard)), (SHIPPED, broken)]
    else:
        root = Path(task.strip()).expanduser().resolve()
        if not root.is_dir():
            raise ValueError(f"the task names the directory to survey, and {str(root)!r} is not a directory")
        found = [(root, python_files(root))]
    chunks = [(root, files[at : at + size]) for root, files in found for at in range(0, len(files), size)]
    return [{"number": number, "root": str(root), "files": files} for number, (root, files) in enumerate(chunks, 1)]


def python_files(root: Path) -> list[str]:
    """Every `*.py` below `root`, relative to it, sorted; installed packages and hidden directories are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file()]
    return sorted(found)
