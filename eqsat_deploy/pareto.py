"""The front of predicted time against accuracy: what more and more kernels in float buy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from eqsat_deploy.deployment import call_of, deployment
from eqsat_deploy.quantization.calibrate import Held, read_batch
from eqsat_deploy.quantization.precision import leaving, sqnr
from eqsat_deploy.quantization.ptq import quantize
from eqsat_deploy.quantization.sensitivity import outputs_of, ranked
from eqsat_deploy.report.plotting import new_drawing
from eqsat_extraction.arguments import checked, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One way to quantize: the kernels `floats` in float, what all take by prediction, and the measured SQNR in dB of
    the output that loses most. `precision` is what `quantize` is told for it."""

    floats: tuple[str, ...]
    time: float
    sqnr: float

    @property
    def precision(self) -> dict[str, str]:
        """What `quantize(precision=...)` takes."""
        return dict.fromkeys(self.floats, "float")


@dataclass(frozen=True)
class Front:
    """Points of which none is both faster and more accurate than another, the fastest first; times in `unit`."""

    points: tuple[Point, ...]
    unit: str

    def __str__(self) -> str:
        lines = [f"{'predicted ' + self.unit:>14}  {'SQNR dB':>8}  in float"]
        lines += [f"{p.time:14.4g}  {p.sqnr:8.1f}  {len(p.floats)}" for p in self.points]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """The front as a figure.

        Raises:
            EqsatError: matplotlib is not installed.
        """
        figure = new_drawing(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([p.time for p in self.points], [p.sqnr for p in self.points], marker="o")
        for point in self.points:
            axes.annotate(f" {len(point.floats)} in float", (point.time, point.sqnr), va="top", fontsize=8)
        axes.set_xlabel(f"predicted {self.unit}")
        axes.set_ylabel("SQNR of the outputs, dB")
        axes.grid(alpha=0.3)
        return figure


@checked
def pareto(module: fx.GraphModule, batches: Iterable[Any], *, points: int = 6) -> Front:
    """Quantize `module` again and again, each time with half of the noise that was left put in float.

    Args:
        module: what `optimize` returned; it is not changed.
        batches: calibration data, as `quantize` takes it; kept, to go over it for every point.
        points: how many, INT8 wherever it pays among them.

    Raises:
        InputError: `points` is less than two.
        QuantizationError: as `quantize` does.
    """
    whole("points", points, least=2)
    kept, call = list(batches), call_of(module)
    held = Held(call.inputs)
    for batch in kept:
        held.add(read_batch(batch, call))
    sample = held.joined()
    expected = outputs_of(module, sample)
    found: list[Point] = []
    floats: tuple[str, ...] = ()
    for _ in range(points):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = quantize(module, kept, precision=dict.fromkeys(floats, "float"))
        time = sum(kernel.cost for kernel in deployment(quantized).placement.kernels)
        point = Point(floats, time, sqnr(expected, outputs_of(quantized, sample)))
        if not found or point.sqnr > found[-1].sqnr:
            found.append(point)
        left = ranked(quantized, [sample], point.sqnr)
        if not left.kernels:
            break
        floats = (*floats, *leaving(left, 0.5))
    report = deployment(module).report
    return Front(tuple(found), report.unit if report is not None else "")
