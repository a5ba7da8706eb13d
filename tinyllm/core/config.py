"""How an executor executes and records, and how a manager saves by hand."""

from __future__ import annotations

from functools import cached_property

import attrs

from tinyllm.actors.dispatch import Durability
from tinyllm.actors.schedule import Policy
from tinyllm.graph.redact import Redaction, Rule, Rules, redaction_of, rules
from tinyllm.graph.settings import OneOf, Whole, flag, refuse_unknown


@refuse_unknown
@attrs.frozen(kw_only=True)
class CheckpointConfig:
    """Settings of checkpoints: those of a `CheckpointManager`, and of an `Executor` too.

    :param checkpoint_interval_ms: milliseconds between checkpoints; 0: no interval.
    :param checkpoint_after_each_node: a checkpoint after every node.
    :param max_checkpoints_per_trace: how many of the newest are kept (the first, labelled and forked-from ones stay).
    :param durability: `async`: commits run beside the nodes, at most 64 steps of a trace are at risk. `sync`: the next
        node starts after the commit. `exit`: only admission, pause, failure and end are written. (What is saved by hand
        is durable when the call returns, in every mode.)
    :param redact: what must not be stored or logged. A text is a name (of a variable, a key, a field, a question), in
        which `*`, `?` and `[...]` stand for characters, in any case: what stands under it becomes `[redacted]`. A
        compiled regular expression is for parts of texts. What is redacted is so for the nodes behind it, too.
    :raises ConfigError: a value out of its range.
    :raises UnknownSetting: a setting that there is not, with the nearest that there is.
    """

    checkpoint_interval_ms: int = attrs.field(default=5000, validator=Whole(0))
    checkpoint_after_each_node: bool = attrs.field(default=True, validator=flag)
    max_checkpoints_per_trace: int = attrs.field(default=100, validator=Whole(1))
    durability: Durability = attrs.field(default="async", validator=OneOf(("async", "sync", "exit")))
    redact: tuple[Rule, ...] = attrs.field(default=(), converter=rules, validator=Rules())

    @cached_property
    def redaction(self) -> Redaction | None:
        return redaction_of(self.redact)


@refuse_unknown
@attrs.frozen(kw_only=True)
class ExecutorConfig(CheckpointConfig):
    """Settings of an `Executor`: those of `CheckpointConfig`, and

    :param fail_fast: when a node has failed for good, cancel the others at once, instead of letting them end (30 s).
    :param debug_mutation: after each node, check that it changed nothing that it was lent. For tests.
    """

    fail_fast: bool = attrs.field(default=False, validator=flag)
    debug_mutation: bool = attrs.field(default=False, validator=flag)

    @property
    def policy(self) -> Policy:
        return Policy(
            each_node=self.checkpoint_after_each_node,
            interval=self.checkpoint_interval_ms / 1000,
            durability=self.durability,
            keep=self.max_checkpoints_per_trace,
        )
