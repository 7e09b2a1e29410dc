"""Post-training quantization: quantizers where the placement has them, scales from calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.calling import batch_size
from eqsat_deploy.deployment import (
    SAMPLES,
    InputSpec,
    call_of,
    comparable,
    copied,
    deployment,
    device_of,
    fingerprint,
    record,
    samples_of,
)
from eqsat_deploy.errors import QuantizationError, UnknownNameError
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.noise import Fidelity
from eqsat_deploy.processors import saturating
from eqsat_deploy.quantization.calibrate import SAMPLE, calibrate, channels_last, enough
from eqsat_deploy.quantization.fake_quantize import FakeQuantize
from eqsat_deploy.quantization.observers import OBSERVERS, Extremes, Observer
from eqsat_deploy.quantization.places import Nodes, grid_groups, insert_watches, quantize_weight
from eqsat_deploy.quantization.precision import (
    MOST,
    MOST_FOR_BEST,
    AccuracyBudget,
    Spending,
    affordable,
    economical,
    leading,
    leaving,
    patterns_of,
    sqnr,
    with_floats,
    without_float_operands,
    worth,
)
from eqsat_deploy.quantization.reconstruction import Choices, Draft, place_first_ranges, reconstruct
from eqsat_deploy.quantization.reference import Reference
from eqsat_deploy.quantization.sensitivity import outputs_of, ranked
from eqsat_deploy.quantization.tuning import TUNED, tuned
from eqsat_deploy.stages import Stages
from eqsat_extraction.arguments import checked, instance
from eqsat_extraction.cautions import caution

ANY_GRID = IntegerGrid(unsigned=True, asymmetric=True, channels=True)
"""Where a module has no target; what this machine cannot compute is left out."""
EFFORTS = ("fast", "balanced", "best")

KEPT = 32 * 2**20
"""Bytes of inputs that are kept with a plain form, which may have to be repaired."""


@checked
def quantize(
    module: fx.GraphModule,
    batches: Iterable[Any],
    *,
    effort: str = "balanced",
    grid: IntegerGrid | None = None,
    observer: str | Callable[[], Observer] | None = None,
    precision: Mapping[str, str] | None = None,
    accuracy_budget: float | AccuracyBudget | None = None,
    learnable: bool = False,
) -> fx.GraphModule:
    """A copy of `module` that rounds to INT8 exactly where its record says so.

    Every `Quantizer` becomes one `FakeQuantize` between the tensor and its readers, and the anchor of every
    int8 kernel rounds its weight per output channel; biases stay float. Quantizers whose tensors meet in one
    concatenation share a grid. `meta` is kept. Training the result is quantization-aware training.

    Args:
        module: a rebuilt module; it is not changed.
        batches: calibration data, one forward pass each, in the model's own structure as `example_inputs` are: a
            tensor, a tuple or list of arguments, or a dict of them by name; or one of these with labels, last or under
            a name of labels. Any batch size, and sequences of every length that there will be: short ones have the
            greatest values after an attention. They are read once, and the first `SAMPLE` samples are held until it is
            done, a few of them for good: what engines are compared with the module on.
        effort: `fast` takes the observed ranges; `balanced` moves scales per channel into weights and chooses the
            ranges of matrix products, both by the error at the outputs of what reads the tensor, and corrects biases
            (`reconstruction`); `best` may keep more kernels in float, the first ones among them, and then trains scales
            and biases to give the float outputs on up to `tuning.TUNED` samples, keeping what is best on samples left
            out. `fast` takes the time of two passes over the data, `balanced` that of one, and of three passes over
            `SAMPLE` samples more (half as many images, where they are great), or about seven where the outputs have
            lost much, `best` of about 20 passes forward and back over its samples more; it leaves out the plain form,
            which `build` then does not compare with. The plain form is repaired when `build` is to ship it, on samples
            that are kept.
        grid: the codes that kernels read, the module's target's when missing (any, where it has no target).
        observer: `minmax`, `percentile`, `entropy`, `mse`, or a function returning a new `Observer`: takes the range
            from it alone. When missing, the range is chosen as `effort` says.
        precision: `"float"` for kernels that stay in float, by the names of their nodes or patterns of them such as
            `layer4_*` (`fnmatch`); `sensitivity` says which are worth it. Unless `effort="fast"`, others whose
            rounding costs the outputs more than float would cost time (`economical`) are kept in float as well where
            the outputs are less than `precision.ENOUGH` dB above their error and are seen to win by it.
        accuracy_budget: keep in float what has to be for the outputs to lose no more than this on calibration data:
            an SQNR in dB, or an `AccuracyBudget` with another metric.
        learnable: scales are parameters that training adapts (LSQ).

    Raises:
        QuantizationError: the budget cannot be kept; no batches, or one that does not fit the inputs; NaN or infinity,
            naming the batch or the node; a placement that names what the module does not have; a module that is
            quantized already.
        UnknownNameError: no effort, observer, precision or kernel of that name.
    """
    if effort not in EFFORTS:
        raise UnknownNameError("effort", str(effort), EFFORTS)
    patterns = patterns_of(deployment(module).placement, precision or {})
    if any(isinstance(child, FakeQuantize) for child in module.modules()):
        raise QuantizationError(
            "the module is quantized already: call quantize() on what optimize() returned, which is unchanged"
        )
    plain = comparable(module)
    known = deployment(module)
    grid = grid or known.grid or replace(ANY_GRID, saturating=saturating())
    make_observer = _observer_factory(observer)
    budget = AccuracyBudget(accuracy_budget) if isinstance(accuracy_budget, float | int) else accuracy_budget
    both = (module,) if plain is None or effort == "best" else (module, plain)
    forms = [_Watched(form, patterns, grid, make_observer) for form in both]
    placed = known.placement
    if not placed.quantizers and not any(kernel.precision == "int8" for kernel in placed.kernels):
        caution(
            "quantize() makes nothing INT8: no kernel of the chosen form is faster in INT8 by the cost model "
            f"(optimized for {known.target or 'no target'}); the result computes in float"
        )
    keep = TUNED if effort == "best" else SAMPLE
    stages = Stages()
    # A plain form may never be shipped: where it would see its samples again before, it is only shown a few.
    repaired = effort != "fast" and observer is None
    first, *rest = forms
    watching = [first] if repaired else forms

    def watch(inputs: Sequence[Tensor]) -> None:
        for form in watching:
            form.shown(inputs)

    with stages("calibrate"):
        held = calibrate(
            watch, device_of(module), call_of(module), batches, keep, without_sample=effort != "fast"
        )
        sample = samples_of(known.inputs, held, enough(SAMPLE, known.inputs, held))
        if effort != "fast":
            first.reference = Reference(first.module, sample)
            for other in watching[1:]:
                other.shown(sample)
    choices: Choices = {}
    with stages("quantize"):
        quantized = first.quantized(choices)
        if budget is not None:
            while floats := _beyond(budget, module, quantized, sample):
                first, *rest = [form.with_floats(floats) for form in (first, *rest)]
                quantized = first.quantized(choices)
        elif better := _economical(first, effort, sample, choices):
            first, *rest = better, *(form.with_floats(better.floats) for form in rest)
            quantized = first.module
        for unseen in rest if repaired else ():
            unseen.shown(samples_of(known.inputs, held))
        others = [form.drafted(effort, held) for form in rest]
    fidelity = first.fidelity
    if effort == "best":
        with stages("tune"):
            quantized = tuned(quantized, module, held)
        fidelity = Fidelity.of(zip(outputs_of(module, sample), outputs_of(quantized, sample), strict=True))
    if fidelity and fidelity.doubts and budget is None:
        caution(
            f"in INT8, on calibration data, {'; '.join(fidelity.doubts)}: sensitivity() ranks the kernels; "
            "effort='best' trains scales, and accuracy_budget=dB or precision={name: 'float'} keeps some in float"
        )
    for form in (quantized, *others) if learnable else ():
        _learn(form)
    for form in (quantized, *others):
        record(form, samples=samples_of(known.inputs, sample))
    scaled = list(deployment(quantized).scaled)
    report = known.report and replace(known.report.without_search(), scales=scaled)
    record(
        quantized,
        report=report,
        plain=next(iter(others), None),
        fingerprint=fingerprint(quantized),
        fidelity=fidelity,
    )
    return quantized


def _economical(form: _Watched, effort: str, sample: Sequence[Tensor], choices: Choices) -> _Watched | None:
    """`form`, which is quantized, with a few kernels in float, where its outputs win by that what it is worth: what a
    kernel does to them is known to first order only, so it is tried."""
    if form.fidelity is None:
        return None
    limits = (MOST_FOR_BEST, MOST) if effort == "best" else (MOST,)
    most = [affordable(form.fidelity.sqnr, limit) for limit in limits]
    if not any(most):
        return None
    found = ranked(form.module, [samples_of(deployment(form.module).inputs, sample)], form.fidelity.sqnr)
    spending = Spending(form.placement, {node.name: node for node in form.source.graph.nodes})
    first = leading(spending, most[-1])
    tried = [economical(found, spending, part, first) for part in most]
    if effort == "best":
        tried.append(first)
    for floats in filter(None, dict.fromkeys(map(tuple, tried))):
        other = form.with_floats(floats)
        other.quantized(choices)
        assert other.fidelity is not None
        if other.fidelity.sqnr >= form.fidelity.sqnr + worth(spending(frozenset(floats))):
            return other
    return None


def _beyond(
    budget: AccuracyBudget, module: fx.GraphModule, quantized: fx.GraphModule, sample: Sequence[Tensor]
) -> list[str]:
    """The kernels of `quantized` to put in float next, for it to keep the budget."""
    expected, given = outputs_of(module, sample), outputs_of(quantized, sample)
    value = budget.measure(expected, given)
    excess = budget.excess(value)
    if excess <= 1:
        return []
    found = ranked(quantized, [sample], sqnr(expected, given))
    if not found.kernels:
        raise QuantizationError(
            f"accuracy_budget: a limit of {budget.limit:g} on {budget.name} cannot be kept, it is {value:.4g} with "
            "every kernel in float"
        )
    return leaving(found, 1 / excess)


class _Watched:
    """A copy of a module whose quantizers are to be, with a watch where each will stand."""

    def __init__(
        self,
        module: fx.GraphModule,
        floats: Sequence[str],
        grid: IntegerGrid,
        make_observer: Callable[[int | None], Observer],
    ) -> None:
        self.grid, self.source, self.floats, self.make_observer = grid, module, floats, make_observer
        self.module = copied(module).eval()
        self.nodes = Nodes({node.name: node for node in self.module.graph.nodes})
        placement = with_floats(deployment(module).placement, floats, self.nodes)
        self.placement = without_float_operands(placement)
        record(self.module, placement=self.placement)
        self.reference: Reference | None = None
        self.fidelity: Fidelity | None = None
        self.watches = insert_watches(
            self.module, self.nodes, grid_groups(self.placement, grid), make_observer
        )
        self.module.recompile()

    def with_floats(self, names: Sequence[str]) -> _Watched:
        """The same with more kernels in float, as if it had watched already."""
        other = _Watched(self.source, (*self.floats, *names), self.grid, self.make_observer)
        # A group that shares a grid goes by the name of its first tensor, which may need no codes any more.
        groups = zip(self.watches.values(), grid_groups(self.placement, self.grid), strict=True)
        watched = {quantizer.tensor: watch for watch, group in groups for quantizer in group}
        for watch in other.watches.values():
            watch.observer = watched[watch.tensor].observer
        other.reference = self.reference
        return other

    def shown(self, inputs: Sequence[Tensor]) -> None:
        """Watch a batch."""
        with torch.no_grad():
            self.module.forward(*map(channels_last, inputs))

    def quantized(self, choices: Choices) -> fx.GraphModule:
        """The copy, watches replaced by what they have seen, and repaired where there is a reference; `choices` are
        what was taken before."""
        seen = self._rounded()
        if self.reference is not None:
            self.fidelity = reconstruct(self.module, seen, self.reference, self.grid, choices)
        self.module.recompile()
        return self.module

    def drafted(self, effort: str, sample: Sequence[Tensor]) -> fx.GraphModule:
        """The same as it is fast to have, with what `finished` makes the rest of."""
        inputs = deployment(self.module).inputs
        axes = {target: seen.axis for target, seen in self._rounded().items()}
        few = samples_of(inputs, sample, max(SAMPLES, _fitting(inputs, sample)))
        record(self.module, draft=None if effort == "fast" else Draft(axes, few, self.grid))
        self.module.recompile()
        return self.module

    def _rounded(self) -> dict[str, Extremes]:
        """Put the observed ranges where the watches stand, and round weights; what those saw that may be repaired."""
        observers = {target: watch.checked() for target, watch in self.watches.items()}
        place_first_ranges(self.module, observers, self.grid)
        for kernel in self.placement.kernels:
            if kernel.precision == "int8":
                quantize_weight(self.module, self.nodes[kernel.anchor], kernel.channels, self.grid)
        return {target: seen for target, seen in observers.items() if isinstance(seen, Extremes)}


def _fitting(inputs: Sequence[InputSpec], sample: Sequence[Tensor]) -> int:
    """How many of the samples in a batch take `KEPT` bytes."""
    count = batch_size(inputs, sample) or 1
    return count * KEPT // max(sum(values.numel() * values.element_size() for values in sample), 1)


def _learn(module: nn.Module) -> None:
    for fake in [child for child in module.modules() if isinstance(child, FakeQuantize)]:
        fake.learn()


def _observer_factory(
    observer: str | Callable[[], Observer] | None,
) -> Callable[[int | None], Observer]:
    """What makes the observer of a tensor, whose channels are along the axis given."""
    if observer is None:
        return Extremes
    if isinstance(observer, str):
        if observer not in OBSERVERS:
            raise UnknownNameError("observer", observer, OBSERVERS)
        observer = OBSERVERS[observer]
    make = observer

    def made(axis: int | None) -> Observer:
        return instance("what observer returns", make(), Observer)  # type: ignore[no-any-return]

    return made
