"""Standard output for results alone: solvers and runtimes write to the same file descriptor, whatever they are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import UnsupportedOperation
from typing import TextIO


@contextmanager
def results_alone(quiet: bool = False) -> Iterator[TextIO]:
    """Inside, the stream that it gives is standard output, and what anybody else writes to standard output goes to
    standard error, or nowhere with `quiet`."""
    try:
        descriptor = sys.stdout.fileno()
    except (
        UnsupportedOperation,
        AttributeError,
        ValueError,
    ):  # a stand-in for standard output, which is nobody else's
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(descriptor)
    elsewhere = os.open(os.devnull, os.O_WRONLY) if quiet else os.dup(sys.stderr.fileno())
    os.dup2(elsewhere, descriptor)
    os.close(elsewhere)
    try:
        with os.fdopen(kept, "w", encoding=sys.stdout.encoding, closefd=False) as results:
            yield results
    finally:
        sys.stdout.flush()
        os.dup2(kept, descriptor)
        os.close(kept)
