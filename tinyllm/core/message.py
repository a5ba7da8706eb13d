"""The promised import path of messages."""

from tinyllm.graph.messages import ErrorInfo, Message, MessagePayload, TaskPayload, TaskResponse

__all__ = ["ErrorInfo", "Message", "MessagePayload", "TaskPayload", "TaskResponse"]
