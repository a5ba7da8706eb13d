"""The language of conditions: what it can say, what it refuses, and that nothing gets out of it or hangs it."""

from __future__ import annotations

import ast
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.errors import ConditionError
from tinyllm.graph.conditions import MAX_SOURCE, compile_condition, environment
from tinyllm.graph.evaluate import METHODS
from tinyllm.graph.messages import ErrorInfo, MessagePayload

NAMES: Mapping[str, Any] = environment(
    MessagePayload(
        content="Hello World",
        structured={"score": 7, "tags": ["a", "b"], "deep": {"x": [1, 2, 3]}},
        route="billing",
        confidence=0.75,
        metadata={"lang": "de", "sum": 3, "items": (1, 2)},
    ),
    MappingProxyType({"count": 4, "name": "n", "flag": False}),
    12,
)


def holds(source: str, names: Mapping[str, Any] = NAMES) -> bool:
    return compile_condition(source).holds(names)


@pytest.mark.parametrize(
    "source",
    [
        "True",
        "not False",
        "content == 'Hello World'",
        "  content.lower().startswith('hello')  ",
        "'World' in content and 'x' not in content",
        "structured['score'] > 5",
        "5 < structured['score'] <= 7 != 8",
        "structured['tags'][-1] == 'b'",
        "structured['deep']['x'][1:] == [2, 3]",
        "content[::-1] == 'dlroW olleH'",
        "content[:5] == 'Hello'",
        "'score' in structured",
        "structured.get('none', 3) == 3",
        "len(structured.keys()) == 3 and 'tags' in structured.keys()",
        "sorted(structured) == ['deep', 'score', 'tags']",
        "sorted([3, 1, 2], reverse=True)[0] == 3",
        "route in ('billing', 'sales')",
        "route in {'billing', 'sales'} and {'billing': 1}[route] == 1",
        "confidence >= 0.5 if route == 'billing' else False",
        "lang == 'de'",
        "metadata['lang'] == 'de' and metadata.get('x') is None",
        "sum == 3 and sum(structured['deep']['x']) == 6",
        "items == (1, 2) and items + (3,) == (1, 2, 3)",
        "variables['count'] * 2 + 1 == 9",
        "not variables['flag']",
        "step == 12",
        "error is None",
        "matched_condition is None",
        "int('7') == 7 and float('0.5') == 0.5 and str(7) == '7' and bool('x')",
        "int('ff', 16) == 255",
        "min(3, 1) == 1 and max([1, 3]) == 3 and max([], default=0) == 0",
        "abs(-3) == 3 and round(2.567, 1) == 2.6 and round(2.5, ndigits=0) == 2.0",
        "any([0, 1]) and all([])",
        "-step == -12 and +step == 12",
        "7 // 2 == 3 and 7 % 2 == 1 and 7 / 2 == 3.5 and 2 ** 10 == 1024",
        "'a' * 3 == 'aaa' and 3 * 'a' == 'aaa' and 'a' + 'b' == 'ab' and 'a' * -1 == ''",
        "'a,b'.split(',') == ['a', 'b'] and 'a b c'.split(maxsplit=1) == ['a', 'b c']",
        "', '.join(structured['tags']) == 'a, b'",
        "'x'.center(3) == ' x ' and '7'.zfill(3) == '007' and 'aXa'.replace('X', '--') == 'a--a'",
        "0 or 'text'",
        "1 if [] else 2",
        "(1\n == 1)",
        "'ü' == 'ü' # a comment",
    ],
)
def test_what_conditions_can_say(source: str) -> None:
    assert holds(source)


def test_the_undecided_side_is_not_evaluated() -> None:
    assert holds("True or nowhere")
    assert not holds("False and nowhere")
    assert not holds("1 > 2 > nowhere")
    assert holds("1 if True else nowhere")


def test_an_error_is_seen_as_a_dict() -> None:
    names = environment(MessagePayload(error=ErrorInfo(type="ValueError", message="m", node_id="n")), {}, 1)
    assert holds("error['type'] == 'ValueError' and error['message'] == 'm'", names)
    assert holds("error and content is None", names)


