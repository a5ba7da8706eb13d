"""The one place that turns an exception into what a person reads, and into an exit code."""

from __future__ import annotations

import logging
import re
import shlex
import sysconfig
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import click

from tinyllm.cli.options import AGAIN, DEBUG, GRAPH, REDACT, TRACE, command_line, rules_of
from tinyllm.cli.text import say

if TYPE_CHECKING:
    from tinyllm.errors import ExecutionError
    from tinyllm.graph.messages import ErrorInfo

DONE, FAILED, USAGE, PAUSED, NOT_FOUND, INTERRUPTED = 0, 1, 2, 3, 4, 130

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)


def report(error: Exception, context: click.Context) -> int:
    """Print `error` on stderr, with a line to paste where there is one, and return the exit code."""
    from tinyllm.errors import TinyLLMError

    if isinstance(error, TinyLLMError):
        text, commands, code = explain(error, context)
    else:
        text = f"unexpected {type(error).__name__}: {error}"
        again = "see the traceback above" if context.meta.get(DEBUG) else "add --log-level DEBUG to see the traceback"
        commands, code = [], FAILED
        text += f"\nThis is a fault in tinyllm, not in your graph; {again}."
    if context.meta.get(DEBUG):
        _logger(context).debug("the traceback", exc_info=error)
    say(f"error: {text}", err=True)
    for command in commands:
        say(f"  {command}", err=True)
    return code


def _logger(context: click.Context) -> logging.Logger:
    logger = logging.getLogger("tinyllm")
    if not (texts := context.meta.get(REDACT)):
        return logger
    from tinyllm.graph.redact import RedactedLogger, redaction_of

    redaction = redaction_of(rules_of(texts))
    return logger if redaction is None else RedactedLogger(logger, redaction)


def explain(error: Exception, context: click.Context) -> tuple[str, list[str], int]:
    """The text of one of our errors, commands that help, and the exit code."""
    from tinyllm import errors as e

    text = str(error)
    match error:
        case e.ExecutionError():
            advice, commands = remedy(error.trace_id, _info(error), resumable=error.resumable)
            return "\n".join([failure(error), *advice]), commands, FAILED
        case e.InvalidGraph():
            file = next((fault.file for fault in error.faults if fault.file and Path(fault.file).is_file()), None)
            return text, [f"tinyllm graph validate {shlex.quote(file)}"] if file else [], USAGE
        case e.GraphChanged():
            graph = context.meta.get(GRAPH)
            resume = ["resume", error.trace_id, *(["--graph", str(graph)] if graph else [])]
            return text, [command_line(*context.meta.get(AGAIN, resume), "--accept-graph-change")], USAGE
        case e.NodeMissing():
            return text, [command_line("checkpoints", error.trace_id)], USAGE
        case e.TraceMismatch() | e.TraceExists():
            return text, [command_line("show", error.trace_id), command_line("resume", error.trace_id)], USAGE
        case e.Quarantined():
            lines = [command_line("show", error.trace_id)]
            verb = ["resume", error.trace_id, "--force"] if error.releasable else ["checkpoints", error.trace_id]
            return text, [*lines, command_line(*verb)], FAILED
        case e.TraceEnded():
            return text, [command_line("show", error.trace_id)], USAGE
        case e.QuestionNotOpen():
            return text, [command_line("show", error.trace_id)], USAGE if error.open and error.several else NOT_FOUND
        case e.AlreadyAnswered():
            return text, [command_line("show", error.trace_id), command_line("resume", error.trace_id)], USAGE
        case e.AnswerRefused():
            return f"{text}; nothing was recorded", [command_line("show", str(context.meta[TRACE]))], USAGE
        case e.NothingToRun() | e.CheckpointInUse():
            return text, [command_line("checkpoints", error.trace_id)], USAGE
        case e.AmbiguousTrace():
            return text, [command_line("list")], USAGE
        case e.ConfigError() | e.ConditionError() | e.ValueNotStorable() | e.ValueMismatch() | e.GraphError():
            return text, [], USAGE
        case e.SupervisorGaveUp(usage=True):
            return text, [], USAGE
        case e.TraceNotFound():
            near = [command_line("show", trace_id) for trace_id in error.near[:1]]
            return text, near or [command_line("list")], NOT_FOUND
        case e.CheckpointNotFound():
            return text, [command_line("checkpoints", error.trace_id)], NOT_FOUND
        case e.StoreMissing():
            return f"{text}; `tinyllm run` makes one, --storage names another", [], NOT_FOUND
        case e.NotSupervised():
            where = f"no supervisor serves the store at {error.store}; start one:"
            return where, [command_line("supervise", *(error.graphs or ["GRAPH"]))], NOT_FOUND
        case e.TraceOwned() | e.OwnershipLost():
            again = context.meta.get(AGAIN, ["resume", error.trace_id])
            lines = [command_line("show", error.trace_id), command_line(*again)]
            if isinstance(error, e.TraceOwned) and again[0] in ("resume", "run"):
                text += "; from one that is stopped or hangs, --take-over takes it"
                lines.append(command_line("resume", error.trace_id, "--take-over"))
            return text, lines, FAILED
        case e.StorageFailed():
            return text, [command_line("resume", error.trace_id)], FAILED
        case e.RerunRefused():
            return text, [command_line("resume", error.trace_id, "--rerun-effects")], FAILED
        case e.TraceUnreadable():
            return text, [command_line("doctor")], FAILED
        case e.CheckpointDamaged():
            return text, [command_line("resume", error.trace_id), command_line("checkpoints", error.trace_id)], FAILED
        case _:
            return text, [], FAILED


