"""Exit codes."""

from __future__ import annotations

from eqsat_deploy.errors import (
    ArtifactError,
    CaptureError,
    EngineError,
    EqsatError,
    ExtractionError,
    VerificationError,
)

EXIT_CODES = """\
exit codes:
  0    done
  1    a bug in eqsat-deploy: run again with --debug and report it
  2    bad input: arguments, model, example inputs, rules or calibration data
  3    the model cannot be captured
  4    no verified form: extraction or verification failed
  5    the engine is missing or failed
  6    the artifact or the disk
  130  interrupted
"""
OK, BUG, USAGE, INTERRUPTED = 0, 1, 2, 130
CODES: tuple[tuple[type[BaseException], int], ...] = (
    (CaptureError, 3),
    (ExtractionError, 4),
    (VerificationError, 4),
    (EngineError, 5),
    (ArtifactError, 6),
    (EqsatError, USAGE),
    (OSError, 6),
)