def test_names_are_read_only_when_they_are_asked_for() -> None:
    class Lazy(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            assert key == "a"
            return 1

        def __iter__(self) -> Any:
            raise AssertionError

        __len__ = __iter__

    assert holds("variables['a'] == 1", environment(MessagePayload(), Lazy(), 0))


def test_what_an_environment_lists() -> None:
    names = environment(MessagePayload(metadata={"content": "no", "own": 1}), {}, 0)
    assert list(names) == [
        *("content", "structured", "route", "confidence", "matched_condition", "metadata", "error"),
        *("variables", "step", "own"),
    ]
    assert len(names) == 10
    assert names["content"] is None


# -- refused when compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "column", "words"),
    [
        ("", None, "is empty"),
        (" \n ", None, "is empty"),
        ("a ==", 5, "does not parse"),
        ("  a == = 1", 8, "does not parse"),
        ("a = 1", 3, "does not parse"),
        ("import os", 1, "does not parse"),
        ("'\\d' == a", 1, "does not parse"),
        ("a\0b", None, "does not parse"),
        ("'\ud800'", None, "does not parse"),
        ("content.upper", 1, "content['upper']"),
        ("1 + variables.name", 5, "variables['name']"),
        ("'ü' == structured.score", 8, "structured['score']"),
        ("(1 ==\n  structured.score)", 9, "structured['score']"),
        ("''.__class__", 1, "attributes are not available"),
        ("().__class__.__bases__[0]", 1, "attributes are not available"),
        ("''.__class__()", 1, "no method '__class__'"),
        ("'{0.__class__}'.format(content)", 1, "no method 'format'"),
        ("'{a}'.format_map(structured)", 1, "no method 'format_map'"),
        ("structured.pop('score')", 1, "no method 'pop'"),
        ("structured.clear()", 1, "no method 'clear'"),
        ("structured.startwith('x')", 1, "did you mean 'startswith'"),
        ("'x'.encode()", 1, "no method 'encode'"),
        ("open('x')", 1, "no function 'open'"),
        ("__import__('os')", 1, "no function '__import__'"),
        ("eval('1')", 1, "no function 'eval'"),
        ("type(content)", 1, "no function 'type'"),
        ("getattr(content, 'x')", 1, "no function 'getattr'"),
        ("summ([1])", 1, "did you mean 'sum'"),
        ("len(content)(1)", 1, "only functions and methods"),
        ("(lambda: 1)()", 1, "only functions and methods"),
        ("structured['f']()", 1, "only functions and methods"),
        ("[x for x in content]", 1, "comprehensions"),
        ("{x for x in content}", 1, "comprehensions"),
        ("{x: 1 for x in content}", 1, "comprehensions"),
        ("any(x for x in content)", 4, "generators"),
        ("lambda: 1", 1, "functions"),
        ("(x := 1)", 2, "assignments"),
        ("f'{content}'", 1, "f-strings"),
        ("max(*structured)", 5, "starred arguments"),
        ("max(**structured)", 5, "no argument '**'"),
        ("{**structured}", 1, "`**`"),
        ("[*structured]", 2, "starred arguments"),
        ("sorted(structured, key=len)", 20, "no argument 'key'"),
        ("1 & 2", 1, "bitwise"),
        ("~1", 1, "bitwise"),
        ("a @ b", 1, "bitwise"),
        ("b'x' == a", 1, "no text"),
        ("1j == a", 1, "no text"),
        ("... == a", 1, "no text"),
        ("content is route", 1, "use =="),
        ("content[1:2, 3]", 9, "one index"),
        ("await content", 1, "await"),
        ("(yield)", 2, "yield"),
        ("1" * 2000, 1, "too large"),
        ("+".join("1" * 200), None, "nested more than 100 levels"),
        ("-" * 3000 + "1", None, "nested"),
        ("(" * 3000 + "1" + ")" * 3000, None, "longer than"),
        ("(" * 1500 + "1" + ")" * 1500, None, ""),
        ("[" * 150 + "1" + "]" * 150, None, "nested more than 100 levels"),
        ("not " * 900 + "1", None, "nested"),
        ("a" * (MAX_SOURCE + 1), None, "longer than"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_refused_when_compiled(source: str, column: int | None, words: str) -> None:
    with pytest.raises(ConditionError) as caught:
        compile_condition(source)
    assert words in caught.value.reason
    if column is not None:
        assert caught.value.column == column
    str(caught.value).encode()


def test_every_method_exists_and_changes_nothing() -> None:
    for name in METHODS:
        assert hasattr(str, name) or hasattr(MappingProxyType, name)


# -- refused when it runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("contnt == 'x'", "there is no name 'contnt'; did you mean 'content'?"),
        ("nowhere", "names: content, structured, route"),
        ("variables['cont'] > 1", "variables has no key 'cont'; did you mean 'count'?; write variables.get('cont')"),
        ("structured[0]", "structured has no key 0"),
        ("structured['tags'][9]", "out of range"),
        ("structured['score'] > 'a'", "`structured['score'] > 'a'`: '>' not supported"),
        ("1 / 0", "`1 / 0`: division by zero"),
        ("content + 1", "+ is not available for str and int"),
        ("content % 1", "% is not available"),
        ("'%s' % content", "% is not available"),
        ("[1] * 3", "* is not available for list and int"),
        ("content - content", "- is not available"),
        ("-content", "no sign"),
        ("content.keys()", "str has no method keys()"),
        ("structured.lower()", "dict has no method lower()"),
        ("step.lower()", "int has no method lower()"),
        ("len(1)", "has no len()"),
        ("len()", "len()"),
        ("int('x')", "invalid literal"),
        ("float(content)", "could not convert"),
        ("str(structured)", "no list or dict"),
        ("str(structured.values())", "no list or dict"),
        ("sum([[1], [2]], [])", "only numbers"),
        ("sum(['a'])", "only numbers"),
        ("sum()", "sum()"),
        ("sorted([1, 'a'])", "not supported"),
        ("max([])", "empty"),
        ("(-8) ** 0.5", "no such power"),
        ("2.0 ** 5000", "out of range"),
        ("[] in {}", "unhashable"),
        ("{[]: 1}", "unhashable"),
        ("1 in 1", "not iterable"),
        ("content['a']", "indices"),
        ("content[1]['a']", "indices"),
    ],
)
def test_what_fails_when_it_runs(source: str, words: str) -> None:
    condition = compile_condition(source)
    with pytest.raises(ConditionError) as caught:
        condition.holds(NAMES)
    assert words in caught.value.reason
    assert caught.value.column is not None


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "source",
    [
        "10 ** 10 ** 10",
        "2 ** -(10 ** 9) ** 9",
        "(2 ** 4000) ** 4000",
        "(2 ** 4000) * (2 ** 4000)",
        "big + 1",
        "big * 1.0",
        "'x' * 10 ** 9",
        "10 ** 9 * 'x'",
        "'x' * (2 ** 4000)",
        "('x' * 1000000) * 1000000",
        "('x' * 1000000 + 'x' * 1000000) * 2",
        "''.center(10 ** 9)",
        "'x'.zfill(10 ** 9)",
        "'x'.ljust(10 ** 12, 'y')",
        "'\\t'.expandtabs(10 ** 9)",
        "('x' * 1000).replace('x', 'x' * 100000)",
        "('x' * 1000).replace('', 'x' * 100000)",
        "('x' * 100000).join(['a'] + ['b'] + ['c'] + 'd'.join('e' * 1000).split('e'))",
        "round(5, -(10 ** 9))",
        "round(5.0, 10 ** 9)",
        "round(5, ndigits=-(10 ** 9))",
        "int('9' * 1000000)",
        "float('9' * 1000000)",
        "int('9' * 100000, 36)",
    ],
)
def test_what_would_take_too_much_is_refused(source: str) -> None:
    with pytest.raises(ConditionError):
        holds(source, {"big": 7**20000})


