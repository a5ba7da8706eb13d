"""tinyllm runs long graphs of nodes that never lose their work. See `Executor`, `GraphBuilder` and `load_graph`.

The public names, each imported when it is first used: `import tinyllm` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm.core.builder import load_graph
    from tinyllm.core.checkpoint import CheckpointManager
    from tinyllm.core.config import CheckpointConfig, ExecutorConfig
    from tinyllm.core.executor import Executor
    from tinyllm.core.submit import submit
    from tinyllm.errors import (
        AlreadyAnswered,
        AmbiguousTrace,
        AnswerRefused,
        CheckpointDamaged,
        CheckpointInUse,
        CheckpointNotFound,
        CommitsMissing,
        ConditionError,
        ConfigError,
        DatabaseCorrupt,
        DatabaseLocked,
        DatabaseTooNew,
        ExecutionError,
        ExecutorBroken,
        ExitNotReached,
        GraphChanged,
        GraphError,
        InvalidGraph,
        LimitReached,
        NodeError,
        NodeMissing,
        NodeTimeout,
        NothingToRun,
        NotSupervised,
        OwnershipLost,
        Quarantined,
        QuestionNotOpen,
        RerunRefused,
        StorageError,
        StorageFailed,
        StorageNotOpen,
        StoragePathError,
        StorageUnavailable,
        StoreMissing,
        SupervisorSilent,
        TinyLLMError,
        TraceEnded,
        TraceExists,
        TraceMismatch,
        TraceNotFound,
        TraceOwned,
        TraceUnreadable,
        UnguardedMain,
        UnknownSetting,
        ValueMismatch,
        ValueMutated,
        ValueNotReadable,
        ValueNotStorable,
    )
    from tinyllm.graph.build import GraphBuilder
    from tinyllm.graph.context import ExecutionContext
    from tinyllm.graph.definition import Edge, Graph, Limits, Node, Retry
    from tinyllm.graph.messages import ErrorInfo, Message, MessagePayload, TaskPayload, TaskResponse
    from tinyllm.graph.node import NodeContext, Pause, Result, Send, lifespan, node
    from tinyllm.graph.questions import Question
    from tinyllm.storage.contract import CheckpointStorage, StorageConfig
    from tinyllm.storage.memory import InMemoryCheckpointStorage
    from tinyllm.storage.records import CheckpointRecord
    from tinyllm.storage.sqlite import SQLiteCheckpointStorage

__version__ = "0.1.0"

_HOMES = {
    "tinyllm.core.builder": ["load_graph"],
    "tinyllm.core.checkpoint": ["CheckpointManager"],
    "tinyllm.core.config": ["CheckpointConfig", "ExecutorConfig"],
    "tinyllm.core.executor": ["Executor"],
    "tinyllm.core.submit": ["submit"],
    "tinyllm.graph.build": ["GraphBuilder"],
    "tinyllm.graph.context": ["ExecutionContext"],
    "tinyllm.graph.definition": ["Edge", "Graph", "Limits", "Node", "Retry"],
    "tinyllm.graph.messages": ["ErrorInfo", "Message", "MessagePayload", "TaskPayload", "TaskResponse"],
    "tinyllm.graph.node": ["NodeContext", "Pause", "Result", "Send", "lifespan", "node"],
    "tinyllm.graph.questions": ["Question"],
    "tinyllm.storage.contract": ["CheckpointStorage", "StorageConfig"],
    "tinyllm.storage.memory": ["InMemoryCheckpointStorage"],
    "tinyllm.storage.records": ["CheckpointRecord"],
    "tinyllm.storage.sqlite": ["SQLiteCheckpointStorage"],
}
"""Where the public names live; those of the errors, which are all in one module, are not repeated here."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyAnswered",
    "AmbiguousTrace",
    "AnswerRefused",
    "CheckpointConfig",
    "CheckpointDamaged",
    "CheckpointInUse",
    "CheckpointManager",
    "CheckpointNotFound",
    "CheckpointRecord",
    "CheckpointStorage",
    "CommitsMissing",
    "ConditionError",
    "ConfigError",
    "DatabaseCorrupt",
    "DatabaseLocked",
    "DatabaseTooNew",
    "Edge",
    "ErrorInfo",
    "ExecutionContext",
    "ExecutionError",
    "Executor",
    "ExecutorBroken",
    "ExecutorConfig",
    "ExitNotReached",
    "Graph",
    "GraphBuilder",
    "GraphChanged",
    "GraphError",
    "InMemoryCheckpointStorage",
    "InvalidGraph",
    "LimitReached",
    "Limits",
    "Message",
    "MessagePayload",
    "Node",
    "NodeContext",
    "NodeError",
    "NodeMissing",
    "NodeTimeout",
    "NotSupervised",
    "NothingToRun",
    "OwnershipLost",
    "Pause",
    "Quarantined",
    "Question",
    "QuestionNotOpen",
    "RerunRefused",
    "Result",
    "Retry",
    "SQLiteCheckpointStorage",
    "Send",
    "StorageConfig",
    "StorageError",
    "StorageFailed",
    "StorageNotOpen",
    "StoragePathError",
    "StorageUnavailable",
    "StoreMissing",
    "SupervisorSilent",
    "TaskPayload",
    "TaskResponse",
    "TinyLLMError",
    "TraceEnded",
    "TraceExists",
    "TraceMismatch",
    "TraceNotFound",
    "TraceOwned",
    "TraceUnreadable",
    "UnguardedMain",
    "UnknownSetting",
    "ValueMismatch",
    "ValueMutated",
    "ValueNotReadable",
    "ValueNotStorable",
    "__version__",
    "lifespan",
    "load_graph",
    "node",
    "submit",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME.get(name, "tinyllm.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
