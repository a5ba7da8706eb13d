"""Graph files: every fault has its line and column, and nothing that is not a graph gets through."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.core.builder import load_graph
from tinyllm.errors import Fault, InvalidGraph
from tinyllm.graph import document
from tinyllm.graph.definition import Limits, Retry

NODES = """
from tinyllm.graph.node import node

@node
def list_files(task): return []
@node
def parse(path): return path
@node
def rank(found): return found
@node(effects=True)
def log(value): return None
@node
async def fetch(url): return url
@node
def several(value): yield value
@node
def pair(a, b): return a
def plain(value): return value
"""

SURVEY = """\
id: survey
functions: [nodes.py]
nodes:
  - id: list_files
  - id: parse
    process: true
  - id: rank
    join: all
edges:
  - {from_node: list_files, to_node: parse, for_each: true}
  - {from_node: parse, to_node: rank}
"""

Faults = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "nodes.py").write_text(NODES)
    return folder


def faults_of(path: Path) -> tuple[Fault, ...]:
    with pytest.raises(InvalidGraph) as caught:
        load_graph(path)
    return caught.value.faults


@pytest.fixture
def faults(folder: Path) -> Faults:
    """The faults of a graph file, without its name: `2:5: nodes[0]: message`."""

    def check(text: str) -> list[str]:
        path = folder / "graph.yaml"
        path.write_text(text, encoding="utf-8")
        return [str(fault).removeprefix(f"{path}:") for fault in faults_of(path)]

    return check


def test_a_graph_file_becomes_a_graph(folder: Path) -> None:
    path = folder / "survey.yaml"
    path.write_text(SURVEY + "description: what it does\nvariables: {found: append}\nmetadata: {owner: [me]}\n")
    graph = load_graph(path)
    assert (graph.id, graph.version, graph.path) == ("survey", "1.0.0", str(path))
    assert list(graph.nodes) == ["list_files", "parse", "rank"]
    assert (graph.entry_points, graph.exit_points) == (("list_files",), ("rank",))
    assert graph.nodes["parse"].process
    assert graph.nodes["rank"].join == "all"
    assert [(e.from_node, e.to_node, e.for_each) for e in graph.edges] == [
        ("list_files", "parse", True),
        ("parse", "rank", False),
    ]
    assert graph.variables == {"found": "append"}
    assert graph.metadata == {"owner": ["me"]}
    assert graph.functions["parse"].call("x") == "x"
    assert repr(graph) == "<Graph survey 1.0.0: 3 nodes, 2 edges, list_files -> rank>"


def test_a_graph_file_says_what_bounds_its_traces_and_attempts(folder: Path) -> None:
    path = folder / "bounds.yaml"
    path.write_text(
        SURVEY.replace("process: true", "retry: 3\n    timeout: 90s\n    on_error: rank")
        .replace(
            "join: all",
            "join: all\n    retry:\n      {max_attempts: 5, initial: 250ms, max: 2m, factor: 3, jitter: 0}",
        )
        .replace("jitter: 0", "jitter: 0, on: [OSError]")
        + "history: window(20)\nlimits: {max_steps: 500, timeout: 1.5h, max_concurrency: 8}\nprotected: [rank]\n"
    )
    graph = load_graph(path)
    parse, rank = graph.nodes["parse"], graph.nodes["rank"]
    assert (parse.retry, parse.timeout, parse.on_error) == (Retry(max_attempts=3), 90, "rank")
    assert rank.retry == Retry(max_attempts=5, initial=0.25, max=120, factor=3, jitter=0, on=("OSError",))
    assert graph.limits == Limits(max_steps=500, timeout=5400, max_concurrency=8)
    assert (graph.history, graph.protected) == (20, ("rank",))
    for written, kept in (("all", None), ("none", 0), ("window(1)", 1)):
        path.write_text(SURVEY + f"history: {written}\n")
        assert load_graph(path).history == kept


def test_the_lifespan_of_a_graph_is_in_its_functions(tmp_path: Path) -> None:
    (tmp_path / "nodes.py").write_text(
        NODES + "from tinyllm.graph.node import lifespan\n@lifespan\nasync def clients(): yield 'a client'\n"
    )
    (tmp_path / "g.yaml").write_text(SURVEY)
    lifespan = load_graph(tmp_path / "g.yaml").lifespan
    assert lifespan is not None

    async def enter() -> Any:
        async with lifespan() as deps:
            return deps

    assert anyio.run(enter) == "a client"
    (tmp_path / "g.yaml").write_text(SURVEY.replace("id: list_files", "id: clients"))
    assert str(faults_of(tmp_path / "g.yaml")[0]).endswith("`clients` is a lifespan function, and no node function")


def test_only_id_and_nodes_are_required(folder: Path) -> None:
    path = folder / "small.yaml"
    path.write_text(
        "id: small\nnodes: [{id: start, type: entry}, {id: end, type: exit}]\nedges: [{from_node: start, to_node: end}]"
    )
    assert load_graph(str(path)).nodes["start"].type == "entry"
    path.write_text("id: one\nnodes: [{id: rank}]\nfunctions: [nodes.py]")
    assert load_graph(path).exit_points == ("rank",)


def test_every_fault_is_in_one_report_in_the_order_of_the_file(faults: Faults) -> None:
    assert faults("""\
