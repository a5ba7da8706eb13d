"""How an executor executes and records."""

from __future__ import annotations

from typing import Any

import attrs

from tinyllm.actors.dispatch import Durability
from tinyllm.actors.schedule import Policy
from tinyllm.errors import ConfigError


def _whole(low: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[int], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(attribute.name, value, f"a whole number of at least {low}")

    return check


def _flag(_: Any, attribute: attrs.Attribute[bool], value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(attribute.name, value, "True or False")


def _durability(_: Any, attribute: attrs.Attribute[str], value: Any) -> None:
    if value not in ("async", "sync", "exit"):
        raise ConfigError(attribute.name, value, "'async', 'sync' or 'exit'")


@attrs.frozen(kw_only=True)
class ExecutorConfig:
    """Settings of an `Executor`.

    :param checkpoint_interval_ms: milliseconds between checkpoints; 0: no interval.
    :param checkpoint_after_each_node: a checkpoint after every node.
    :param max_checkpoints_per_trace: how many of the newest are kept (the first, labelled and forked-from ones stay).
    :param durability: `async`: commits run beside the nodes, at most 64 steps of a trace are at risk. `sync`: the next
        node starts after the commit. `exit`: only admission, pause, failure and end are written.
    :param debug_mutation: after each node, check that it changed nothing that it was lent. For tests.
    :raises ConfigError: a value out of its range.
    """

    checkpoint_interval_ms: int = attrs.field(default=5000, validator=_whole(0))
    checkpoint_after_each_node: bool = attrs.field(default=True, validator=_flag)
    max_checkpoints_per_trace: int = attrs.field(default=100, validator=_whole(1))
    durability: Durability = attrs.field(default="async", validator=_durability)
    debug_mutation: bool = attrs.field(default=False, validator=_flag)

    @property
    def policy(self) -> Policy:
        return Policy(
            each_node=self.checkpoint_after_each_node,
            interval=self.checkpoint_interval_ms / 1000,
            durability=self.durability,
            keep=self.max_checkpoints_per_trace,
        )
