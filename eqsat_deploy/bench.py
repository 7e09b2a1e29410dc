"""A comparison on this machine: the model in torch, and as engines the plain and the chosen form, timed in turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from eqsat_deploy.build import is_quantized
from eqsat_deploy.calling import arguments
from eqsat_deploy.deployment import Batch, comparable
from eqsat_deploy.engines import Engine
from eqsat_deploy.engines.race import Timing, race
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.stages import Stages
from eqsat_deploy.targets import find_engine

TORCH = "torch eager"


def compare(
    model: nn.Module,
    optimized: OptimizedModule,
    quantized: OptimizedModule,
    engine: str = "auto",
    *,
    batch: int = 1,
    baseline: bool = True,
    options: Mapping[str, Any] | None = None,
    seconds: float = 5.0,
) -> dict[str, Timing]:
    """Microseconds a call at batch size `batch`: the model in torch, then engines of the plain form in float and
    (with `baseline`) quantized, and of the chosen form.

    Args:
        model: the original.
        optimized: what `optimize` made of it.
        quantized: `optimized` after `quantize`; or `optimized` itself, to compare in float.
        engine: a name, or `auto` for the best this machine has.
        batch: the batch size.
        baseline: build the quantized plain form too.
        options: of the engine.
        seconds: how long to measure, all together.

    Raises:
        EngineError: the engine is not available or cannot compile a form.
    """
    maker, sizes = find_engine(engine), Batch(typical=batch)
    stages = Stages()
    precision = "INT8" if is_quantized(quantized) else "float"
    forms: dict[str, fx.GraphModule] = {}
    if (plain := comparable(optimized)) is not None:
        forms[f"plain, {maker.name} float"] = plain
    if baseline and precision == "INT8" and (plain := comparable(quantized)) is not None:
        forms[f"plain, {maker.name} INT8"] = plain
    forms[f"chosen, {maker.name} {precision}"] = quantized
    engines: dict[str, Engine] = {}
    for name, form in forms.items():
        with stages(f"build {name}"):
            engines[name] = maker.build(form, batch=sizes, options=options)
    signature = next(iter(engines.values())).signature
    args, kwargs = arguments(signature.call.batch(signature.zeros(batch)))
    with stages("race"), torch.no_grad():
        return race({TORCH: model, **engines}, args, kwargs, seconds=seconds, runs=10_000)


def comparison_table(timings: Mapping[str, Timing], batch: int) -> Any:
    """`timings` as a rich table."""
    from rich.table import Table

    table = Table("", title=f"batch {batch}, timed in turns", title_justify="left")
    for column in ("median ms", "quartiles", "times faster than torch"):
        table.add_column(column, justify="right")
    reference = timings.get(TORCH)
    for name, timing in timings.items():
        ratio = f"{reference.median / timing.median:.2f}" if reference is not None else "-"
        quartiles = f"{timing.lower / 1e3:.3f} .. {timing.upper / 1e3:.3f}"
        table.add_row(name, f"{timing.median / 1e3:.3f}", quartiles, ratio)
    return table
