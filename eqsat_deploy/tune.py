"""Tuning: the cheapest distinct forms by prediction and the plain ones, all built and raced; the fastest is taken.

The cost model proposes and the hardware disposes. A form is chosen before it is quantized in earnest: what an engine
takes depends on where INT8 is, hardly on the scales, so that ranges of the example inputs do to time it, and
calibration, training and accuracy budgets are about one form only. `build` still compares that one with the plain form.

Every form is verified like the one that is returned, and its engine compared with its module (`parity`). One that fails
anywhere costs itself alone. Engines run in one process: calls of processes that run one after another see different
machines, and processes side by side share the cores.

Every form runs in several copies of its engine. Five engines of one form (ResNet-18 in INT8, OpenVINO 2026.4.1, one
thread, a busy machine) took 2.8 to 3.3 ms, each the same time in one race and the next: where their memory came to lie
decides. So one that is loaded again elsewhere may be another, and what is compared is what a form takes, not an engine.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from torch import fx

from eqsat_deploy.build import faithful, timed
from eqsat_deploy.deployment import Batch, call_of, deployment
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.engines.race import RULE, Timing, winner
from eqsat_deploy.errors import EngineError
from eqsat_deploy.journal import Journal, journal
from eqsat_deploy.price import Floating, price
from eqsat_deploy.processors import available
from eqsat_deploy.search import Search
from eqsat_deploy.stages import Stages
from eqsat_extraction import Solution, extract, k_best
from eqsat_extraction.cautions import caution
from eqsat_extraction.kbest import distance

DIVERSITY = 0.05
"""The share of e-nodes in which forms differ: the cheapest ones but for that are one form with its ties broken
otherwise (of ResNet-18 and MobileNetV3 the four cheapest cost the same)."""
COPIES = 3
SECONDS = 30.0
ROUNDS = 1000
PLAIN, IN_FLOAT = "plain", "plain in float"

Made = Callable[[Search], fx.GraphModule]


@dataclass(frozen=True)
class Form:
    """A contestant: what was chosen, and the module of it."""

    name: str
    found: Search
    module: fx.GraphModule

    @property
    def identity(self) -> str:
        """What an engine makes of two forms is the same where this is."""
        placed = [(kernel.nodes, kernel.precision) for kernel in deployment(self.module).placement.kernels]
        return repr((self.module.code, placed, deployment(self.module).placement.quantizers))

    @property
    def integer(self) -> bool:
        """Whether anything in it is to be INT8."""
        placement = deployment(self.module).placement
        return bool(placement.quantizers) or any(k.precision == "int8" for k in placement.kernels)


class Copies:
    """`engine` and others that are loaded from its files, of which each call takes one at random."""

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine, self.draw = engine, Random(0)
        self.all = [engine]
        with TemporaryDirectory() as folder:
            if count > 1:
                engine.save_files(Path(folder))
            for _ in range(count - 1):
                self.all.append(type(engine).load_files(Path(folder), engine.signature, engine.options))
        for each in self.all:
            each.warm([None])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the engine returns."""
        return self.draw.choice(self.all)(*args, **kwargs)


def contestants(kept: Search, plain: Search, count: int, made: Made) -> tuple[Form, ...]:
    """`count` distinct forms from the cheapest on, with the form of `kept` the first of them, and the plain form as it
    was chosen and in float; those that are the same to an engine once."""
    searches = {f"form {number}": found for number, found in enumerate(_cheapest(kept, count), 1)}
    in_float = price(plain.space, Floating(plain.priced.model), batch=plain.priced.batch)
    chosen = extract(in_float.egraph, in_float.costs, extractor="greedy")
    searches |= {PLAIN: plain, IN_FLOAT: replace(plain, priced=in_float, solution=chosen)}
    distinct: dict[str, Form] = {}
    for name, found in searches.items():
        form = Form(name, found, made(found))
        distinct.setdefault(form.identity, form)
    return tuple(distinct.values())


def _cheapest(kept: Search, count: int) -> Iterator[Search]:
    """`kept`, and others of its e-graph that are as far from it and from each other as `DIVERSITY` asks."""
    yield kept
    if count < 2:
        return
    limits, solutions = kept.limits, [kept.solution]
    for other in k_best(kept.priced.egraph, kept.priced.costs, count, diversity=DIVERSITY, **limits.bounds):
        if len(solutions) < count and all(distance(other, known) >= DIVERSITY for known in solutions):
            solutions.append(other)
            yield replace(kept, solution=_bounded(other, kept))


