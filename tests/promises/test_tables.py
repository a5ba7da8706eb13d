"""The tables of what is promised and which tests show it name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
TABLES = sorted(HERE.glob("*.md"))


@cache
def functions_of(file: str) -> frozenset[str]:
    """The names of the test functions of a module; none where there is no such file."""
    path = TESTS / file
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return frozenset(each.name for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


def rows(text: str) -> list[tuple[str, list[str]]]:
    """(what is promised, the tests that are named for it), in the order of the page."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    cells = [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines]
    return [(promise, re.findall(r"`([^`]+)`", tests)) for promise, tests in cells if tests != "shown by"]


def faults(text: str) -> list[str]:
    """Promises without a test, and tests that do not exist."""
    found = [f"nothing shows: {promise}" for promise, named in rows(text) if not named]
    for promise, named in rows(text):
        for name in named:
            file, _, function = name.partition("::")
            if not function.startswith("test_") or function not in functions_of(file):
                found.append(f"there is no test {name}, which is to show: {promise}")
    return found


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.stem)
def test_every_test_that_a_table_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(rows(text)) > 30
    assert faults(text) == []


def test_the_check_can_fail() -> None:
    head = "| what holds | shown by |\n| --- | --- |\n"
    good = "promises/test_tables.py::test_the_check_can_fail"
    assert faults(f"{head}| it works | `{good}` |\n") == []
    assert faults(f"{head}| it works |  |\n") == ["nothing shows: it works"]
    for bad in (good + "_not", "promises/test_tables.py::faults", "promises/test_none.py::test_x", "test_x"):
        assert faults(f"{head}| it works | `{bad}` |\n") == [f"there is no test {bad}, which is to show: it works"]
