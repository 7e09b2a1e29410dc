"""Errors of extraction. All of them are `EqsatError`s; messages name the e-node, e-class, file or argument."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 30
"""Of how many known names all are listed beside the near misses of an unknown one."""


class EqsatError(Exception):
    """Base of every error that eqsat-deploy raises on purpose."""


class UnknownNameError(EqsatError):
    """A name (cost model, rule, engine, extractor, model) is not known; the message lists near misses."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        said = [f"did you mean {' or '.join(map(repr, near))}?"] if near else []
        if len(names) <= SHOWN or not near:
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            said.append(f"known: {', '.join(names[:SHOWN]) or 'none'}{more}")
        super().__init__(f"unknown {kind} {name!r}: {' '.join(said)}")


class InputError(EqsatError):
    """Arguments, example inputs or calibration batches do not fit."""


class RegistrationError(EqsatError):
    """An entry point is registered twice, cannot be imported, or is not what its group is for."""


class ExtractionError(EqsatError):
    """Base of the errors of e-graphs, costs and solutions."""


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
