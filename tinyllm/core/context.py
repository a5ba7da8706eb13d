"""The promised import path of contexts."""

from tinyllm.graph.context import ExecutionContext

__all__ = ["ExecutionContext"]
