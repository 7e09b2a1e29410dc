"""HiGHS without its banner."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

_ALONE = threading.Lock()


def solver(**options: Any) -> Any:
    """A `highspy.Highs` with these options that prints nothing.

    As of 1.16 it announces itself on the process's standard output when it is constructed, before it can be told not
    to: the file descriptor leads nowhere for as long.
    """
    from highspy import Highs

    with _ALONE:  # of two that undo each other's redirection, the second undoes it to nowhere
        try:
            kept = os.dup(1)
        except OSError:  # closed, as a daemon's
            highs: Any = cast(Any, Highs)()
        else:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            try:
                highs = cast(Any, Highs)()
            finally:
                os.dup2(kept, 1)
                os.close(kept)
    for option, setting in {"output_flag": False, "threads": 1, "random_seed": 0, **options}.items():
        highs.setOptionValue(option, setting)
    return highs
