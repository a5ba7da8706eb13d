"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

STORAGE = "tinyllm.storage"
GRAPH = "tinyllm.graph"
DEBUG = "tinyllm.debug"
AGAIN = "tinyllm.again"
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
    storage = context.meta.get(STORAGE) if context else None
    return shlex.join(["tinyllm", *words, *(["--storage", str(storage)] if storage else [])])


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: the live view puts something else there."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


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

log_level_option = click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="WARNING",
    callback=_set_log_level,
    expose_value=False,
    help="What is logged to stderr. Default: WARNING.",
)

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
        try:
            found[name] = json.loads(value, parse_constant=_refuse_constant)
        except ValueError:
            example = shlex.quote(f"{name}={json.dumps(value, ensure_ascii=False)}")
            raise click.BadParameter(f"{value!r} is not JSON; for this text write --set {example}") from None
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_at(text: str) -> str | int:
    """A step as a number, a node as it is written.

    :raises click.BadParameter: it can be neither.
    """
    if text.isdecimal():
        return int(text)
    if not text[:1].isalpha():
        raise click.BadParameter(f"{text!r} is neither a node's id nor a step, which is a whole number from 0")
    return text


at_option = click.option(
    "--at",
    required=True,
    metavar="NODE|STEP",
    callback=lambda _context, _parameter, value: parse_at(value),
    help="Where it begins: before a node, or after a step.",
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
    help="The input of the trace: a text, a file that holds it, or - for stdin.",
)
