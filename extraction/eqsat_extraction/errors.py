"""Errors of extraction. All of them are `ValueError`s; messages name the e-node, e-class or file."""

from __future__ import annotations


class ExtractionError(ValueError):
    """Base of every error this package raises on purpose."""


class EGraphError(ExtractionError):
    """The arrays or the file do not describe an e-graph."""


class CostError(ExtractionError):
    """The costs do not fit the e-graph, or are negative or NaN."""


class InfeasibleError(ExtractionError):
    """Some root has no finite, acyclic derivation."""


class SolutionError(ExtractionError):
    """A solution is incomplete, cyclic or priced wrongly."""


class GymFormatWarning(UserWarning):
    """An extraction-gym file has a known defect that was worked around; the message says how."""
