"""Finding functions in files: by path, without disturbing anything else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm.errors import GraphError
from tinyllm.graph.functions import Library, collect, load, locate
from tinyllm.graph.node import NodeFunction

HEAD = "from tinyllm.graph.node import node\n"


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Loading changes neither `sys.path` nor, for good, which modules are loaded."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert sys.path == path
    for name in set(sys.modules) - modules:
        if not name.startswith("tinyllm"):
            del sys.modules[name]


def write(folder: Path, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return str(folder)


def functions(folder: str, *names: str) -> Library:
    library, findings = collect(names, folder)
    assert not findings
    return library


def faults(folder: str, *names: str) -> list[str]:
    _, findings = collect(names, folder)
    assert findings
    return [str(finding.fault()) for finding in findings]


def test_decorated_functions_are_collected_and_others_remembered(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        nodes=HEAD
        + """
from functools import cache
from more import helper, marked

@node
def parse(value): return value
@node(name="other", version="1", effects=True)
async def renamed(value, context): return value
@node
@cache
def cached(value): return value
def plain(value): return value
alias = parse
class Thing: pass
@node
def bad(a, b): ...
""",
        more=HEAD + "def helper(value): return value\n@node\ndef marked(value): return value\n",
    )
    library = functions(folder, "nodes.py")
    assert library.functions.keys() == {"parse", "other", "cached"}
    other = library.functions["other"]
    assert (other.is_async, other.version, other.effects, other.wants_context) == (True, "1", True, True)
    assert library.refused == {
        "plain": "is not decorated with `@node` (nodes.py:13)",
        "marked": "is imported into nodes.py; list the file that defines it in `functions`",
        "bad": "cannot be a node (nodes.py:16): "
        "node function 'bad' must take one value and optionally `context`, not (a, b)",
    }
    assert functions(folder, "nodes.py", "more.py").functions.keys() == {"parse", "other", "cached", "marked"}


def test_a_file_is_loaded_once_until_it_changes(tmp_path: Path) -> None:
    folder = write(tmp_path, nodes=HEAD + "@node\ndef f(x): return 1\n")
    first = functions(folder, "nodes.py").functions["f"].call
    assert functions(folder, "nodes.py").functions["f"].call is first
    write(tmp_path, nodes=HEAD + "@node\ndef f(x): return 2\n")  # within the same second, and of the same size
    assert functions(folder, "nodes.py").functions["f"].call("x") == 2
    assert first("x") == 1


def test_a_broken_change_leaves_the_module_that_was_there(tmp_path: Path) -> None:
    folder = write(tmp_path, nodes=HEAD + "@node\ndef f(x): return 1\n")
    first = functions(folder, "nodes.py").functions["f"].call
    write(tmp_path, nodes="1 / 0")
    assert "ZeroDivisionError" in faults(folder, "nodes.py")[0]
    assert getattr(sys.modules[first.__module__], "f") is first  # noqa: B009 - a module has no such attribute for mypy


def test_modules_of_the_same_name_do_not_meet(tmp_path: Path) -> None:
    one = write(tmp_path / "one", nodes=HEAD + "@node\ndef f(x): return 'one'\n")
    two = write(tmp_path / "two", nodes=HEAD + "@node\ndef f(x): return 'two'\n")
    assert functions(one, "nodes.py").functions["f"].call(0) == "one"
    assert functions(two, "nodes.py").functions["f"].call(0) == "two"
    assert "nodes" not in sys.modules


def test_dataclasses_and_their_annotations_find_their_module(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEAD
    folder = write(
        tmp_path, nodes=text + "@dataclass\nclass Item:\n    next: Item | None\n@node\ndef f(x: Item): return x\n"
    )
    item: typing.Any = functions(folder, "nodes.py").functions["f"].annotation
    assert dataclasses.is_dataclass(item)
    assert typing.get_args(typing.get_type_hints(item)["next"]) == (item, type(None))


def test_siblings_are_imported_at_the_top_when_called_and_relatively(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        nodes=HEAD
        + """
import sibling_a
from . import sibling_b
from .sibling_b import VALUE
@node
def f(x):
    import sibling_c
    return sibling_a.VALUE, sibling_b.VALUE, VALUE, sibling_c.VALUE