def failure(error: ExecutionError) -> str:
    """Which node failed, of what, and where in the user's own code."""
    where = f" in node {error.node_id!r}" if error.node_id else ""
    when = " before; nothing was run now" if error.stored else ""
    lines = [f"trace {error.trace_id!r} failed{where} after step {error.step}{when}"]
    info = _info(error)
    lines.append(indent(f"{info.type}: {info.message}" if info is not None else error.reason, "  "))
    if info is not None and info.traceback and (place := users_line(info.traceback)):
        lines.append(f"  at {place}")
    return "\n".join(lines)


def _info(error: ExecutionError) -> ErrorInfo | None:
    return getattr(error.response, "error", None)


def remedy(
    trace_id: str, info: ErrorInfo | None, *, resumable: bool, command: Callable[..., str] = command_line
) -> tuple[list[str], list[str]]:
    """What to do about a failed trace: a line of text, and commands to paste."""
    resume = command("resume", trace_id)
    fork = None if info is None or info.node_id is None else command("fork", trace_id, "--at", info.node_id)
    if not resumable:
        return (["mend the graph; then run that node again in a fork:"], [fork]) if fork else ([], [])
    if info is not None and info.type == "ConditionError" and fork:
        advice = "everything up to there is kept, also the node's result; once the condition is mended, resume"
        return [advice, "to decide it again, or fork to run the node again:"], [resume, fork]
    cure = "once the cause is mended"
    if info is not None:
        cures = {
            "LimitReached": "once the limit in the graph is higher",
            "NodeTimeout": "once the node is faster, or its timeout in the graph longer",
        }
        cure = cures.get(info.type, cure)
    return [f"everything up to there is kept; {cure}:"], [resume]


def users_line(trace: str) -> str | None:
    """`file:line in function` of the innermost frame of a traceback's text that is neither Python's, a library's nor
    ours, else of the innermost."""
    paths = sysconfig.get_paths()
    foreign = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    foreign.append(str(Path(__file__).parents[1]))
    frames = list(_FRAME.finditer(trace))
    own = [f for f in frames if not f["file"].startswith(("<", *(f"{folder}/" for folder in foreign)))]
    if not frames:
        return None
    innermost = (own or frames)[-1]
    return f"{_near(innermost['file'])}:{innermost['line']} in {innermost['name']}"


def _near(file: str) -> str:
    """Relative to the working directory if it is inside it."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