def _bounded(solution: Solution, kept: Search) -> Solution:
    return replace(solution, bound=min(kept.solution.bound, solution.cost))


def fastest(
    forms: Sequence[Form],
    maker: type[Engine],
    sizes: Batch,
    check: Callable[[fx.GraphModule], object],
    key: str,
) -> tuple[Form, dict[str, Any]]:
    """The fastest of `forms` here, and the table of all as JSON values.

    `check` raises where a module is not the original; `key` tells this tuning from others, for one that was interrupted
    to go on. Where nothing can be built the first is taken, with a warning.
    """
    told = sha256(repr((key, maker.name, sizes, available(), [form.identity for form in forms])).encode())
    stages, load = Stages(), os.getloadavg()[0]
    engines: dict[str, Copies] = {}
    failures: dict[str, str] = {}
    timings: dict[str, Timing] = {}
    with journal(told.hexdigest()[:32]) as log:
        for form in forms:
            with stages(f"tune: {form.name}"):
                try:
                    engines[form.name] = Copies(_engine(form, maker, sizes, check, log), COPIES)
                except Exception as error:  # whatever a runtime raises costs the form
                    failures[form.name] = f"{type(error).__name__}: {error}"
                    log.failed(form.name, failures[form.name])
        if engines:
            with stages("tune: race"):
                try:
                    signature = next(iter(engines.values())).engine.signature
                    timings = timed(
                        engines, signature, sizes,
                        seconds=SECONDS, runs=ROUNDS, earlier=log.rounds(), keep=log.keep,
                    )  # fmt: skip
                except EngineError as error:
                    failures |= dict.fromkeys(engines, str(error))
        log.delete()
    best = winner(timings) if timings else forms[0].name
    if not timings:
        caution(f"tune: no form could be built and timed, the cheapest is kept: {failures}")
    one = engines[best].engine if best in engines else None
    return next(form for form in forms if form.name == best), {
        "winner": best,
        "engine": maker.name,
        "version": one and one.version,
        "device": one and one.device,
        "threads": available(),
        "batch": sizes.typical,
        "copies": COPIES,
        "rule": RULE,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "seconds": round(sum(stages.seconds.values()), 1),
        "forms": [_row(form, timings.get(form.name), failures.get(form.name, "failed while it was timed"))
                  for form in forms],
    }  # fmt: skip


def _engine(
    form: Form, maker: type[Engine], sizes: Batch, check: Callable[[fx.GraphModule], object], log: Journal
) -> Engine:
    """The engine of a form, as it was built before or built now."""
    known = log.known(form.name)
    if known is not None and "failed" in known:
        raise EngineError(known["failed"])
    if (engine := log.engine(form.name, maker)) is not None:
        return engine
    log.forget_rounds()
    with log.building(form.name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranges of a few samples, which are for timing
        check(form.module)
        module = form.module
        if form.integer:
            from eqsat_deploy.quantization import quantize

            sample = call_of(module).batch(deployment(module).samples)
            module = quantize(module, [sample], effort="fast")
        notes: list[str] = []
        engine = faithful(maker, module, sizes, None, form.name, notes)
        if engine is None:
            raise EngineError("; ".join(notes))
        log.built(form.name, engine)
    return engine


def _row(form: Form, timing: Timing | None, failure: str) -> dict[str, Any]:
    kernels = deployment(form.module).placement.kernels
    row: dict[str, Any] = {
        "form": form.name,
        "kernels": len(kernels),
        "int8": sum(kernel.precision == "int8" for kernel in kernels),
        "predicted": round(form.found.solution.cost, 3),
    }
    if timing is None:
        return row | {"failed": failure}
    over = timing.over or (1.0, 1.0, 1.0)
    return row | {
        "us": round(timing.median, 2),
        "quartiles": [round(timing.lower, 2), round(timing.upper, 2)],
        "over": [round(value, 4) if isfinite(value) else None for value in over],
        "rounds": timing.runs,
    }
