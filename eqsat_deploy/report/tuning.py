"""The forms that were built and timed, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tuning_table(tuning: Mapping[str, Any], unit: str) -> Any:
    """What tuning found as a rich table."""
    from rich.table import Table

    title = f"forms timed on {tuning['engine']} at batch {tuning['batch']}, load {tuning['load'][1]:.1f}"
    shown = Table("form", title=title, title_justify="left")
    for column in ("kernels", "INT8", f"predicted {unit}", "median us", "over the fastest", "rounds"):
        shown.add_column(column, justify="right")
    for row in tuning["forms"]:
        won = row["form"] == tuning["winner"]
        counts = (f"{row['form']} *" if won else row["form"], str(row["kernels"]), str(row["int8"]))
        predicted = f"{row['predicted']:,.1f}"
        if "failed" in row:
            shown.add_row(*counts, predicted, row["failed"], "", "")
            continue
        low, middle, high = ("?" if value is None else f"{value:.3f}" for value in row["over"])
        interval = "" if won else f"{middle} ({low} .. {high})"
        shown.add_row(*counts, predicted, f"{row['us']:,.1f}", interval, str(row["rounds"]))
    return shown
