"""Every error this package raises on purpose. Messages name the node, rule, file or argument and say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 30
"""Of how many known names all are listed beside the near misses of an unknown one."""


class EqsatError(Exception):
    """Base of all errors of eqsat-deploy."""


class CaptureError(EqsatError):
    """The model could not be turned into a graph."""


class InputError(EqsatError):
    """Example inputs, calibration batches or arguments do not fit the model."""


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


class RuleError(EqsatError):
    """A rewrite rule is malformed, or its application broke an invariant of the e-graph."""


class ExtractionError(EqsatError):
    """No form of the model can be extracted under the chosen cost model."""


class VerificationError(EqsatError):
    """The optimized module does not compute what the original computes."""


class QuantizationError(EqsatError):
    """Calibration data or quantization settings are unusable."""


class EngineError(EqsatError):
    """An engine is missing, or failed to build or run."""


class ArtifactError(EqsatError):
    """A saved artifact is incomplete, changed, or made for another version or device."""
