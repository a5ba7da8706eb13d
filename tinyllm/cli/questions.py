"""How an open question is shown: what is asked, what fits as an answer, and the line that gives it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from tinyllm.cli.options import command_line
from tinyllm.cli.text import plural, shorten

if TYPE_CHECKING:
    from tinyllm.graph.questions import Question

SHOWN = 10
"""Questions that are written out: a fan-out may ask thousands."""

DEPTH = 4
"""How far into a schema words go: one that refers to itself has no end."""


def question_lines(
    questions: Sequence[Question], *, live: bool = False, command: Callable[..., str] = command_line
) -> Iterator[str]:
    """Each question, what it takes, and a line to paste. `live`: a process executes the trace; it needs no resume."""
    names = Counter(question.name for question in questions)
    for question in questions[:SHOWN]:
        first, *more = question.prompt.splitlines() or [""]
        yield f"node {question.node_id} asks: {first}"
        yield from (indent(line, "  ") for line in more)
        words, example = describe(question.schema)
        yield f"  (it takes {words})"
        name = question.name if names[question.name] == 1 else question.id
        if live:  # others of that name may be asked any moment
            yield f"  {command('answer', question.trace_id, example, '--question', question.id)}"
        else:
            yield f"  {command('resume', question.trace_id, '--answer', f'{name}={example}')}"
    if len(questions) > SHOWN:
        yield f"and {plural(len(questions) - SHOWN, 'question')} more, all of them in:"
        yield f"  {command('show', questions[0].trace_id, '--json')}"


def describe(schema: Mapping[str, Any] | None) -> tuple[str, str]:
    """What fits a JSON Schema, in words, and JSON to start from, in which capitals are for the person to replace."""
    return _describe(schema or {}, schema or {}, DEPTH)


def _describe(schema: Any, root: Mapping[str, Any], depth: int) -> tuple[str, str]:
    if depth == 0:
        return "any value", "JSON"
    match schema:
        case {"$ref": str(reference)}:
            return _describe(_referred(reference, root), root, depth - 1)
        case {"const": value}:
            return _json(value), _json(value)
        case {"enum": [*values]} if values:
            return _either([_json(value) for value in values]), _json(values[0])
        case {"anyOf": [*options]} | {"oneOf": [*options]} if options:
            return _any_of(options, root, depth)
        case {"type": [*types]} if types:
            return _any_of([{**schema, "type": each} for each in types], root, depth)
        case {"type": "boolean"}:
            return "true or false", "true"
        case {"type": "null"}:
            return "null", "null"
        case {"type": "integer" | "number" as kind}:
            return ("a whole number" if kind == "integer" else "a number") + _range(schema), "NUMBER"
        case {"type": "string"}:
            return "a text" + _shape(schema), '"TEXT"'
        case {"type": "array"}:
            words, example = _describe(schema.get("items", {}), root, depth - 1)
            return f"a list, each item {words}", f"[{example}]"
        case {"type": "object", "properties": dict(fields)} if fields:
            return _object(fields, schema.get("required", ()), root, depth)
        case {"type": "object"}:
            return "an object", "{}"
        case {**rest} if rest.keys() <= {"title", "description", "default", "examples"}:
            return "any value", "JSON"
        case _:
            return f"what fits the schema {shorten(_json(schema), 200)}", "JSON"


def _any_of(options: Sequence[Any], root: Mapping[str, Any], depth: int) -> tuple[str, str]:
    described = [_describe(option, root, depth - 1) for option in options]
    return _either([words for words, _ in described]), described[0][1]


def _object(fields: Mapping[str, Any], required: Any, root: Mapping[str, Any], depth: int) -> tuple[str, str]:
    described = {name: _describe(field, root, depth - 1) for name, field in fields.items()}
    needed = [name for name in described if isinstance(required, list) and name in required]
    words = [f"{name} ({words})" for name, (words, _) in described.items() if name in needed]
    if spare := [f"{name} ({words})" for name, (words, _) in described.items() if name not in needed]:
        words.append(f"if you like {', '.join(spare)}")
    example = ", ".join(f"{_json(name)}: {described[name][1]}" for name in needed)
    return f"an object with {', '.join(words)}", f"{{{example}}}"


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/Name` points to; the reference itself where that is nothing."""
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        match found:
            case {**keys} if (key := part.replace("~1", "/").replace("~0", "~")) in keys:
                found = keys[key]
            case _:
                return {"see": reference}
    return found


def _range(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"minimum": low, "maximum": high}:
            return f" from {low} to {high}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return f", {' and '.join(said)}" if said else ""


def _shape(schema: Mapping[str, Any]) -> str:
    said = {"minLength": "of at least {} characters", "maxLength": "of at most {} characters"}
    said |= {"pattern": "that matches {}", "format": "that is a {}"}
    found = [words.format(schema[key]) for key, words in said.items() if key in schema]
    return f" {' and '.join(found)}" if found else ""


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
