"""How what a person handles shows itself: at a prompt in one short line, in a notebook as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from tinyllm.graph.tags import short

if TYPE_CHECKING:
    from tinyllm.graph.context import ExecutionContext
    from tinyllm.graph.messages import ErrorInfo, TaskResponse

_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$]")
"""What means something in the middle of a line, in a notebook's tables and formulas too."""


def call_of(instance: Any, *hidden: str) -> str:
    """The `repr` of an attrs instance, without the fields that are None or empty, and those that are `hidden`."""
    fields = [field.name for field in attrs.fields(type(instance)) if field.name not in hidden]
    said = [(name, getattr(instance, name)) for name in fields]
    return f"{type(instance).__name__}({', '.join(f'{name}={short.repr(x)}' for name, x in said if not _unsaid(x))})"


def _unsaid(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def line_of(response: TaskResponse) -> str:
    """The `repr` of a response: what became of the trace, on one line."""
    head = f"<TaskResponse {response.trace_id!r} {response.status}, {_steps(response)}"
    if response.error is not None:
        where = f" in {response.error.node_id!r}" if response.error.node_id else ""
        return f"{head}: {response.error.type}{where}, {short.repr(response.error.message)}>"
    if response.questions:
        return f"{head}: asks {', '.join(question.name for question in response.questions)}>"
    return f"{head}: {short.repr(response.content)}>" if response.success else f"{head}>"


def markdown_of(response: TaskResponse) -> str:
    """The response as a table; below it what it asks, its error, or its content: a text as Markdown, else JSON."""
    cells = {"trace": response.trace_id, "status": response.status, "steps": f"{response.nodes_executed:,}"}
    cells["time"] = f"{response.total_latency_ms / 1000:,.1f} s"
    if response.total_tokens_in or response.total_tokens_out:
        cells["tokens"] = f"{response.total_tokens_in:,} in, {response.total_tokens_out:,} out"
    parts = [_table(list(cells), [list(cells.values())])]
    if response.questions:
        parts.append(_table(["question", "prompt"], [[asked.name, asked.prompt] for asked in response.questions]))
    if response.error is not None:
        parts.append(_error(response.error))
    if response.success and response.value is not None:
        parts.append(response.content if isinstance(response.value, str) else _fenced(response.content, "json"))
    return "\n\n".join(parts)


def markdown_of_context(context: ExecutionContext) -> str:
    """The context as a table of its figures and the names of its variables."""
    return _table(
        ["trace", context.trace_id],
        [
            ("graph", context.graph_id),
            ("current node", context.current_node or "none"),
            ("steps", f"{context.step_count:,}"),
            ("messages", f"{len(context.messages):,}"),
            ("variables", ", ".join(context.variables) or "none"),
            ("tokens", f"{context.total_tokens_in:,} in, {context.total_tokens_out:,} out"),
            ("started", f"{context.start_time:%Y-%m-%d %H:%M:%S %Z}"),
        ],
    )


def _steps(response: TaskResponse) -> str:
    return f"{response.nodes_executed:,} step{'s' * (response.nodes_executed != 1)}"


def _error(error: ErrorInfo) -> str:
    where = f" in **{_escaped(error.node_id)}**" if error.node_id else ""
    return f"Failed{where}:\n\n{_fenced(error.traceback or f'{error.type}: {error.message}', 'text')}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    first, *others = [[_escaped(cell) for cell in row] for row in (heads, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(heads), *others))


def _escaped(text: str) -> str:
    """`text` on one line, in which nothing is Markdown."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _fenced(text: str, language: str) -> str:
    """`text` in a fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
