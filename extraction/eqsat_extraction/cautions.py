"""Warnings at the line of the caller's that led to them, however many of our own frames lie between."""

from __future__ import annotations

import sys
import warnings

OURS = "eqsat_"
"""What the names of our packages begin with."""


def caution(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of `message` at the line that called the outermost function of ours."""
    frame, level, outermost = sys._getframe(1).f_back, 2, 1
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(OURS):
            outermost = level
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=outermost + 2)
