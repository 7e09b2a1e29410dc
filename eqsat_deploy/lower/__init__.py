"""Lowering: a captured graph becomes rows of operator applications, hash-consed, ready for the e-graph."""

from eqsat_deploy.lower.graph import lower
from eqsat_deploy.lower.rows import Call, Hole, Lowered, Row, Rows, Term

__all__ = ["Call", "Hole", "Lowered", "Row", "Rows", "Term", "lower"]
