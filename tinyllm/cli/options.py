"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from tinyllm.cli.text import printable

F = TypeVar("F", bound=Callable[..., Any])

STORAGE = "tinyllm.storage"
GRAPH = "tinyllm.graph"
TRACE = "tinyllm.trace"
DEBUG = "tinyllm.debug"
AGAIN = "tinyllm.again"
REDACT = "tinyllm.redact"
"""Keys of click's `meta`, which all contexts of one call share: what a line to paste must repeat."""


def remember(key: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that keeps an option's value for the lines that are printed to be pasted."""

    def keep(context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        context.meta[key] = value
        return value

    return keep


def command_line(*words: str) -> str:
    """A `tinyllm` command on the store of the present one, as it can be pasted into a shell."""
    context = click.get_current_context(silent=True)
    meta = context.meta if context else {}
    options = ["--storage", str(meta[STORAGE])] if meta.get(STORAGE) else []
    if words[0] in ("run", "resume", "fork", "answer"):  # what must not be stored by this one, must not by the next
        options += [part for text in meta.get(REDACT, ()) for part in ("--redact", text)]
    return shlex.join(["tinyllm", *words, *options])


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: the live view puts something else there."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _set_log_level(context: click.Context, _parameter: click.Parameter, level: str) -> None:
    context.meta[DEBUG] = level == "DEBUG"
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


storage_option = click.option(
    "--storage",
    metavar="DIR",
    callback=remember(STORAGE),
    help="Where traces are kept. Default: $TINYLLM_STORAGE, else ~/.tinyllm/data.",
)


def log_level_option_of(default: str) -> Callable[[F], F]:
    """The option, for a command that logs so much unless it is told otherwise."""
    return click.option(
        "--log-level",
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        default=default,
        callback=_set_log_level,
        expose_value=False,
        help=f"What is logged to stderr. Default: {default}.",
    )


log_level_option = log_level_option_of("WARNING")

trace_argument = click.argument("trace", metavar="TRACE", callback=remember(TRACE))

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs.")

graph_option = click.option(
    "--graph",
    metavar="FILE",
    callback=remember(GRAPH),
    help="The graph file. Default: the one that the trace was last executed with.",
)

accept_option = click.option(
    "--accept-graph-change",
    is_flag=True,
    help="Go on although the graph's shape, its reducers or a node's version changed.",
)

set_option = click.option(
    "--set",
    "variables",
    metavar="NAME=JSON",
    multiple=True,
    callback=lambda _context, _parameter, value: parse_settings(value),
    help="Set a variable, for example --set limit=20 or --set 'lang=\"en\"'. May be repeated.",
)

answer_option = click.option(
    "--answer",
    "answers",
    metavar="[NAME=]JSON",
    multiple=True,
    callback=lambda _context, _parameter, value: parse_answers(value),
    help="Answer the open question of that name or id, or the only one. May be repeated.",
)

durability_option = click.option(
    "--durability",
    type=click.Choice(["async", "sync", "exit"]),
    default="async",
    show_default=True,
    help="async: commit in the background. sync: commit each step before the next. exit: only at the end.",
)

kill_after_option = click.option(
    "--kill-after",
    type=click.IntRange(min=1),
    metavar="N",
    help="To rehearse a crash: SIGKILL this process when N steps of the trace are durable (and were not at its start).",
)


redact_option = click.option(
    "--redact",
    metavar="NAME|/REGEX/",
    multiple=True,
    callback=remember(REDACT),
    help="Neither store nor log what stands under NAME, in which * stands for any characters, or parts of texts that "
    "REGEX matches. May be repeated.",
)


def rules_of(texts: tuple[str, ...]) -> list[str | re.Pattern[str]]:
    """What `--redact` says, as the setting of that name.

    :raises click.BadParameter: a regular expression does not parse.
    """
    found: list[str | re.Pattern[str]] = []
    for text in texts:
        try:
            is_regex = len(text) > 2 and text[0] == text[-1] == "/"
            found.append(re.compile(text[1:-1]) if is_regex else text)
        except re.error as error:
            raise click.BadParameter(f"{text} is no regular expression: {error}") from None
    return found


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, listed in the help in this order."""

    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """`name=json` texts as a mapping.

    :raises click.BadParameter: showing how the text is written for a shell.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=JSON; write for example --set limit=20")
        found[name] = parse_json(value, "--set", f"{name}=")
    return found


def parse_json(text: str, option: str | None = None, name: str = "") -> Any:
    """The JSON value that `text` is, which stood behind `name` after `option`.

    :raises click.BadParameter: showing how the text itself is written for a shell.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        quoted = shlex.quote(f"{name}{json.dumps(text, ensure_ascii=False)}")
        example = quoted if option is None else f"{option} {quoted}"
        raise click.BadParameter(f"{text!r} is not JSON; for this text write {example}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_answers(texts: tuple[str, ...]) -> list[tuple[str | None, Any]]:
    """`name=json`, or `json` alone, as pairs.

    A text cannot be both: a `=` in JSON is inside of a string, and what comes after it is then no JSON.

    :raises click.BadParameter: as `parse_settings`, or a name comes twice.
    """
    found: list[tuple[str | None, Any]] = []
    for text in texts:
        name, value = _split_answer(text)
        if name in (known for known, _ in found):
            raise click.BadParameter(f"{'one question' if name is None else repr(name)} is answered twice")
        found.append((name, value))
    return found


def _split_answer(text: str) -> tuple[str | None, Any]:
    for at in (-1, *(at for at, char in enumerate(text) if char == "=" and at)):  # a name may have a `=` in it
        try:
            return text[:at] if at > 0 else None, json.loads(text[at + 1 :], parse_constant=_refuse_constant)
        except ValueError:
            continue
    name, equals, value = text.partition("=")
    if name and equals:
        return name, parse_json(value, "--answer", f"{name}=")
    return None, parse_json(text, "--answer")


def parse_at(text: str) -> str | int:
    """A step as a number, a node or a label as it is written.

    :raises click.BadParameter: it can be none of them.
    """
    if text.isdecimal():
        return int(text)
    if not text or (text[0] in "+-" and text[1:].isdecimal()):
        raise click.BadParameter(f"{text!r} is no step, which is a whole number from 0, no node and no label")
    return text


at_option = click.option(
    "--at",
    required=True,
    metavar="NODE|STEP|LABEL",
    callback=lambda _context, _parameter, value: parse_at(value),
    help="Where it begins: before a node, after a step, or at the checkpoint of that label.",
)


def parse_task(text: str) -> str:
    """`TEXT`, `@FILE` or `-` (stdin).

    :raises click.BadParameter: the file cannot be read, or is not UTF-8.
    """
    if text != "-" and not text.startswith("@"):
        return text
    try:
        if text == "-":
            return sys.stdin.buffer.read().decode()
        return Path(text[1:]).expanduser().read_bytes().decode()
    except OSError as error:
        raise click.BadParameter(f"cannot read {text[1:]}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        source = "stdin" if text == "-" else text[1:]
        raise click.BadParameter(f"{source} is not UTF-8 text (byte {error.start})") from None


task_option = click.option(
    "--task",
    metavar="TEXT|@FILE|-",
    default="",
    callback=lambda _context, _parameter, value: parse_task(value),
    help="The input of the trace: a text, a file that holds it, or - for stdin. Default: an empty text.",
)
