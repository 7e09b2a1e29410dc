"""Rows as a table of pandas, for those who have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eqsat_deploy.errors import EqsatError


def frame(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows as a `pandas.DataFrame`.

    Raises:
        EqsatError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise EqsatError('tables need pandas: pip install "eqsat-deploy[research]"') from error
    return pandas.DataFrame(list(rows))
