"""A new matplotlib figure, where there is matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eqsat_deploy.errors import EqsatError

if TYPE_CHECKING:
    from eqsat_deploy.report.figure import Drawing


def new_drawing(**options: Any) -> Drawing:
    """An empty figure, with what `matplotlib.figure.Figure` takes.

    Raises:
        EqsatError: matplotlib is not installed.
    """
    try:
        from eqsat_deploy.report.figure import Drawing
    except ImportError as error:
        raise EqsatError('drawing needs matplotlib: pip install "eqsat-deploy[notebooks]"') from error
    return Drawing(**options)
