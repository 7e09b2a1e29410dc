"""Every error this package raises on purpose. Messages name the node, rule, file or argument and say what to do."""

from __future__ import annotations

from eqsat_extraction.errors import EqsatError as EqsatError
from eqsat_extraction.errors import InputError as InputError
from eqsat_extraction.errors import RegistrationError as RegistrationError
from eqsat_extraction.errors import UnknownNameError as UnknownNameError


class CaptureError(EqsatError):
    """The model could not be turned into a graph."""


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
