"""All entries of the registry: importing a module of makers enters them."""

from registry import graph_ops, queries, relational, row_ops, sampling
from registry.catalog import OPS, Op, Spec, grid

__all__ = ["OPS", "Op", "Spec", "graph_ops", "grid", "queries", "relational", "row_ops", "sampling"]
