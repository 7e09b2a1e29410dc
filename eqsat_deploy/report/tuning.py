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
        name = f"{row['form']} *" if row["form"] == tuning["winner"] else row["form"]
        counts = (name, str(row["kernels"]), str(row["int8"]), f"{row['predicted']:,.1f}")
        if "failed" in row:
            shown.add_row(*counts, row["failed"], "", "")
            continue
        low, middle, high = row["over"]
        interval = f"{middle:.3f} ({low:.3f} .. {'?' if high is None else format(high, '.3f')})"
        shown.add_row(*counts, f"{row['us']:,.1f}", interval if row["form"] != tuning["winner"] else "", str(row["rounds"]))  # fmt: skip
    return shown