@pytest.mark.timeout(5)
def test_what_is_large_can_still_be_looked_at() -> None:
    text = "word " * 1_000_000
    names = environment(MessagePayload(content=text, structured=list(range(100_000))), {}, 0)
    assert holds("content.upper().startswith('WORD') and len(content.split()) == 1000000", names)
    assert holds("content.replace('word', 'x')[:3] == 'x x' and content + '.' != content", names)
    assert holds("sum(structured) > 0 and sorted(structured)[0] == 0 and 99999 in structured", names)


# -- anything at all -------------------------------------------------------------------------------------------

ATOMS = st.sampled_from(
    """content structured variables step nowhere __builtins__ 0 1 -1 2.5 10**9 '' 'x' None True [] () {} [1,'a'] {'a':1}
    big '{0.__class__}' '%999999999d'""".split()  # noqa: SIM905 - it would take a line for each
)
NAMED = st.sampled_from([*METHODS, "format", "__class__", "mro", "pop", "__getattribute__", "encode"])
CALLED = st.sampled_from(
    ["len", "int", "float", "str", "bool", "min", "max", "abs", "round", "sum", "any", "all", "sorted", "eval", "open"]
)
OPERATORS = st.sampled_from(
    ["+", "-", "*", "/", "//", "%", "**", "&", "<<", "==", "!=", "<", ">=", "in", "not in", "is", "and", "or"]
)


def compose(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, OPERATORS, inner),
        st.builds("(not {})".format, inner),
        st.builds("(-{})".format, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("{}.{}".format, inner, NAMED),
        st.builds("{}.{}({})".format, inner, NAMED, inner),
        st.builds("{}.{}({}, {})".format, inner, NAMED, inner, inner),
        st.builds("{}({})".format, CALLED, inner),
        st.builds("{}({}, {})".format, CALLED, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
        st.builds("[x for x in {}]".format, inner),
        st.builds("(lambda: {})()".format, inner),
    )


@settings(max_examples=400, deadline=None)
@given(st.recursive(ATOMS, compose, max_leaves=20))
def test_any_expression_is_decided_or_refused_soon(source: str) -> None:
    names = {"content": "text " * 50, "structured": {"a": [1, 2]}, "variables": {}, "step": 3, "big": 3**5000}
    before = repr(names)
    start = time.perf_counter()
    column = None
    try:
        assert compile_condition(source).holds(names) in (True, False)
    except ConditionError as error:
        column = error.column
        str(error)
    assert column is None or 1 <= column <= len(source) + 1
    assert time.perf_counter() - start < 2
    assert repr(names) == before


@given(st.text(max_size=40))
def test_any_text_is_compiled_or_refused(source: str) -> None:
    try:
        condition = compile_condition(source)
    except ConditionError:
        return
    for node in ast.walk(condition.tree):
        assert not isinstance(node, (ast.Lambda, ast.ListComp, ast.GeneratorExp, ast.JoinedStr))
