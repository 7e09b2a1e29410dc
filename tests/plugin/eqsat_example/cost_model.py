"""A cost model: kilobytes moved, and operations, of which INT8 does four for one in float."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat_extraction.kernel import Kernel, Kind


@dataclass(frozen=True)
class Traffic:
    """Kilobytes that a launch moves, and one for ten operations a byte in float."""

    name: str = "traffic"
    unit: str = "kB"
    float_dtype: str = "float32"
    int8: bool = True

    def price(self, kernel: Kernel) -> float:
        """Kilobytes of one launch; views move nothing."""
        if kernel.kind is Kind.VIEW or kernel.output.constant:
            return 0.0
        integer = bool(kernel.inputs) and kernel.inputs[0].dtype == "int8"
        return kernel.bytes / 1e3 + kernel.flops / (4e4 if integer else 1e4)


def traffic() -> Traffic:
    """The model; it has no options."""
    return Traffic()
