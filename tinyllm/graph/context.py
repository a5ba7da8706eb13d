"""`ExecutionContext`: what a trace has come to, as one object that a program may read, change and save."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from datetime import UTC, datetime
from typing import Any

import attrs

from tinyllm.errors import ConfigError
from tinyllm.graph.messages import Message
from tinyllm.graph.pages import Editable, Pages
from tinyllm.graph.settings import refuse_unknown
from tinyllm.graph.shown import markdown_of_context


def _changeable(items: Iterable[Any]) -> MutableSequence[Any]:
    """Lists stay the caller's own; what is kept elsewhere is read when it is looked at, or changed."""
    if isinstance(items, list | Editable):
        return items
    return Editable(items) if isinstance(items, Pages) else list(items)


@refuse_unknown
@attrs.define(kw_only=True)
class ExecutionContext:
    """The state of one trace: of one that an executor executed, or of work that a program does and saves by itself with
    a `CheckpointManager`.

    `visited_nodes` are the nodes that finished, in order; `step_count` counts them, and is as many unless it is given.
    `messages` and `visited_nodes` may be sequences that a store reads when they are looked at; changing them makes
    lists of them first. `start_time` is UTC, aware.

    :param config: accepted for programs that pass one, and ignored.
    :raises UnknownSetting: an argument that it does not have.
    """

    trace_id: str
    graph_id: str
    config: Any = attrs.field(default=None, repr=False, eq=False)
    current_node: str | None = None
    visited_nodes: MutableSequence[str] = attrs.field(factory=list, converter=_changeable)
    variables: dict[str, Any] = attrs.field(factory=dict)
    messages: MutableSequence[Message] = attrs.field(
        factory=list, converter=_changeable, repr=lambda messages: f"<{len(messages):,}>"
    )
    step_count: int = attrs.field()
    total_tokens_in: int = 0
    total_tokens_out: int = 0
    start_time: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    rev: int | None = attrs.field(default=None, init=False, repr=False, eq=False)
    """Of the trace's checkpoint that it was made from."""

    @step_count.default
    def _visits(self) -> int:
        return len(self.visited_nodes)

    # -- variables ---------------------------------------------------------------------------------------------

    def set_variable(self, key: str, value: Any) -> None:
        self.variables[key] = value

    def get_variable(self, key: str, default: Any = None) -> Any:
        return self.variables.get(key, default)

    def has_variable(self, key: str) -> bool:
        return key in self.variables

    # -- nodes -------------------------------------------------------------------------------------------------

    def visit_node(self, node_id: str) -> None:
        """Note that `node_id` is the current node: one step more."""
        self.current_node = node_id
        self.visited_nodes.append(node_id)
        self.step_count += 1

    def has_visited(self, node_id: str) -> bool:
        return node_id in self.visited_nodes

    def visit_count(self, node_id: str) -> int:
        """How often `node_id` was visited."""
        return self.visited_nodes.count(node_id)

    # -- messages ----------------------------------------------------------------------------------------------

    def add_message(self, message: Message) -> None:
        if not isinstance(message, Message):
            raise ConfigError("message", message, "a Message, with the node that it comes from")
        self.messages.append(message)

    def get_latest_message(self) -> Message | None:
        return self.messages[-1] if self.messages else None

    def get_messages_from_node(self, node_id: str) -> list[Message]:
        """What `node_id` sent, in order."""
        return [message for message in self.messages if message.source_node == node_id]

    # -- tokens ------------------------------------------------------------------------------------------------

    def add_tokens(self, tokens_in: int = 0, tokens_out: int = 0) -> None:
        self.total_tokens_in += tokens_in
        self.total_tokens_out += tokens_out

    # -- looking at it -----------------------------------------------------------------------------------------

    def _repr_markdown_(self) -> str:
        """What a notebook shows. It reads no message."""
        return markdown_of_context(self)
