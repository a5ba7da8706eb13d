"""What a definition must keep, on plain data: the rules that files and the builder share."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.graph import schema
from tinyllm.graph.findings import Finding, near, where
from tinyllm.graph.functions import Library
from tinyllm.graph.node import NodeFunction
from tinyllm.graph.validate import check

DURATION = "must be a duration such as `30s`, `5m`, `1.5h` or `250ms`"
ATTEMPTS = "must be a whole number of attempts from 1, or a mapping with `max_attempts`"
HISTORY = "must be `all`, `none` or `window(N)` with N from 1"


def work(value: object) -> object:
    return value


def act(value: object) -> object:
    return value


LIBRARY = Library(
    functions={name: NodeFunction(name=name, call=work) for name in "abcdef"}
    | {"act": NodeFunction(name="act", call=act, effects=True)}
)


def findings(definition: Any, library: Library = LIBRARY) -> list[str]:
    graph, found = check(definition, lambda _: (library, []))
    assert (graph is None) == bool(found)
    return [str(finding.fault()) for finding in found]


def definition(nodes: str, edges: str = "", **keys: Any) -> dict[str, Any]:
    """From `"a b"` and `"a>b b>c"`."""
    return {
        "id": "g",
        "nodes": [{"id": node} for node in nodes.split()],
        "edges": [dict(zip(("from_node", "to_node"), edge.split(">"), strict=True)) for edge in edges.split()],
    } | keys


def points(definition: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    graph, found = check(definition, lambda _: (LIBRARY, []))
    assert graph is not None, found
    return graph.entry_points, graph.exit_points


def test_entries_and_exits_are_inferred_where_they_are_clear() -> None:
    assert points(definition("a b c", "a>b a>c")) == (("a",), ("b", "c"))
    assert points(definition("a", "a>a", allow_cycles=True)) == (("a",), ("a",))
    assert points(definition("a b", "a>b", entry_points=["a", "b"], exit_points=["a", "b"])) == (("a", "b"), ("a", "b"))
    typed = definition("a b c d", "a>b c>b b>d")
    for node in typed["nodes"]:
        node |= {"a": {"type": "entry"}, "c": {"type": "entry"}, "d": {"type": "exit"}}.get(node["id"], {})
    assert points(typed) == (("a", "c"), ("d",))


def test_targets_lead_on_like_edges() -> None:
    graph = definition("a b c", "c>b")
    graph["nodes"][0]["targets"] = ["b", "c"]
    assert points(graph) == (("a",), ("b",))
    graph["nodes"][1]["targets"] = ["a", "d"]
    assert findings(graph) == [
        "nodes[1].targets[1]: no node has the id `d`",
        "nodes[1].targets[0]: closes the cycle a -> b -> a; if it is meant, write `allow_cycles: true`",
    ]


def test_a_failure_leads_on_but_is_no_result() -> None:
    graph = definition("a b c", "a>b")
    graph["nodes"][1]["on_error"] = "c"
    assert points(graph) == (("a",), ("b", "c")), "what `b` returns is an outcome, as is what `c` makes of its failure"
    assert not findings(graph), "`c` is reached"
    assert findings(graph | {"exit_points": ["c"]}) == [
        "nodes[1]: nothing uses the result of `b`: add an edge from it, list it in `exit_points`, or, if it acts on "
        "the outside, write `effects: true`"
    ]
    graph["nodes"][2]["on_error"] = "a"
    closes = "nodes[2].on_error: closes the cycle a -> b -> c -> a; if it is meant, write `allow_cycles: true`"
    assert findings(graph | {"entry_points": ["a"]}) == [closes]


@pytest.mark.parametrize("cycles", [False, True])
def test_a_node_does_not_take_over_from_itself(cycles: bool) -> None:
    graph = definition("a b", "a>b", allow_cycles=cycles)
    graph["nodes"][0]["on_error"] = "a"
    message = "`a` cannot take over from itself; name another one, or let this one `retry`"
    assert findings(graph) == [f"nodes[0].on_error: {message}"]


def test_a_failure_that_leads_nowhere_is_one_fault() -> None:
    graph = definition("alpha beta gamma", "alpha>beta")
    graph["nodes"][0]["on_error"] = "gama"
    assert findings(graph, Library(complete=False)) == [
        "nodes[0].on_error: no node has the id `gama`; did you mean `gamma`?"
    ]


def test_what_is_not_clear_says_what_to_write() -> None:
    assert findings(definition("a b c", "a>c b>c")) == [
        "nodes: nothing leads to `a`, `b`: lead to all but one of them, or write where the task enters: "
        "`entry_points: [a, b]`"
    ]
    assert findings(definition("a b", "a>b b>a", allow_cycles=True)) == [
        "every node follows another one; write where the task enters: `entry_points: [...]`",
        "every node leads to another one; write where the graph ends: `exit_points: [...]`",
    ]
    assert not findings(definition("a b", "a>b b>a", allow_cycles=True, entry_points=["a"], exit_points=["b"]))


@pytest.mark.parametrize(
    ("edges", "cycles"),
    [
        ("a>a", ["a -> a"]),
        ("a>b b>a", ["a -> b -> a"]),
        ("a>b b>c c>d d>b d>e", ["b -> c -> d -> b"]),
        ("a>b b>a c>d d>c b>c", ["a -> b -> a", "c -> d -> c"]),
        ("a>b a>c b>d c>d", []),
    ],
)
def test_cycles_are_named(edges: str, cycles: list[str]) -> None:
    nodes = " ".join(sorted({node for node in edges if node.isalpha()}))
    found = [text for text in findings(definition(nodes, edges)) if "cycle" in text]
    assert [text.split("cycle ")[1].split(";")[0] for text in found] == cycles


def test_a_deep_graph_is_no_trouble() -> None:
    many = range(3000)
    library = Library(functions={f"n{i}": NodeFunction(name=f"n{i}", call=work) for i in many})
    chain = definition(" ".join(f"n{i}" for i in many), " ".join(f"n{i}>n{i + 1}" for i in many[:-1]))
    assert not findings(chain, library)
    chain["edges"].append({"from_node": "n2999", "to_node": "n0"})
    assert [text[:40] for text in findings(chain, library)] == ["edges[2999]: closes the cycle n0 -> n1 -"]


def test_dead_ends_are_faults_unless_they_act_on_the_outside() -> None:
    graph = definition("a b c act", "a>b a>c a>act", exit_points=["c"])
    assert findings(graph) == [
        "nodes[1]: nothing uses the result of `b`: add an edge from it, list it in `exit_points`, or, if it acts on "
        "the outside, write `effects: true`"
    ]
    graph["nodes"][1]["effects"] = True
    assert not findings(graph)
    graph["nodes"][3]["effects"] = False
    assert [text.split(":")[0] for text in findings(graph)] == ["nodes[3]"]


def test_a_loop_without_a_way_out_is_one_fault() -> None:
    graph = definition("a b c d", "a>b b>c c>b a>d", exit_points=["d"], allow_cycles=True)
    assert findings(graph) == ["nodes[1]: no path leads from `b` to an exit, only round `b`, `c`"]


def test_unreachable_nodes_are_named_one_by_one() -> None:
    found = findings(definition("a b c", "b>c", entry_points=["a"]))
    assert [text.split(":")[:2] for text in found] == [
        ["nodes[1]", " `b` is unreachable"],
        ["nodes[2]", " `c` is unreachable"],
    ]


def test_one_misspelt_id_is_one_fault() -> None:
    long = definition("alpha beta gamma", "alpha>beta beta>gama")
    assert findings(long, Library(complete=False)) == [
        "edges[1].to_node: no node has the id `gama`; did you mean `gamma`?"
    ]
    assert findings(definition("a b c", "a>b x>c")) == ["edges[1].from_node: no node has the id `x`"]
    for key in ("entry_points", "exit_points"):
        assert findings(definition("a b", "a>b", **{key: ["x"]})) == [f"{key}[0]: no node has the id `x`"]
    broken = definition("a b c", "a>b")
    broken["edges"].append({"from_node": "b"})
    assert findings(broken) == ["edges[1]: an edge needs `to_node`, which is missing"]
    broken = definition("a b c", "a>b b>c")
    del broken["nodes"][2]["id"]
    assert findings(broken) == [
        "nodes[2]: a node needs `id`, which is missing",
        "edges[1].to_node: no node has the id `c`",
    ]


def test_a_type_that_is_misspelt_is_one_fault() -> None:
    graph = definition("a x1 x2 b c d", "a>b x1>x2 x2>b b>c b>d")
    for node, kind in zip(graph["nodes"], ["entry", "enrty", "functon", "function", "exit", "exti"], strict=True):
        node["type"] = kind
    graph["nodes"][1]["config"] = {"path": "x"}
    must = "must be `function`, `entry` or `exit`, not"
    assert findings(graph) == [
        f"nodes[1].type: {must} 'enrty'; did you mean `entry`?",
        f"nodes[2].type: {must} 'functon'; did you mean `function`?",
        f"nodes[5].type: {must} 'exti'; did you mean `exit`?",
    ]


def test_ids() -> None:
    assert not findings(
        definition("a b.c_1", "a>b.c_1"), Library(functions=dict.fromkeys(["a", "b.c_1"], LIBRARY.functions["a"]))
    )
    for bad, better in [
        ("Parse Files", "parse_files"),
        ("1st", "st"),
        ("a-b", "a_b"),
        ("_x", "x"),
        ("a\n", "a"),
        ("é", ""),
    ]:
        (found,) = findings({"id": "g", "nodes": [{"id": bad, "config": {"call": "a"}}]})
        hint = f"; try `{better}`" if better else ""
        assert found.endswith(
            f"cannot be a node's id: it takes up to 128 of a-z, 0-9, `_` and `.`, and begins with a letter{hint}"
        )
    for bad in ["", "a/b", "-a", "x" * 65, "a\n"]:
        assert "cannot be a graph's id" in findings(definition("a", id=bad))[0]
    assert findings(definition("a b a", "a>b")) == ["nodes[2].id: nodes[0] has the id `a` already"]


def test_duplicate_edges() -> None:
    graph = definition("a b", "a>b a>b a>b")
    graph["edges"][2]["for_each"] = True
    assert findings(graph) == [
        "edges[1]: edges[0] leads from `a` to `b` already; write one edge, its conditions joined by `or`"
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("process", True, "remove `process`"),
        ("max_concurrency", 2, "remove `max_concurrency`"),
        ("effects", True, "remove `effects`"),
        ("targets", ["b"], "remove `targets`"),
        ("retry", 2, "remove `retry`"),
        ("timeout", "5s", "remove `timeout`"),
        ("on_error", "b", "remove `on_error`"),
        ("config", {"call": "a"}, "unknown key; the config of an entry node takes none"),
    ],
)
def test_entries_and_exits_call_nothing(key: str, value: Any, message: str) -> None:
    graph = definition("a b", "a>b")
    graph["nodes"][0] |= {"type": "entry", key: value}
    (found,) = findings(graph)
    assert found.endswith(message)


def test_nothing_follows_an_exit() -> None:
    graph = definition("a b c", "a>b b>c")
    graph["nodes"][1]["type"] = "exit"
    assert findings(graph)[0] == "edges[1].from_node: nothing follows an exit node, and `b` is one"


def test_an_annotation_that_no_value_can_fit_is_found_before_it_runs() -> None:
    strange = Library(functions={"a": NodeFunction(name="a", call=work, annotation=12)})
    (found,) = findings(definition("a"), strange)
    assert found.startswith("nodes[0].id: function `a` takes a value that nothing can become")


def test_a_join_of_all_is_not_reached_item_by_item() -> None:
    graph = definition("a b", "a>b")
    graph["edges"][0]["for_each"] = True
    assert findings(graph) == []
    graph["nodes"][1]["join"] = "all"
    assert findings(graph) == ["edges[0].for_each: `b` joins all and would get the list back; remove it"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("process", "yes", "must be true or false, not the text 'yes'"),
        ("process", 1, "must be true or false, not the number 1"),
        ("process", None, "must be true or false, not empty"),
        ("max_concurrency", True, "must be a whole number from 1, not true"),
        ("max_concurrency", 1.0, "must be a whole number from 1, not the number 1.0"),
        ("name", 7, 'must be text, not the number 7; quote it: "7"'),
        ("name", ["x"], "must be text, not a list"),
        ("join", [], "must be `any` or `all`, not a list"),
        ("targets", {"b": 1}, "must be a list, not a mapping"),
        ("targets", [], "is an empty list; give it an entry, or leave it out"),
        ("config", ["call"], "the config of a function node must be a mapping, not a list"),
        ("description", "x" * 90, None),
        ("timeout", "5 min", f"{DURATION}, not the text '5 min'"),
        ("timeout", 30, f"{DURATION}, not the number 30; write `30s`"),
        ("timeout", True, f"{DURATION}, not true"),
        ("timeout", "0s", "must be longer than 0s; leave it out where nothing is to be limited"),
        ("timeout", "99999d", "must be at most a century, `36500d`, not the text '99999d'"),
        ("on_error", 7, 'must be text, not the number 7; quote it: "7"'),
        ("retry", 0, f"{ATTEMPTS}, not the number 0"),
        ("retry", True, f"{ATTEMPTS}, not true"),
        ("retry", "3", f"{ATTEMPTS}, not the text '3'"),
        ("retry", [3], f"{ATTEMPTS}, not a list"),
        ("retry", 3, None),
        ("retry", {"max_attempts": 1, "initial": "0s", "factor": 1, "jitter": 1.0, "on": ["a.B"]}, None),
    ],
)
def test_types_are_not_coerced(key: str, value: Any, message: str | None) -> None:
    graph = definition("a b", "a>b")
    graph["nodes"][0][key] = value
    assert findings(graph) == ([f"nodes[0].{key}: {message}"] if message else [])


@pytest.mark.parametrize(
    ("retry", "message"),
    [
        ({"initial": "1s"}, ": the retry of a node needs `max_attempts`, which is missing"),
        ({"max_attempts": 2.0}, ".max_attempts: must be a whole number from 1, not the number 2.0"),
        ({"max_attempts": 2, "initial": 5}, f".initial: {DURATION}, not the number 5; write `5s`"),
        ({"max_attempts": 2, "factor": 0.5}, ".factor: must be a number from 1, not the number 0.5"),
        ({"max_attempts": 2, "factor": math.inf}, ".factor: must be a number from 1, not the number inf"),
        ({"max_attempts": 2, "factor": math.nan}, ".factor: must be a number from 1, not the number nan"),
        ({"max_attempts": 2, "jitter": 1.5}, ".jitter: must be a number from 0 to 1, not the number 1.5"),
        ({"max_attempts": 2, "jitter": True}, ".jitter: must be a number from 0 to 1, not true"),
        ({"max_attempts": 2, "on": "OSError"}, ".on: must be a list, not the text 'OSError'; write [OSError]"),
        ({"max_attempts": 2, "on": []}, ".on: is an empty list; give it an entry, or leave it out"),
        (
            {"max_attempts": 2, "on": ["httpx.HTTPError", "time out"]},
            ".on[1]: 'time out' cannot be the name of an exception class; "
            "write it as in Python, `ValueError` or `httpx.HTTPError`",
        ),
        (
            {"max_attempts": 2, "initial": "2m", "max": "90s"},
            ".initial: is longer than `max`; make that longer as well",
        ),
        (
            {"max_attempts": 2, "initial": "2m"},
            ".initial: is longer than `max`, which is 60s by default; make that longer as well",
        ),
    ],
)
def test_retries(retry: Any, message: str) -> None:
    graph = definition("a b", "a>b")
    graph["nodes"][0]["retry"] = retry
    assert findings(graph) == [f"nodes[0].retry{message}"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("history", 20, f"history: {HISTORY}, not the number 20; write `window(20)`"),
        ("history", "window(0)", f"history: {HISTORY}, not the text 'window(0)'"),
        ("history", None, f"history: {HISTORY}, not empty"),
        ("limits", 5, "limits: the limits of a graph must be a mapping, not the number 5"),
        ("limits", {"max_steps": 0}, "limits.max_steps: must be a whole number from 1, not the number 0"),
        ("limits", {"timeout": "0ms"}, "limits.timeout: must be longer than 0ms"),
        ("limits", {"max_concurrency": "2"}, "limits.max_concurrency: must be a whole number from 1, not the text '2'"),
        ("protected", "a", "protected: must be a list, not the text 'a'; write [a]"),
        ("protected", ["a", "a"], "protected[1]: 'a' is listed twice"),
        ("protected", ["x"], "protected[0]: no node has the id `x`"),
    ],
)
def test_what_bounds_a_graph(key: str, value: Any, message: str) -> None:
    (found,) = findings(definition("a", **{key: value}))
    assert found.startswith(message)


def test_lists_of_names() -> None:
    assert findings(definition("a b", "a>b", entry_points=["a", "a", 3, ""]))[:3] == [
        "entry_points[1]: 'a' is listed twice",
        'entry_points[2]: must be text, not the number 3; quote it: "3"',
        "entry_points[3]: must not be empty",
    ]


def test_metadata_is_what_json_can_say() -> None:
    inner: dict[str, Any] = {}
    inner["again"] = inner
    wrong = {"a": {1: 2}, "b": float("nan"), "c": {3}, "d": inner, "e f": (1,)}
    assert findings(definition("a", metadata=wrong)) == [
        'metadata.a[1]: a key must be text, not the number 1; quote it: "1"',
        "metadata.b: must be a finite number, not nan",
        "metadata.c: must be text, a number, true, false, a list or a mapping, not a set",
        "metadata.d.again: is nested more than 32 levels deep",
        "metadata['e f']: must be text, a number, true, false, a list or a mapping, not a tuple",
    ]


def test_a_graph_does_not_share_what_it_was_made_from() -> None:
    metadata = {"tags": ["x"]}
    graph, _ = check(definition("a", metadata=metadata), lambda _: (LIBRARY, []))
    metadata["tags"].append("y")
    assert graph is not None
    assert graph.metadata == {"tags": ["x"]}
    with pytest.raises(TypeError):
        graph.nodes["b"] = graph.nodes["a"]  # type: ignore[index]


def test_a_library_that_is_not_complete_says_nothing_of_missing_functions() -> None:
    failed = Finding(("functions", 0), "cannot be imported")
    _, found = check(definition("x", functions=["x.py"]), lambda _: (Library(complete=False), [failed]))
    assert found == [failed]
    many = Library(functions={f"f{i}": NodeFunction(name="f", call=work) for i in range(10)}, remedy="define it")
    assert findings(definition("zzz"), many) == [
        "nodes[0].id: there is no function `zzz` "
        "(there are `f0`, `f1`, `f2`, `f3`, `f4`, `f5`, `f6`, `f7` and 2 more); define it"
    ]


def test_messages_name_places_and_guesses() -> None:
    assert where(("nodes", 2, "config", "a b", True)) == "nodes[2].config['a b'][True]"
    assert near("foreach", ["for_each", "weight"]) == "for_each"
    assert near("to", ["from_node", "to_node"]) == "to_node"
    assert near("x", ["from_node"]) is None
    assert str(Finding(("a",), "wrong", offset=4).fault()) == "a: wrong (at its column 5)"


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a", "b", "act"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4),
    max_leaves=10,
)
keys = st.sampled_from([*schema.GRAPH.rules, *schema.NODE.rules, *schema.EDGE.rules])
ids = st.sampled_from(["a", "b", "c", "act", "x", ""]) | junk
nodes = st.fixed_dictionaries(
    {"id": ids},
    optional={
        "type": st.sampled_from(["entry", "exit", "function", "?"]),
        "targets": st.lists(ids),
        "join": junk,
        "on_error": ids,
    }
    | {"retry": junk | st.dictionaries(st.sampled_from(list(schema.RETRY.rules)), junk), "timeout": junk},
)
edges = st.fixed_dictionaries(
    {"from_node": ids, "to_node": ids}, optional={"condition": st.text(max_size=9), "for_each": junk}
)
graphs = st.fixed_dictionaries(
    {"id": st.just("g") | junk, "nodes": st.lists(nodes | junk) | junk},
    optional={
        "edges": st.lists(edges | junk, max_size=8) | junk,
        "entry_points": st.lists(ids) | junk,
        "exit_points": st.lists(ids),
        "allow_cycles": st.booleans() | junk,
        "history": st.sampled_from(["all", "window(3)"]) | junk,
        "limits": junk | st.dictionaries(st.sampled_from(list(schema.LIMITS.rules)), junk),
        "protected": st.lists(ids) | junk,
    },
)


@given(junk | st.dictionaries(keys, junk) | graphs)
def test_any_data_gives_a_graph_or_findings(data: Any) -> None:
    found = findings(data)  # which asserts that there is a graph or something found, and not both
    assert all(found)
