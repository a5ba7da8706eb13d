"""The promised import path of graphs."""

from tinyllm.graph.build import GraphBuilder
from tinyllm.graph.definition import Edge, Graph, Node

__all__ = ["Edge", "Graph", "GraphBuilder", "Node"]
