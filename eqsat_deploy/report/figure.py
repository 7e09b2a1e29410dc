"""A matplotlib figure that notebooks show as it is. The only module that imports matplotlib at its top."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Drawing(Figure):
    """A figure with a PNG of its own, so that showing it needs neither pyplot nor a backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
