"""Building: the chosen form and the plain one are compiled, timed in turns, and the faster is shipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from eqsat_deploy.deployment import Batch, comparable, deployment
from eqsat_deploy.engines import Engine
from eqsat_deploy.errors import EqsatError
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.stages import Stages
from eqsat_deploy.targets import find_engine

CHOSEN, PLAIN = "chosen", "plain"


def build(
    module: OptimizedModule,
    engine: str | type[Engine] = "auto",
    *,
    batch: Batch | int = 1,
    baseline: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """Compile `module`, and with `baseline` also the form that the engine reaches by itself; ship the faster.

    The cost model proposes and the hardware disposes: the two are timed in turns on this machine, so the result
    is never slower than doing nothing. What was realized (precision per kernel, latencies) is added to the report
    that the engine carries.

    Args:
        module: what `optimize` returned, usually after `quantize`. Unquantized, it compiles in float, with a warning.
        engine: a name, `auto` for the best this machine has, or an engine class.
        batch: the batch size to be fastest at, or the range to allow.
        baseline: compare with the plain form.
        options: of the engine.

    Raises:
        EngineError: the engine is not available, with how to get it, or cannot compile the chosen form.
    """
    stages = Stages()
    maker = find_engine(engine) if isinstance(engine, str) else engine
    sizes = Batch(typical=batch) if isinstance(batch, int) else batch
    if not is_quantized(module):
        warnings.warn(
            "the module is not quantized, so the engine computes in float: call quantize(batches) before build() "
            "for INT8"
            if _expected_int8(module)
            else "no kernel of the chosen form is faster in INT8 by the cost model, so the engine computes in float",
            stacklevel=3,
        )
    with stages("build"):
        built = {CHOSEN: maker.build(module, batch=sizes, options=options)}
    latency: dict[str, float] = {}
    plain = comparable(module) if baseline else None
    if plain is not None:
        with stages("baseline"):
            built |= _plain(lambda: maker.build(plain, batch=sizes, options=options))
        if PLAIN in built:
            with stages("race"):
                latency = _race(built, sizes)
    shipped = min(built, key=lambda name: latency.get(name, 0.0))
    result = built[shipped]
    result.report = _report(module, result, shipped, latency, stages)
    return result


def is_quantized(module: fx.GraphModule) -> bool:
    """Whether `module` holds Q/DQ."""
    from eqsat_deploy.quantization import FakeQuantize

    return any(isinstance(m, FakeQuantize) for m in module.modules())


def _expected_int8(module: OptimizedModule) -> list[str]:
    """Anchors of the kernels that are to compute in INT8."""
    return [kernel.anchor for kernel in deployment(module).placement.kernels if kernel.precision == "int8"]


def _plain(make: Callable[[], Engine]) -> dict[str, Engine]:
    """The plain form's engine; failing to get it costs the comparison, not the build."""
    try:
        return {PLAIN: make()}
    except EqsatError as error:
        warnings.warn(f"the plain form could not be built for comparison: {error}", stacklevel=4)
        return {}


def _race(built: Mapping[str, Engine], sizes: Batch) -> dict[str, float]:
    from eqsat_deploy.engines.race import race

    inputs = built[CHOSEN].signature.zeros(sizes.typical)
    return {name: timing.median for name, timing in race(built, inputs).items()}


def _report(
    module: OptimizedModule, engine: Engine, shipped: str, latency: dict[str, float], stages: Stages
) -> dict[str, Any]:
    """The optimization's report with what the engine made of it."""
    layers = engine.layers()
    expected = _expected_int8(module) if is_quantized(module) else []
    realized = {node for layer in layers if layer.precision == "int8" for node in layer.nodes}
    report = module.report.to_dict()
    report["engine"] = {
        "name": engine.name,
        "version": engine.version,
        "device": engine.device,
        "shipped": shipped,
        "latency": {k: round(v, 2) for k, v in latency.items()},
        "expected_int8": len(expected),
        "realized_int8": len(set(expected) & realized) if shipped == CHOSEN else None,
        "not_realized": sorted(set(expected) - realized) if shipped == CHOSEN else [],
        "layers": [{"name": la.name, "type": la.type, "precision": la.precision, "us": round(la.microseconds, 2)}
                   for la in layers],
        "seconds": {k: round(v, 3) for k, v in stages.seconds.items()},
    }  # fmt: skip
    return report
