"""The promised import path of `load_graph`."""

from tinyllm.graph.file import load_graph

__all__ = ["load_graph"]