""",
        sibling_a="import sibling_d\nVALUE = sibling_d.VALUE",
        sibling_b="VALUE = 'b'",
        sibling_c="VALUE = 'c'",
        sibling_d="VALUE = 'd'",
    )
    assert functions(folder, "nodes.py").functions["f"].call(0) == ("d", "b", "b", "c")


def test_a_sibling_that_another_folder_has_too_is_refused_not_confused(tmp_path: Path) -> None:
    nodes = HEAD + "import shared_name\n@node\ndef f(x): return shared_name.VALUE\n"
    one = write(tmp_path / "one", nodes=nodes, shared_name="VALUE = 1")
    two = write(tmp_path / "two", nodes=nodes, shared_name="VALUE = 2")
    assert functions(one, "nodes.py").functions["f"].call(0) == 1
    assert faults(two, "nodes.py") == [
        f"functions[0]: nodes.py:2 imports `shared_name`, but another `shared_name` is already loaded from "
        f"{one}/shared_name.py; write `from . import shared_name`, or rename the one beside the graph"
    ]
    write(tmp_path / "two", nodes=nodes.replace("import shared", "from . import shared"))
    assert functions(two, "nodes.py").functions["f"].call(0) == 2
    assert functions(one, "nodes.py").functions["f"].call(0) == 1


def test_what_a_file_puts_into_sys_path_stays(tmp_path: Path) -> None:
    folder = write(tmp_path, nodes="import sys\nsys.path.append('/added')\n" + HEAD)
    functions(folder, "nodes.py")
    assert sys.path.pop() == "/added"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (nodes.py:1)"),
        ("def f(:\n", "SyntaxError: invalid syntax (nodes.py:1)"),
        ("x = 'a\0b'", "source code string cannot contain null bytes"),
        (
            "\n\nimport json\njson.loads('{')\n",
            "JSONDecodeError: Expecting property name enclosed in double quotes: line 1",
        ),
        ("import helper\n", "ValueError: two lines (helper.py:2)"),
        ("raise SystemExit\n", "SystemExit (nodes.py:1)"),
        ("# coding: nothing\n", "SyntaxError: unknown encoding: nothing"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path, nodes=text, helper="\nraise ValueError('two\\nlines')\n")
    (fault,) = faults(folder, "nodes.py")
    assert fault.startswith("functions[0]: nodes.py cannot be imported: ")
    assert message in fault
    assert "\n" not in fault
    assert not collect(["nodes.py"], folder)[0].complete


def test_files_must_be_python_files_inside_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "graph", nodes=HEAD)
    write(tmp_path, outside=HEAD)
    (tmp_path / "graph" / "link.py").symlink_to(tmp_path / "outside.py")
    (tmp_path / "graph" / "data.txt").write_text("")
    (tmp_path / "graph" / "sub").mkdir()
    outside = f"is outside of the graph's folder, {folder}; move it (or the graph) there"
    assert faults(
        folder, "../outside.py", "link.py", "/etc/passwd", "node.py", "data.txt", "sub", "a\0", "./nodes.py", "nodes.py"
    ) == [
        f"functions[0]: `../outside.py` {outside}",
        f"functions[1]: `link.py` {outside}",
        f"functions[2]: `/etc/passwd` {outside}",
        f"functions[3]: there is no file `node.py` in {folder}; did you mean `nodes.py`?",
        "functions[4]: `data.txt` is not a Python file; name one that ends in .py",
        "functions[5]: `sub` is not a Python file; name one that ends in .py",
        "functions[6]: 'a\\x00' is no file name",
        "functions[8]: `nodes.py` is listed twice",
    ]
    write(tmp_path / "graph" / "sub", more=HEAD + "@node\ndef f(x): return x\n")
    assert functions(folder, "sub/more.py").functions.keys() == {"f"}


def test_two_functions_of_one_name(tmp_path: Path) -> None:
    f = "@node\ndef f(x): return x\n"
    folder = write(tmp_path, a=HEAD + f, b=HEAD + f, c=HEAD + f + "@node(name='f')\ndef g(x): return x\n")
    rename = 'rename one, or give it another name: `@node(name="...")`'
    assert faults(folder, "a.py", "b.py") == [f"functions[1]: function `f` is in both a.py and b.py; {rename}"]
    assert faults(folder, "c.py") == [f"functions[0]: function `f` is in c.py twice; {rename}"]


CLIENTS = "from tinyllm.graph.node import lifespan\n@lifespan\nasync def clients(): yield 1\n"


def test_a_graph_has_one_lifespan_function(tmp_path: Path) -> None:
    folder = write(tmp_path, a=HEAD, b=CLIENTS + "alias = clients\n", c="\n" + CLIENTS.replace("clients", "pools"))
    assert functions(folder, "a.py").lifespan is None
    library = functions(folder, "a.py", "b.py")
    assert library.lifespan is not None
    assert library.lifespan is sys.modules[library.lifespan.__module__].clients
    assert library.functions == {}
    assert faults(folder, "a.py", "b.py", "c.py") == [
        "functions[2]: `clients` (b.py:2) and `pools` (c.py:3) are both lifespan functions, and a graph has one; "
        "let one use the other"
    ]


def test_an_imported_lifespan_function_counts_where_it_is_defined(tmp_path: Path) -> None:
    folder = write(tmp_path, nodes="from . import more\nfrom .more import clients\n", more=CLIENTS)
    assert functions(folder, "more.py", "nodes.py").lifespan is not None
    assert functions(folder, "nodes.py", "more.py").lifespan is not None
    assert faults(folder, "nodes.py") == [
        "functions[0]: lifespan function `clients` is imported into nodes.py; list the file that defines it"
    ]


@pytest.mark.parametrize(
    "text", ["def f(): yield 1", "async def f(): return 1", "async def f(x): yield x", "class f: ..."]
)
def test_a_lifespan_function_is_an_async_generator_without_parameters(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, nodes=f"from tinyllm.graph.node import lifespan\n@lifespan\n{text}\n")
    assert faults(folder, "nodes.py") == [
        "functions[0]: nodes.py cannot be imported: TypeError: lifespan function 'f' must be an `async def` "
        "without parameters that yields once (nodes.py:2)"
    ]


def test_an_annotation_that_raises_is_a_fault_not_a_traceback(tmp_path: Path) -> None:
    folder = write(tmp_path, nodes="from __future__ import annotations\n" + HEAD + "@node\ndef f(x: 1 / 0): return x\n")
    assert functions(folder, "nodes.py").refused == {"f": "cannot be a node (nodes.py:3): division by zero"}


# -- worker processes ------------------------------------------------------------------------------------------

WORKER = "import sys; from tinyllm.graph.functions import load; print(load(*sys.argv[1:])('x'))"


def in_a_new_process(place: tuple[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", WORKER, *place], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_worker_process_finds_the_function_of_a_file(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        nodes=HEAD
        + """
