"""The kinds of node a graph may name, and how their functions are called."""