id: on
version: 1.0
nmae: x
functions: [nodes.py]
nodes:
  - id: list_files
    jion: all
  - {id: parse, process: "yes"}
  - id: rank
    join: sometimes
    join: all
  - id: plain
  - id: orphan
    config: {call: parze, foo: 1}
edges:
  - {from_node: list_files, to_node: prase}
  - {from_node: parse, to_node: rank, condition: "len(content"}
  - {from_node: rank, to_node: parse}
  - from_node: rank
    to_node: plain
    weight: 2
  - {from_node: rank, to_node: plain}
  - {from_node: rank}
variables: {found: appendd}
entry_points: [list_files]
""") == [
        "1:5: id: must be text, not true; quote it (yes, no, on and off also mean true and false in YAML)",
        '2:10: version: must be text, not the number 1.0; quote it: "1.0"',
        "3:1: nmae: unknown key; did you mean `name`?",
        "7:5: nodes[0].jion: unknown key; did you mean `join`?",
        "8:26: nodes[1].process: must be true or false, not the text 'yes'",
        "10:11: nodes[2].join: must be `any` or `all`, not 'sometimes'",
        "11:5: nodes[2].join: duplicate key; it is in line 10 already",
        "12:9: nodes[3].id: function `plain` is not decorated with `@node` (nodes.py:18)",
        "13:5: nodes[4]: `orphan` is unreachable: no path leads to it from `list_files`; "
        "add an edge to it, or list it in `entry_points`",
        "14:20: nodes[4].config.call: there is no function `parze`; did you mean `parse`?",
        "14:27: nodes[4].config.foo: unknown key; the config of a function node takes `call`",
        "16:38: edges[0].to_node: no node has the id `prase`; did you mean `parse`?",
        "17:54: edges[1].condition: does not parse: '(' was never closed",
        "18:5: edges[2]: closes the cycle parse -> rank -> parse; if it is meant, write `allow_cycles: true`",
        "21:13: edges[3].weight: a weight has no meaning yet and must be 1, not the number 2; leave it out",
        "22:5: edges[4]: edges[3] leads from `rank` to `plain` already; write one edge, its conditions joined by `or`",
        "23:5: edges[5]: an edge needs `to_node`, which is missing",
        "24:20: variables.found: must be `last`, `append`, `add` or `merge`, not 'appendd'; did you mean `append`?",
    ]


def test_a_condition_over_several_lines_has_its_own_position(faults: Faults) -> None:
    condition = "\n".join(["    condition: |", "      (route == 'a'", "       or nope(content))"])
    head = SURVEY.replace(
        "  - {from_node: parse, to_node: rank}", "  - from_node: parse\n    to_node: rank\n" + condition
    )
    assert [fault.split(": ")[:2] for fault in faults(head)] == [["15:11", "edges[1].condition"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: is empty; a graph needs at least `id` and `nodes`"),
        ("# nothing\n", "1:1: is empty; a graph needs at least `id` and `nodes`"),
        ("~", "1:1: is empty; a graph needs at least `id` and `nodes`"),
        ("- id\n", "1:1: a graph must be a mapping with `id` and `nodes`, not a list"),
        ("hello", "1:1: a graph must be a mapping with `id` and `nodes`, not the text 'hello'"),
        ("id: x\nnodes:\n\t- id: a\n", "3:1: is not YAML: a tab cannot indent; use spaces"),
        ("id: 'x\nnodes: []\n", "1:5: is not YAML: a quoted text begins here and is never closed"),
        ("id: @x\n", "1:5: is not YAML: no value can begin with '@'; quote it"),
        (
            "id: x: y\n",
            "1:6: is not YAML: a `:` where no key can be; mend the indentation, or quote a text that holds `: `",
        ),
        (
            "id: x\nnodes: [a,\n",
            "3:1: is not YAML: did not find expected node content while parsing a flow node, which begins at line 3",
        ),
        ("id: é\x01\n", "1:6: is not YAML: control characters are not allowed (character 1)"),
        ("id: x\n---\nid: y\n", "2:1: a second document begins here; a graph file holds one"),
        ("id: x\n<<: {}\n", "2:1: merge keys (`<<`) are not read in graph files; write the keys out"),
        ("id: !!python/name:os.system x\n", "1:5: tags are not read in graph files; remove `!!python/name:os.system`"),
        ("? [a]\n: b\n", "1:3: a key must be plain text"),
        ("id: *x\n", "1:5: nothing before this is marked `&x`"),
        ("id: x\nnodes: &n [*n]\n", "2:12: an alias cannot stand inside of what it repeats"),
        ("[" * 100_000, "1:34: is nested more than 32 levels deep"),
    ],
)
def test_what_cannot_be_read_as_one_document_is_one_fault(faults: Faults, text: str, expected: str) -> None:
    assert faults(text) == [expected]


def test_an_alias_bomb_is_refused_before_it_goes_off(faults: Faults) -> None:
    bomb = "id: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    (fault,) = faults(bomb)
    assert fault.endswith("holds more than 250000 values, aliases counted as often as they are used")


def test_aliases_may_repeat_values(folder: Path) -> None:
    path = folder / "alias.yaml"
    path.write_text(
        "id: x\nfunctions: [nodes.py]\nentry_points: [parse, rank]\n"
        "nodes: [{id: parse, description: &d text}, {id: rank, description: *d}]"
    )
    assert load_graph(path).nodes["rank"].description == "text"


def test_what_yaml_guesses_stays_the_text_it_is(folder: Path) -> None:
    path = folder / "guess.yaml"
    path.write_text(
        "id: 0x10\nversion: 2025-12-19\nname: 1:30\nfunctions: [nodes.py]\nnodes: [{id: rank}]\n"
        "metadata: {a: 010, b: 12, c: 1.5, d: null, on: on, no: y}"
    )
    graph = load_graph(path)
    assert (graph.id, graph.version, graph.name) == ("0x10", "2025-12-19", "1:30")
    assert graph.metadata == {"a": "010", "b": 12, "c": 1.5, "d": None, "on": True, "no": "y"}


def test_files_that_are_no_text_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(path: Path | str) -> str:
        (fault,) = faults_of(Path(path))
        return str(fault)

    assert message(folder) == f"{folder}: is a directory; name a graph file (YAML)"
    assert message(folder / "missing.yaml") == f"{folder / 'missing.yaml'}: there is no such file"
    assert message("/dev/null") == "/dev/null: is no regular file; name a graph file (YAML)"
    assert re.search("cannot be read: .*embedded null", message("a\0b"))  # Pythons differ in the words between
    path = folder / "bytes.yaml"
    path.write_bytes("id: é\nname: ".encode() + b"\xff\n")
    assert message(path) == f"{path}:2:7: is not UTF-8 text; save it as UTF-8"
    path.write_bytes("id: x".encode("utf-16"))
    assert message(path) == f"{path}:1:1: is not UTF-8 text; save it as UTF-8"
    monkeypatch.setattr(document, "MAX_BYTES", 1 << 20)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    assert message(path) == f"{path}: is larger than 1 MiB, the most that a graph file may be"


def test_a_byte_order_mark_is_no_part_of_the_text(folder: Path) -> None:
    path = folder / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SURVEY.replace("\n", "\r\n").encode())
    assert load_graph(path).id == "survey"


def test_an_unreadable_file_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = folder / "locked.yaml"
    path.write_text(SURVEY)
    monkeypatch.setattr("builtins.open", refuse)
    (fault,) = faults_of(path)
    assert fault.message == "cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "id: list_files",
            "id: several",
            "nodes[0].id: function `several` yields; a node returns one value: make it return a list",
        ),
        (
            "id: list_files",
            "id: pair",
            "nodes[0].id: function `pair` cannot be a node (nodes.py:16): "
            "node function 'pair' must take one value and optionally `context`, not (a, b)",
        ),
        (
            "process: true",
            "process: true\n    config: {call: fetch}",
            "nodes[1].process: a worker process runs only a plain `def`, and `fetch` is `async def`",
        ),
        (
            "functions: [nodes.py]",
            "functions: [node.py]",
            "functions[0]: there is no file `node.py` in {folder}; did you mean `nodes.py`?",
        ),
        (
            "functions: [nodes.py]",
            "name: x",
            "nodes[0].id: there is no function `list_files`; name the file that defines it: `functions: [nodes.py]`",
        ),
        (
            "nodes:",
            "retry: 3\nnodes:",
            "retry: unknown key; a graph takes `id`, `version`, `name`, `description`, `metadata`,",
        ),
        ("join: all", "cache: yes", "nodes[2].cache: unknown key; a node takes `id`,"),
        ("join: all", "timeout_ms: 5", "8:5: nodes[2].timeout_ms: unknown key; did you mean `timeout`?"),
        ("join: all", "timeout: 90", "8:14: nodes[2].timeout: must be a duration such as `30s`, `5m`, `1.5h` or"),
        (
            "join: all",
            "retry: {max_attempts: 3, facter: 2}",
            "8:30: nodes[2].retry.facter: unknown key; did you mean `factor`?",
        ),
        ("join: all", "on_error: prase", "8:15: nodes[2].on_error: no node has the id `prase`; did you mean `parse`?"),
        ("nodes:", "limits: {max_step: 9}\nnodes:", "3:10: limits.max_step: unknown key; did you mean `max_steps`?"),
        ("nodes:", "protected: [rnk]\nnodes:", "3:13: protected[0]: no node has the id `rnk`; did you mean `rank`?"),
        ("[nodes.py]", "nodes.py", "functions: must be a list, not the text 'nodes.py'; write [nodes.py]"),
    ],
)
def test_functions_and_keys(faults: Faults, folder: Path, old: str, new: str, expected: str) -> None:
    assert expected.format(folder=folder) in faults(SURVEY.replace(old, new, 1))[0]


def test_a_graph_reached_through_a_link_finds_its_functions(folder: Path, tmp_path: Path) -> None:
    (folder / "linked.yaml").write_text(SURVEY)
    (tmp_path / "link.yaml").symlink_to(folder / "linked.yaml")
    assert load_graph(tmp_path / "link.yaml").functions.keys() == {"list_files", "parse", "rank"}


# -- properties ------------------------------------------------------------------------------------------------

names = st.sampled_from(["list_files", "parse", "rank", "log", "plain", "prase", "a.b"])
scalars = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | names | st.text(max_size=8)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | scalars, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    """Definitions of a chain with some shortcuts: always connected, never with a cycle."""
    count = draw(st.integers(1, 6))
    functions = ["list_files", "parse", "rank", "log"]
    nodes: list[dict[str, Any]] = [{"id": "start", "type": "entry"}]
    for index in range(1, count):
        node: dict[str, Any] = {"id": f"n{index}", "config": {"call": draw(st.sampled_from(functions))}}
        if draw(st.booleans()):
            node |= {"join": draw(st.sampled_from(["any", "all"])), "max_concurrency": draw(st.integers(1, 9))}
        if draw(st.booleans()):
            node["description"] = draw(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
        nodes.append(node)
    ids = [node["id"] for node in nodes]
    pairs = dict.fromkeys(pairwise(ids), False)
    if count > 1:
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, count - 2))
            pairs[ids[start], ids[draw(st.integers(start + 1, count - 1))]] = draw(st.booleans())
    joins = {node["id"] for node in nodes if node.get("join") == "all"}
    edges: list[dict[str, Any]] = [
        {"from_node": a, "to_node": b, "for_each": each and b not in joins} for (a, b), each in pairs.items()
    ]
    for edge in edges:
        if draw(st.booleans()):
            edge["condition"] = draw(st.sampled_from(["step > 1", "route == 'on'", "content.startswith('é: #')"]))
    definition: dict[str, Any] = {"id": "g", "functions": ["nodes.py"], "nodes": nodes, "edges": edges}
    if draw(st.booleans()):
        definition["version"] = draw(st.sampled_from(["1.0", "on", "010", "2025-12-19", "1:30", "~", "x: y"]))
        definition["variables"] = {
            name: draw(st.sampled_from(["last", "append", "add", "merge"])) for name in draw(st.sets(names))
        }
    return definition


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in paths_of(item, (*path, key)))]


@given(definition=valid(), flow=st.sampled_from([None, False, True]))
def test_a_valid_definition_survives_being_written_and_read(
    folder: Path, definition: dict[str, Any], flow: bool | None
) -> None:
    path = folder / "valid.yaml"
    path.write_text(yaml.safe_dump(definition, default_flow_style=flow, allow_unicode=True, sort_keys=False), "utf-8")
    graph = load_graph(path)
    assert graph.version == definition.get("version", "1.0.0")
    assert graph.variables == definition.get("variables", {})
    assert [n.description for n in graph.nodes.values()] == [n.get("description") for n in definition["nodes"]]
    assert [
        {"from_node": e.from_node, "to_node": e.to_node, "for_each": e.for_each}
        | ({"condition": e.condition} if e.condition else {})
        for e in graph.edges
    ] == definition["edges"]
    path.write_text(yaml.safe_dump(definition), "utf-8")
    assert load_graph(path).fingerprint == graph.fingerprint


@given(definition=valid(), data=st.data())
def test_every_fault_of_a_changed_definition_has_a_line(
    folder: Path, definition: dict[str, Any], data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(paths_of(definition)[1:]))
        part: Any = definition
        for key in way:
            part = part[key]
        if data.draw(st.booleans()):
            part[last] = data.draw(junk)
        else:
            del part[last]
    path = folder / "changed.yaml"
    text = yaml.safe_dump(definition, allow_unicode=True, default_flow_style=data.draw(st.booleans()))
    path.write_text(text, "utf-8", errors="surrogatepass")
    try:
        load_graph(path)
    except InvalidGraph as error:
        lines = text.splitlines()
        for fault in error.faults:
            assert fault.file == str(path)
            assert fault.line is not None
            assert 1 <= fault.line <= len(lines) + 1
            assert fault.column is not None


@given(text=st.text(max_size=60) | st.text(st.sampled_from("id: nodes[]{}&*!|>'\"#%@,-\n\t ~?x<"), max_size=60))
def test_any_text_gives_a_graph_or_faults(folder: Path, text: str) -> None:
    path = folder / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidGraph):
        load_graph(path)