import beside
@node(name='other')
def f(x):
    import later
    return x, beside.A, later.B, __name__
""",
        beside="A = 1",
        later="B = 2",
    )
    function = functions(folder, "nodes.py").functions["other"]
    assert locate(function) == (f"{folder}/nodes.py", "f")
    assert in_a_new_process(locate(function)) == str(function.call("x"))


def test_a_file_in_a_package_is_imported_as_what_it_is(tmp_path: Path) -> None:
    package = tmp_path / "some_package"
    write(package, __init__="", top="TOP = 1")
    folder = write(
        package / "inner",
        __init__="",
        nodes=HEAD + "import beside\nfrom ..top import TOP\n@node\ndef f(x): return x, TOP, beside.A, __name__\n",
        beside="A = 1",
    )
    function = functions(folder, "nodes.py").functions["f"]
    assert function.call("x") == ("x", 1, 1, "some_package.inner.nodes")
    assert sys.modules["some_package.inner.nodes"].f is function.call
    assert in_a_new_process(locate(function)) == str(function.call("x"))


def test_a_package_whose_name_is_taken_is_loaded_by_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "json", __init__="", nodes=HEAD + "@node\ndef f(x): return __name__\n")
    import json

    assert functions(folder, "nodes.py").functions["f"].call(0).startswith("_tinyllm_")
    assert sys.modules["json"] is json


def test_what_a_worker_process_cannot_load_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(x: object) -> object:
        return x

    def refusal(function: typing.Any) -> str:
        with pytest.raises(GraphError) as caught:
            locate(NodeFunction(name="f", call=function))
        return str(caught.value)

    remedy = "make it a function with a name of its own at the top level of that file"
    assert refusal(nested) == f"a worker process cannot load `f` from {__file__}; {remedy}"
    assert refusal(lambda x: x).endswith(remedy)
    assert refusal("".join).endswith("move it into a Python file of its own, and import it from there")
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec("def f(x): return x", vars(main))
    assert "from a shell or notebook; move it" in refusal(vars(main)["f"])
    main.__file__ = "/script.py"
    assert "from the script that is being run; move it" in refusal(vars(main)["f"])
    assert locate(NodeFunction(name="f", call=refused_nowhere)) == (__file__, "refused_nowhere")


def refused_nowhere(x: object) -> object:
    return x


def test_a_function_that_went_away_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, nodes=HEAD)
    with pytest.raises(GraphError, match=r"nodes\.py has no function `gone` any more; put it back"):
        load(f"{folder}/nodes.py", "gone")
    with pytest.raises(GraphError, match="cannot be imported: FileNotFoundError"):
        load(f"{folder}/gone.py", "f")
