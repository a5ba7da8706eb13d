"""Graph files, names and schemas that are made to harm are refused, in little time and memory, and run nothing."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tinyllm import GraphBuilder, load_graph
from tinyllm.errors import AnswerRefused, ConditionError, InvalidGraph, ValueNotReadable, ValueNotStorable
from tinyllm.graph.conditions import compile_condition
from tinyllm.graph.ids import is_name
from tinyllm.graph.node import NodeFunction, node
from tinyllm.graph.payload import Captured, decode_error, decode_messages, decode_payload
from tinyllm.graph.questions import Question, check_answer, decode_asked
from tinyllm.graph.values import restore

MEMORY = 512 * 2**20
"""Bytes that a hostile file may cost more than what the tests have already."""
MILLION = 1_000_000

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


GOOD = "id: g\nfunctions: [n.py]\nnodes: [{id: a, type: function}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "n.py").write_text("from tinyllm import node\n\n@node\ndef a(x):\n    return x\n")
    (tmp_path / "g.yaml").write_text(GOOD)
    load_graph(tmp_path / "g.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * MILLION, "nested more than 32"),
        ('{"a":' * 700_000, "nested more than 32"),
        ("- " * MILLION, "nested more than 32"),
        (GOOD + "metadata: {x: " + "[" * MILLION + "]" * MILLION + "}", "nested more than 32"),
        ("!x " * MILLION, "tags are not read"),
        ("!!python/object/apply:os.mkdir [owned]", "tags are not read"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\nid: !object/apply:os.mkdir [owned]", "tags are not read"),
        ("a: &a {b: 1}\n<<: *a", "merge keys"),
        ("&a [*a]", "inside of what it repeats"),
        (GOOD + "id: h\n", "duplicate key"),
        ("id: g\nnodes: [{id: a, type: entry, max_concurrency: " + "9" * MILLION + "}]", "whole number"),
        (GOOD + "metadata: {a: " + "9" * MILLION + ".5}", "finite number"),
        ("id: '" + "a" * MILLION + "'\nnodes: [{id: a, type: entry}]", "cannot be a graph's id"),
        ("id: g\nnodes: [{id: " + "a" * MILLION + ", type: entry}]", "cannot be a node's id"),
        ('id: g\nnodes: [{id: "a\\0b", type: entry}]', "cannot be a node's id"),
        ('id: "../g"\nnodes: [{id: a, type: entry}]', "cannot be a graph's id"),
        (GOOD.replace("n.py", "../n.py"), "outside of the graph's folder"),
        (GOOD.replace("n.py", "/etc/passwd"), "outside of the graph's folder"),
        (GOOD.replace("n.py", "link.py"), "outside of the graph's folder"),
        (GOOD.replace("n.py", "fifo.py"), "not a Python file"),
        (GOOD.replace("[n.py]", '["a\\0.py"]'), "is no file name"),
    ],
)
def test_a_graph_file_that_is_made_to_harm(folder: Path, text: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    os.mkfifo(folder / "fifo.py")
    (folder / "link.py").symlink_to("/etc/hosts")
    (folder / "g.yaml").write_text(text)
    with pytest.raises(InvalidGraph, match=what) as caught:
        load_graph(folder / "g.yaml")
    assert len(str(caught.value)) < 1000
    assert not (folder / "owned").exists()


def test_what_is_no_file_of_a_graph(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "zeros").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    (folder / "huge").touch()
    os.truncate(folder / "huge", 5 * 2**30)
    for name in ("fifo", "zeros", "loop", "huge", ".", "a\0b", "\ud800"):
        with pytest.raises(InvalidGraph):
            load_graph(folder / name)


@pytest.mark.parametrize(
    "source",
    [
        *("9**9**9", "'a' * 10**10", "(1,) * 10**10", "'%1000000000d' % 1", "'a'.center(10**10)", "'a'.zfill(10**10)"),
        *(
            "10**-10**9",
            "int('9' * 5000)",
            "'ab'.replace('', 'c' * 10**6)",
            "'x\\t'.expandtabs(10**9)",
            "str(10**4299)",
        ),
        *("().__class__", "len.__self__", "content.__class__", "'{0.__class__}'.format(content)", "f'{content!r}'"),
        *("(" * 500 + "1" + ")" * 500, "-" * 3000 + "1", "not " * 900 + "1", "[" * MILLION, "content == '\ud800'"),
        *("__import__('os')", "open('/etc/passwd')", "getattr(content, 'x')", "(lambda: 1)()", "[x for x in content]"),
    ],
)
def test_a_condition_that_is_made_to_harm(source: str) -> None:
    with pytest.raises(ConditionError):
        compile_condition(source).holds({"content": "a"})


# -- half a character --------------------------------------------------------------------------------------------

HALF = "\ud800"


async def work(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"variables": {HALF: "append"}}, r"variables\['\\ud800'\]"),
        ({"version": HALF}, "version"),
        ({"description": f"a{HALF}"}, "description"),
        ({"metadata": {"a": [HALF]}}, r"metadata.a\[0\]"),
        ({"metadata": {HALF: 1}}, r"metadata\['\\ud800'\]"),
    ],
)
def test_a_graph_has_no_half_characters_in_it(options: Any, where: str) -> None:
    with pytest.raises(InvalidGraph, match=f"{where}: .*lone surrogate"):
        GraphBuilder("g", **options).node(work).build()


def test_a_version_has_none_either() -> None:
    with pytest.raises(TypeError, match="the version of node function 'work' must be 1 to 128 printable"):
        NodeFunction.of(node(version=HALF)(work))
    del work.__tinyllm_node__  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "a\nb", "a\0b", "\x1b]0;x\x07", HALF, "\u202eabc", "a" * 129, 5, None])
def test_what_is_no_name(text: Any) -> None:
    assert not is_name(text)


@pytest.mark.parametrize("text", ["a", "how many?", "'; DROP TABLE traces; --", "../x", "é", "a" * 128])
def test_what_is_a_name(text: str) -> None:
    assert is_name(text)


# -- what a store may claim to be captured -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"$payload":5}',
        b'{"$payload":{"x":1}}',
        b'{"$payload":{"error":{"y":1}}}',
        b'{"$payload":{"error":{"type":1,"message":"x"}}}',
        b'{"$payload":{"metadata":7}}',
        b'{"$payload":{"content":7}}',
        b'{"$message":[]}',
        b'{"$message":5}',
        b"[" * MILLION,
        b'{"a":' * MILLION,
        b'{"$unknown":1}',
        b"1" * MILLION,
    ],
)
def test_a_message_that_is_none(body: bytes) -> None:
    with pytest.raises(ValueNotReadable):
        decode_payload(body)


def test_a_message_of_a_history_an_item_and_an_error_that_are_none() -> None:
    class Row:
        seq, node, body = 1, "a", b'{"$message":[[1],{}]}'

    with pytest.raises(ValueNotReadable):
        decode_messages([Row()], "t", restore(b'{"$datetime":"2026-01-01T00:00:00+00:00"}'))
    for body, index in ((b"[1]", 1), (b"5", 0), (b'{"a":1}', 0)):
        with pytest.raises(ValueNotReadable):
            Captured(body).item(index)
    for body in (b"5", b"{}", b'{"type":"x"}', b'{"type":1,"message":2}', b'{"type":"x","message":"y","more":1}'):
        with pytest.raises(ValueNotReadable):
            decode_error(body)


@pytest.mark.parametrize(
    "body", [b"5", b"[5]", b"[[1,2,3,4]]", b'[["a","b",5,null]]', b'[["a","b",null,5]]', b'["abcd"]']
)
def test_questions_that_are_none(body: bytes) -> None:
    with pytest.raises(ValueNotReadable):
        decode_asked(body)


# -- the schema of a question, which becomes code ----------------------------------------------------------------


def ask(schema: Any, value: Any) -> bytes:
    return check_answer(
        Question(trace_id="t", node_id="n", activation_id="0" * 32, name="q", prompt="?", schema=schema), value
    )


@pytest.mark.parametrize("uri", ["file:///etc/hostname", "file:///dev/zero", "ftp://127.0.0.1/x", "http://[::1]/x"])
@pytest.mark.parametrize(
    "schema", ['{"$ref": "%s"}', '{"$id": "%s", "$ref": "other"}', '{"allOf": [{"$ref": "%s#/a"}]}']
)
def test_nothing_is_fetched_for_a_schema(schema: str, uri: str) -> None:
    with pytest.raises(ValueNotStorable, match="nothing is fetched"):
        ask(json.loads(schema % uri), 1)


def nested(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


CODE = '__import__("os").mkdir("owned")'


@pytest.mark.parametrize(
    "schema",
    [
        *(
            {key: CODE}
            for key in ("minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems")
        ),
        *({key: CODE} for key in ("maxItems", "minProperties", "maxProperties", "exclusiveMinimum", "type")),
        *({key: CODE} for key in ("enum", "required", "properties", "items", "anyOf", "not", "if", "contains")),
        {"pattern": "("},
        {"$ref": "#/nowhere"},
        {"$ref": 5},
        nested(60),
    ],
)
def test_a_schema_that_is_none(schema: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (1, "a", [1], {"a": 1}):
        with suppress(ValueNotStorable, AnswerRefused):
            ask(schema, value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "text",
    ['"', "'", "\\", '\\"', "'''", "\n", "{data}", "{data.__class__}", '" + ' + CODE + ' + "', "#", "\\N{DIGIT ONE}"],
)
def test_what_a_schema_says_is_no_code(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for schema in (
        {"enum": [text, [text], {text: text}]},
        {"const": text},
        {"properties": {text: {"type": "integer"}}, "required": [text], "additionalProperties": False},
        {"properties": {text: {"$ref": f"#/definitions/{text}"}}, "definitions": {text: {"enum": [text]}}},
        {"patternProperties": {text: {"type": "integer"}}},
        {"pattern": text, "title": text, "description": text, text: text},
        {"format": text},
        {"dependencies": {text: [text]}},
    ):
        for value in (5, text, {text: 5}, {text: text}, [text], {}):
            with suppress(ValueNotStorable, AnswerRefused):
                ask(schema, value)
    assert not (tmp_path / "owned").exists()


def test_a_schema_that_cannot_be_applied() -> None:
    for schema, value in (({"multipleOf": 0}, 1), ({"$ref": "#"}, 1), ({"multipleOf": 0.1}, 10**400)):
        with pytest.raises(AnswerRefused, match="cannot be applied"):
            ask(schema, value)
