"""`cost="measured"`: kernels are built and timed on the engine at hand, and what they take is kept on disk.

What an engine says of its layers is summed for every kernel (`isolated` says how one stands alone). That is the small
protocol that an engine needs: `build`, `layers`, `version` and `device`. Kernels are told apart by what a cost model is
told of them, so that equal ones are measured once, in any model. A file each, under the engine, its version, the device
and the number of CPUs; it is written in one step, after its bundle was measured: an interruption loses one bundle, and
runs side by side at most do the same work twice.

Not every kernel is worth it: one that would have to be more than `DOUBT` times as fast as its price, for a form with it
to be the cheapest, keeps its price. So do kernels that cannot stand alone or that an engine fuses with what reads them,
and all that is left when `seconds` are over, which the next run goes on with. Prices of a table are multiplied by what
the measured kernels take over theirs (the median), since both meet in one sum.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from eqsat_deploy.cache import cache_folder, write
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import InputError
from eqsat_deploy.freeze import Space
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.isolated import Source
from eqsat_deploy.kernels import ENode
from eqsat_deploy.lower import Lowered
from eqsat_deploy.price import Priced, kernel_of, price, specs_of
from eqsat_deploy.processors import available
from eqsat_deploy.stages import Stages
from eqsat_deploy.targets import find_cost, find_engine, target_of
from eqsat_extraction import extract
from eqsat_extraction.cautions import caution
from eqsat_extraction.kernel import CostModel, Kernel
from eqsat_extraction.slack import slack

BUNDLE = 24
"""Kernels that are built together: a build takes about as long for one as for all of them."""
REPEATS = 3
"""How often a bundle is timed; the least counts, since what interrupts a kernel only adds."""
BEATS = 3
"""Kernels known already, the longest, that are timed again in every bundle: they tell how fast the machine is then."""
DOUBT = 2.0
SECONDS = 300.0

Choice = tuple[int, ENode]


def measured(table: str = "auto") -> Measured:
    """Kernels timed on the engine of the cost model `table`, which prices what is not measured.

    Raises:
        InputError: `table` prices for no engine.
        EngineError: this machine does not have the engine.
    """
    model = find_cost(table)
    target = target_of(model.name)
    if target is None:
        raise InputError(
            f"cost='measured:{table}': {model.name!r} prices for no engine that could be measured"
        )
    return Measured(model, find_engine(target.name), target.grid_here)


class Measured:
    """Prices of kernels measured on `engine`; what is not measured is priced by `table`."""

    def __init__(
        self,
        table: CostModel,
        engine: type[Engine],
        grid: IntegerGrid | None = None,
        *,
        seconds: float = SECONDS,
    ) -> None:
        self.table, self.engine, self.grid, self.seconds = table, engine, grid, seconds
        self.name, self.unit = f"measured:{table.name}", "us"
        self.float_dtype, self.int8 = table.float_dtype, table.int8
        self.times: dict[Kernel, float | None] = {}
        self.scale = 1.0
        self._folder: Path | None = None

    def price(self, kernel: Kernel) -> float:
        """Microseconds: as measured, or by the table where it was not. What is free or impossible there is so here."""
        known = self.times.get(kernel)
        return known if known is not None else self.scale * self.table.price(kernel)

    def measure(self, lowered: Lowered, space: Space, priced: Priced) -> None:
        """Measure what is worth it and not known yet, again and again, until nothing is: prices decide what is."""
        source = Source(lowered, space, self.table, priced.batch, self.grid)
        stages, stop, known = Stages(), time.monotonic() + self.seconds, -1
        while known < len(self.times):
            known, wanted = len(self.times), self._wanted(source, priced)
            if wanted and self._folder is None:
                self._folder = self._cache(source, wanted)
            left = {kernel: choice for kernel, choice in wanted.items() if not self._read(kernel)}
            for start in range(0, len(left), BUNDLE):
                bundle = list(left.items())[start : start + BUNDLE]
                if time.monotonic() > stop:
                    caution(
                        f"cost={self.name!r}: {len(left) - start} kernels are not measured after {self.seconds:g} s "
                        "and keep their prices; another run goes on"
                    )
                    known = len(self.times)
                    break
                with stages(f"measure kernels {start + 1} to {start + len(bundle)} of {len(left)}"):
                    self._keep(self._paced(source, bundle, wanted))
            ratios = [us / self.table.price(kernel) for kernel, us in self.times.items() if us]
            self.scale = median(ratios) if ratios else 1.0
            priced = price(space, self, batch=priced.batch)

    def _wanted(self, source: Source, priced: Priced) -> dict[Kernel, Choice]:
        """Kernels that may matter, those of the cheapest forms first."""
        specs = specs_of(source.space, self.table, priced.batch)
        bound, more = slack(priced.egraph, priced.costs)
        # What the bound may lack to the optimum, of which every kernel is wanted.
        lacking = extract(priced.egraph, priced.costs, extractor="greedy").cost - bound
        found: dict[Kernel, tuple[float, Choice]] = {}
        for index, (number, node) in enumerate(source.space.choices):
            cost = float(priced.costs[index])
            if not 0 < cost < inf or more[index] > lacking + cost * (1 - 1 / DOUBT):
                continue
            if source.can_isolate(number, node):
                kernel = kernel_of(specs, number, node)
                if kernel not in found or more[index] < found[kernel][0]:
                    found[kernel] = (float(more[index]), (number, node))
        ranked = sorted(found, key=lambda kernel: found[kernel][0])
        return {kernel: found[kernel][1] for kernel in ranked}

    def _cache(self, source: Source, wanted: dict[Kernel, Choice]) -> Path:
        """The folder of this engine, version, device and number of CPUs, which an engine of one kernel tells."""
        for number, node in wanted.values():
            with suppress(Exception):  # whatever a runtime raises: the next kernel may do
                engine = self.engine.build(source.isolate([(number, node)]).module)
                parts = (engine.name, engine.version, engine.device, f"{available()} CPUs")
                return cache_folder("kernels", *(re.sub(r"\W+", "-", part).strip("-") for part in parts))
        return cache_folder("kernels", self.engine.name, "unknown")

    def _paced(
        self, source: Source, bundle: Sequence[tuple[Kernel, Choice]], wanted: Mapping[Kernel, Choice]
    ) -> dict[Kernel, float | None]:
        """`_times` of a bundle at the pace of the machine when the kernels that are known were measured."""
        known = sorted((k for k in wanted if self.times.get(k)), key=lambda k: -(self.times[k] or 0.0))[
            :BEATS
        ]
        found = self._times(source, [*((kernel, wanted[kernel]) for kernel in known), *bundle])
        paces = [before / now for k in known if (before := self.times[k]) and (now := found[k])]
        pace = median(paces) if paces else 1.0
        return {kernel: us and us * pace for kernel, us in found.items() if kernel not in known}

    def _times(self, source: Source, kernels: Sequence[tuple[Kernel, Choice]]) -> dict[Kernel, float | None]:
        """Microseconds of kernels that are built together; None for one that cannot be, or that no layer names."""
        try:
            alone = source.isolate(choice for _, choice in kernels)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of ranges of one sample
                engine = self.engine.build(_quantized(alone.module))
                runs = [engine.layers(*alone.inputs) for _ in range(REPEATS)]
        except Exception:  # whatever a runtime raises costs the kernel that it is about
            if len(kernels) == 1:
                return {kernels[0][0]: None}
            half = len(kernels) // 2
            return {**self._times(source, kernels[:half]), **self._times(source, kernels[half:])}
        found: dict[Kernel, float | None] = {}
        for (kernel, _), nodes in zip(kernels, alone.nodes, strict=True):
            sums = [sum(la.microseconds for la in layers if nodes & set(la.nodes)) for layers in runs]
            found[kernel] = min(sums) or None
        return found

    def _read(self, kernel: Kernel) -> bool:
        """Learn what a kernel takes from the cache; False where that is not known."""
        if kernel in self.times:
            return True
        with suppress(OSError, ValueError, KeyError):
            self.times[kernel] = json.loads(self._file(kernel).read_text(encoding="utf-8"))["us"]
            return True
        return False

    def _keep(self, found: dict[Kernel, float | None]) -> None:
        for kernel, us in found.items():
            write(self._file(kernel), json.dumps({"kernel": repr(kernel), "us": us}))
        self.times |= found

    def _file(self, kernel: Kernel) -> Path:
        assert self._folder is not None
        return self._folder / f"{sha256(repr(kernel).encode()).hexdigest()[:32]}.json"


def _quantized(module: Any) -> Any:
    """With ranges of the values that it is timed on."""
    from eqsat_deploy.deployment import call_of, deployment
    from eqsat_deploy.quantization import quantize

    placement = deployment(module).placement
    if not placement.quantizers and not any(kernel.precision == "int8" for kernel in placement.kernels):
        return module
    return quantize(module, [call_of(module).batch(deployment(module).samples)], effort="fast")
