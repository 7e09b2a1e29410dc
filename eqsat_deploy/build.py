"""Building: the chosen form and the plain one are compiled and timed in turns; the faster is compared with its module
and shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from eqsat_deploy.calling import arguments
from eqsat_deploy.deployment import Batch, Signature, comparable, deployment, fingerprint, located
from eqsat_deploy.engines import Engine
from eqsat_deploy.engines.base import realized
from eqsat_deploy.engines.race import Timing, race, winner
from eqsat_deploy.errors import EngineError, EqsatError, InputError
from eqsat_deploy.parity import compare, first_departure
from eqsat_deploy.quantization.reconstruction import finished
from eqsat_deploy.stages import Stages
from eqsat_deploy.targets import find_engine
from eqsat_extraction.arguments import checked
from eqsat_extraction.cautions import caution

CHOSEN, PLAIN = "chosen", "plain"

DRAFT = 0.03
"""The part of its time that is added to that of a plain form which is a draft: scales and zero points cost it as much.
"""


@checked
def build(
    module: fx.GraphModule,
    engine: str | type[Engine] = "auto",
    *,
    batch: Batch | int = 1,
    baseline: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """Compile `module`, and with `baseline` also the form that the engine reaches by itself; ship that where it is
    faster for certain.

    What is shipped was compared with its module on real inputs (`parity`). An engine that departs, or does not compile,
    is compiled in its other ways; a form for which none holds is out of the race, and the report says why.

    The cost model proposes and the hardware disposes: the two are timed in turns on this machine, so that doing nothing
    would not have been faster. What was realized (precision per kernel, latencies) is added to the report
    that the engine carries.

    Args:
        module: what `optimize` returned, usually after `quantize`. Unquantized, it compiles in float, with a warning.
        engine: a name, `auto` for the best this machine has, or an engine class.
        batch: the batch size to be fastest at, or the range to allow.
        baseline: compare with the plain form.
        options: of the engine.

    Raises:
        EngineError: the engine is not available, with how to get it; it compiles neither form; or nothing it makes
            computes what the module computes, with the node at which it departs.
        InputError: `batch` is no size of a batch.
    """
    stages = Stages()
    module = located(module, torch.device("cpu"))  # which engines read weights on
    maker = find_engine(engine) if isinstance(engine, str) else engine
    sizes = _sizes(batch)
    integer = is_quantized(module)
    if not integer:
        caution(
            "the module is not quantized, so the engine computes in float: call quantize(batches) before build() "
            "for INT8"
            if _expected_int8(module)
            else "no kernel of the chosen form is faster in INT8 by the cost model, so the engine computes in float"
        )
    notes: list[str] = []
    fidelity = deployment(module).fidelity
    if fidelity and fidelity.doubts and fingerprint(module) == deployment(module).fingerprint:
        lost = f"in INT8, on calibration data, {'; '.join(fidelity.doubts)}"
        notes.append(lost)
        caution(
            f"{lost}: sensitivity() says where, and quantize() with accuracy_budget= or effort='best' loses less"
        )
    built: dict[str, Engine] = {}
    chosen: Engine | None = None
    failure: EngineError | None = None
    with stages("build"):
        try:
            chosen = faithful(maker, module, sizes, options, CHOSEN, notes)
        except EngineError as error:
            failure = error
    if chosen is not None:
        built[CHOSEN] = chosen
    plain = comparable(module) if baseline or chosen is None else None
    timings: dict[str, Timing] = {}
    if plain is not None and chosen is not None:
        # As it is fast to have: repaired and compared with its module it is only where it would be shipped.
        with stages("baseline"):
            rival = _plain(lambda: maker.build(plain, batch=sizes, options=options))
        if rival:
            with stages("race"):
                timings = timed(built | rival, chosen.signature, sizes, handicaps={PLAIN: 1 + DRAFT})
            if CHOSEN not in timings:
                notes.append(f"{CHOSEN}: out of the race, it failed while it was timed")
                built = {}
    form = module
    if plain is not None and (not built or _beaten(timings)):
        with stages("baseline"):
            form = finished(plain)
            built |= _plain(lambda: faithful(maker, form, sizes, options, PLAIN, notes))
        if len(built) > 1:
            with stages("race"):
                timings = timed(built, next(iter(built.values())).signature, sizes)
    if not built:
        raise failure or EngineError(_unfaithful(maker, module, sizes, options, notes))
    shipped = winner(timings) if len(built) > 1 else next(iter(built))
    result = built[shipped]
    latency = {name: timing.median for name, timing in timings.items()}
    result.report = _report(
        module, module if shipped == CHOSEN else form, result, shipped, latency, notes, stages
    )
    return result


def _beaten(timings: Mapping[str, Timing]) -> bool:
    """Whether the chosen form was slower for certain."""
    over = timings[CHOSEN].over if timings else None
    return over is not None and over[0] > 1


def _sizes(batch: object) -> Batch:
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise InputError(f"batch={batch!r}: needs a whole number of samples, or a Batch")
    return Batch(typical=batch)


def faithful(
    maker: type[Engine],
    module: fx.GraphModule,
    sizes: Batch,
    options: Mapping[str, Any] | None,
    name: str,
    notes: list[str],
) -> Engine | None:
    """An engine of `module` that computes what the module computes; None where no way of compiling it does.

    What was found on the way is added to `notes`.

    Raises:
        EngineError: it compiles in no way.
    """
    failures: list[EngineError] = []
    ways = ({}, *maker.fallbacks)
    for more in ways:
        how = " with " + ", ".join(f"{key}={value}" for key, value in more.items()) if more else ""
        try:
            engine = maker.build(module, batch=sizes, options={**(options or {}), **more})
        except EngineError as error:
            failures.append(error)
            notes.append(f"{name}{how}: does not compile: {error}")
            continue
        asked = engine.asked() if engine.changes else None
        notes += [f"{name}: changed on purpose: {change}" for change in engine.changes]
        found = compare(engine, module, integer=is_quantized(module), asked=asked)
        if found.holds:
            notes.append(
                f"{name}{how}: agrees with {'what was asked' if asked else 'its module'}: {found.decibels:.1f} dB"
            )
            return engine
        notes.append(
            f"{name}{how}: refused, it departs from its module: " + "; ".join(map(str, found.departures))
        )
    if len(failures) == len(ways):
        raise failures[0]
    return None


def _unfaithful(
    maker: type[Engine],
    module: fx.GraphModule,
    sizes: Batch,
    options: Mapping[str, Any] | None,
    notes: list[str],
) -> str:
    """Why nothing can be shipped, with the node at which the engine departs first."""
    first = first_departure(
        lambda part: maker.build(part, batch=sizes, options=options), module, integer=is_quantized(module)
    )
    where = (
        f"from node {first!r} on" if first is not None else "as a whole, though none of its parts does alone"
    )
    return f"engine {maker.name!r} does not compute what the module computes, {where}: {'; '.join(notes)}"


def is_quantized(module: fx.GraphModule) -> bool:
    """Whether `module` holds Q/DQ."""
    from eqsat_deploy.quantization import FakeQuantize

    return any(isinstance(m, FakeQuantize) for m in module.modules())


def _expected_int8(module: fx.GraphModule) -> list[str]:
    """Anchors of the kernels that are to compute in INT8."""
    return [kernel.anchor for kernel in deployment(module).placement.kernels if kernel.precision == "int8"]


def _plain(make: Callable[[], Engine | None]) -> dict[str, Engine]:
    """The plain form's engine; failing to get it costs the comparison, not the build."""
    try:
        engine = make()
        return {} if engine is None else {PLAIN: engine}
    except EqsatError as error:
        caution(f"the plain form could not be built for comparison: {error}")
        return {}


