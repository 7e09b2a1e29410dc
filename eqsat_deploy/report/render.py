"""Rich renderables as plain text and as HTML for notebooks."""

from __future__ import annotations

import io
from typing import Any

STYLE = "font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 13px; line-height: 1.2; margin: 0"


def to_text(renderable: Any, width: int = 110) -> str:
    """What a terminal of `width` columns shows, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=False, force_jupyter=False)
    console.print(renderable)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined,no-any-return]


def to_html(renderable: Any, width: int = 110) -> str:
    """The same as preformatted HTML. Nothing is printed."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, record=True, force_jupyter=False)
    console.print(renderable)
    return console.export_html(
        inline_styles=True,
        code_format=f'<div style="overflow-x: auto"><pre style="{STYLE}">{{code}}</pre></div>',
    )
