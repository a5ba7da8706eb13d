"""The survey example: what it measures, and that the report of a whole run says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinyllm import ExecutionError, Executor, load_graph

SURVEY = Path(__file__).parents[2] / "examples" / "survey"
FUNCTIONS = load_graph(SURVEY / "survey.yaml").functions


def call(name: str, *args: Any, **variables: Any) -> Any:
    function: Callable[..., Any] = FUNCTIONS[name].call
    context = [SimpleNamespace(variables=variables)] if FUNCTIONS[name].wants_context else []
    return function(*args, *context)


def measure(root: Path, source: str | bytes) -> dict[str, Any]:
    (root / "it.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    (measured,) = call("parse", {"number": 1, "root": str(root), "files": ["it.py"]})["files"]
    return dict(measured)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Five Python files, of which one does not parse, among what a survey leaves out."""
    files = {
        "a.py": "import os\n\n\ndef long(x):\n    return x if x else os\n",
        "b.py": "import os, sys\n",
        "deep/c.py": "class C:\n    def m(self):\n        pass\n\n    def n(self):\n        pass\n",
        "deep/bad.py": "def (:\n",
        "empty.py": "",
        "readme.txt": "no Python",
        ".hidden/h.py": "x = 1\n",
        "site-packages/p.py": "x = 1\n",
    }
    root = tmp_path / "project"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_lists_every_python_file_in_batches(project: Path) -> None:
    batches = call("find", str(project), batch_size=2)

    assert [batch["files"] for batch in batches] == [["a.py", "b.py"], ["deep/bad.py", "deep/c.py"], ["empty.py"]]
    assert [batch["number"] for batch in batches] == [1, 2, 3]
    assert {batch["root"] for batch in batches} == {str(project)}


@pytest.mark.parametrize("task", ["", "stdlib"])
def test_the_default_is_the_standard_library_and_three_files_that_do_not_parse(task: str) -> None:
    *standard, shipped = call("find", task)

    assert {"abc.py", "json/decoder.py"} <= {path for batch in standard for path in batch["files"]}
    assert not any("site-packages" in path for batch in standard for path in batch["files"])
    assert shipped["files"] == ["broken/not_utf8.py", "broken/null_byte.py", "broken/syntax_error.py"]
    assert all(file["reason"].startswith("does not parse: ") for file in call("parse", shipped)["files"])


def test_refuses_what_is_no_directory_and_no_batch_size(project: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        call("find", str(project / "a.py"))
    with pytest.raises(ValueError, match="'batch_size' is 0"):
        call("find", str(project), batch_size=0)


@pytest.mark.parametrize(
    ("source", "complexity"),
    [
        ("x = 1\n", 0),
        ("def f():\n    pass\n", 1),
        ("if a and b and c:\n    pass\n", 3),
        ("def f():\n    for x in y:\n        while x:\n            assert x\n", 4),
        ("def f():\n    try:\n        pass\n    except A:\n        pass\n    except B:\n        pass\n", 3),
        ("def f():\n    return [x for x in y if x if not x]\n", 4),
        ("def f(x):\n    match x:\n        case 1:\n            pass\n        case _:\n            pass\n", 3),
        ("def f():\n    def g():\n        return 1 if 2 else 3\n", 3),
    ],
)
def test_counts_decisions(tmp_path: Path, source: str, complexity: int) -> None:
    assert measure(tmp_path, source)["complexity"] == complexity


def test_measures_a_file(tmp_path: Path) -> None:
    source = (
        "import os.path, ast\nfrom . import b\nfrom json import c\nclass C:\n    async def m(self):\n        a or b\n"
    )

    assert measure(tmp_path, source) == {
        "path": "it.py",
        "lines": 6,
        "functions": 1,
        "classes": 1,
        "imports": ["ast", "json", "os"],
        "complexity": 2,
        "hardest": {"name": "m", "line": 5, "complexity": 2},
    }


def test_measures_what_nests_deeper_than_the_stack(tmp_path: Path) -> None:
    assert measure(tmp_path, "+".join(["1"] * 900) + "\n")["lines"] == 1
    assert "reason" in measure(tmp_path, "(" * 5000 + ")" * 5000)


def test_a_file_that_is_gone_has_a_reason(tmp_path: Path) -> None:
    (file,) = call("parse", {"number": 1, "root": str(tmp_path), "files": ["gone.py"]})["files"]

    assert file == {"path": "gone.py", "reason": "cannot be read: No such file or directory"}


def test_the_witness_gets_a_line_for_each_batch(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURVEY_WITNESS", str(tmp_path / "witness"))
    for batch in call("find", str(project), batch_size=3):
        call("parse", batch)

    assert (tmp_path / "witness").read_text() == "1 3\n2 2\n"


@pytest.mark.parametrize(
    ("ranking", "order"),
    [
        ("complexity", ["a.py", "deep/c.py", "b.py", "empty.py"]),
        ("lines", ["deep/c.py", "a.py", "b.py", "empty.py"]),
        ("imports", ["b.py", "a.py", "deep/c.py", "empty.py"]),
    ],
)
def test_ranks_by_a_variable(project: Path, ranking: str, order: list[str]) -> None:
    gathered = call("gather", [call("parse", batch) for batch in call("find", str(project), batch_size=2)])

    assert [file["path"] for file in call("rank", gathered, ranking=ranking)["files"]] == order


def test_refuses_a_ranking_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="'beauty'; it must be one of complexity, lines"):
        call("rank", {"files": [], "broken": []}, ranking="beauty")


@pytest.mark.anyio
async def test_a_whole_run_writes_the_same_report_wherever_it_runs(project: Path, tmp_path: Path) -> None:
    reports = []
    for number, size in enumerate([1, 3]):
        out = tmp_path / f"out{number}"
        async with Executor(load_graph(SURVEY / "survey.yaml")) as executor:
            response = await executor.execute(str(project), variables={"out": str(out), "batch_size": size})
        assert response.content == f"5 files by complexity: {out / 'report.md'}"
        assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
        reports.append((out / "report.md").read_text() + (out / "report.json").read_text())

    assert reports[0] == reports[1]
    assert str(tmp_path) not in reports[0]
    report = json.loads((out / "report.json").read_text())
    assert report["totals"] == {"files": 5, "broken": 1, "lines": 12, "functions": 3, "classes": 1, "complexity": 4}
    assert report["imported"] == [["os", 2], ["sys", 1]]
    assert "a.py       2  ████████████████████████████████████████" in reports[0]


@pytest.mark.anyio
async def test_a_directory_without_python_gives_an_empty_report(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    async with Executor(load_graph(SURVEY / "survey.yaml")) as executor:
        response = await executor.execute(str(tmp_path / "nothing"), variables={"out": str(tmp_path / "out")})

    assert response.content.startswith("0 files by complexity")


@pytest.mark.anyio
async def test_a_wrong_setting_fails_the_run_and_names_it(project: Path, tmp_path: Path) -> None:
    async with Executor(load_graph(SURVEY / "survey.yaml")) as executor:
        with pytest.raises(ExecutionError, match="variable 'ranking' is 'beauty'") as caught:
            await executor.execute(str(project), variables={"ranking": "beauty", "out": str(tmp_path / "out")})

    assert caught.value.node_id == "rank"
    assert not (tmp_path / "out").exists()