def timed(
    built: Mapping[str, Callable[..., Any]], signature: Signature, sizes: Batch, **limits: Any
) -> dict[str, Timing]:
    """A race of engines of one signature on zeros of the typical batch, until the winner is clear; `limits` are those
    of `race`.

    Raises:
        EngineError: none of them runs.
    """
    args, kwargs = arguments(signature.call.batch(signature.zeros(sizes.typical)))
    return race(built, args, kwargs, until_clear=True, **limits)


def _report(
    module: fx.GraphModule,
    form: fx.GraphModule,
    engine: Engine,
    shipped: str,
    latency: dict[str, float],
    notes: list[str],
    stages: Stages,
) -> dict[str, Any]:
    """The optimization's report with what the engine made of `form`, which is shipped."""
    known = deployment(module).report
    assert known is not None
    layers = engine.layers()
    expected = _expected_int8(module) if is_quantized(module) else []
    found = realized(deployment(module).placement.kernels, layers)
    ran = [found[anchor] for anchor in expected] if shipped == CHOSEN else []
    report = known.to_dict()
    report["engine"] = {
        "name": engine.name,
        "version": engine.version,
        "device": engine.device,
        "shipped": shipped,
        "notes": notes,
        "latency": {k: round(v, 2) for k, v in latency.items()},
        "expected_int8": len(expected),
        "realized_int8": ran.count("int8") if shipped == CHOSEN else None,
        "not_realized": sorted(a for a, p in zip(expected, ran, strict=False) if p not in ("int8", None)),
        "not_seen": ran.count(None),
        "kernels": [{"nodes": list(k.nodes), "precision": k.precision, "predicted": k.cost}
                    for k in deployment(form).placement.kernels],
        "layers": [{"name": la.name, "type": la.type, "precision": la.precision, "us": round(la.microseconds, 2)}
                   for la in layers],
        "seconds": {k: round(v, 3) for k, v in stages.seconds.items()},
    }  # fmt: skip
    return report
