"""`optimize`: from a model to the cheapest form of it that the rules can reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack, overload

from torch import fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.buckets import BucketedModule, bucketed
from eqsat_deploy.capture import capture
from eqsat_deploy.deployment import Batch, device_of, fingerprint, located, record, samples_of
from eqsat_deploy.errors import InputError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import lower
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.report.findings import report_of
from eqsat_deploy.saturate import Budget
from eqsat_deploy.search import Limits, Search, search
from eqsat_deploy.selection import Rules, Selection, find_rules, plain_rules
from eqsat_deploy.stages import Stages
from eqsat_deploy.targets import find_cost, find_engine, target_of
from eqsat_deploy.verify import verify
from eqsat_extraction.arguments import whole
from eqsat_extraction.cautions import caution
from eqsat_extraction.extractor import EXTRACTORS
from eqsat_extraction.kernel import CostModel


class Options(TypedDict, total=False):
    """Arguments of `optimize` that mean the same for one form and for several."""

    cost: str | CostModel
    rules: Rules
    extractor: str
    time_limit: float | None
    work_limit: int | None
    budget: Budget | None
    batch: int
    dynamic_shapes: Any
    check: bool
    seed: int
    calibration: Iterable[Any] | None
    accuracy_budget: Any
    tune: int | None


@overload
def optimize(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Any = None,
    *,
    buckets: None = None,
    **options: Unpack[Options],
) -> OptimizedModule: ...


@overload
def optimize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    buckets: Mapping[str, Sequence[int]],
    padding: Mapping[str, float] | None = None,
    **options: Unpack[Options],
) -> BucketedModule: ...


def optimize(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Any = None,
    *,
    cost: str | CostModel = "auto",
    rules: Rules = None,
    extractor: str = "auto",
    time_limit: float | None = None,
    work_limit: int | None = None,
    budget: Budget | None = None,
    batch: int = 1,
    dynamic_shapes: Any = None,
    buckets: Mapping[str, Sequence[int]] | None = None,
    padding: Mapping[str, float] | None = None,
    check: bool = True,
    seed: int = 0,
    calibration: Iterable[Any] | None = None,
    accuracy_budget: Any = None,
    tune: int | None = None,
) -> OptimizedModule | BucketedModule:
    """The same function as `model`, in the cheapest form that the rules can reach under the cost model.

    Every rule is put into one e-graph and saturated together with the kernels of the target; the form with the
    least predicted cost is extracted, with a certified gap, rebuilt as an `fx.GraphModule` and verified against the
    original on the example inputs and at a second batch size. `model` is not changed; the result is on its
    device, though it is traced and verified on the CPU.

    Args:
        model: in eval mode; one in training mode is optimized as in eval mode, with a warning, and left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, arrays among them; inferred when
            missing.
        cost: name of a cost model, or one; `auto` is that of the engine this machine would build.
        rules: `conversions` for the founding conversions alone, applied wherever they match, whatever they cost;
            else names of families or rules, or rule objects, `all` among them for every rule that is registered; all
            rules when missing. The target's kernels and quantization are always among them.
        extractor: name of an extractor, which `time_limit` (seconds) and `work_limit` (units, counted) bound; where
            neither is given, `search.WORK` units, so that the same model gives the same form however busy the machine.
        budget: limits on saturation.
        batch: the batch size that kernels are priced at.
        dynamic_shapes: as for `torch.export`; the batch is axis 0 of every input when missing.
        buckets: `{"sequence": [32, 64, 128]}` for a form for each of these lengths of the inputs along axis 1, to the
            next of which inputs are padded; longer ones are refused. Tokens are padded with the model's own
            (`config.pad_token_id`), everything else with zeros, the mask too. A model whose forward takes an
            `attention_mask` gets one, of ones, wherever the caller gives none. That padding changes nothing is tried
            on the example inputs, which are of one length.
        padding: other values to pad with, by the names of forward's parameters.
        check: verify the rebuilt module; without it, a wrong rule goes unnoticed.
        seed: of the extractor's search.
        calibration, accuracy_budget: `quantize` the result on these batches, within this budget.
        tune: build this many distinct forms, the cheapest by prediction, and the plain form in INT8 and in float; time
            them on the engine of the cost model (the one that `cost="auto"` stands for, where it is of none) and return
            the fastest. The report has the table. What was interrupted goes on when it is called again.

    Raises:
        CaptureError: the model does not export; the message names the line.
        InputError: example inputs are missing or do not fit, or there is a budget and no calibration data; `buckets`
            without lengths, with free sizes, or for inputs without axis 1.
        EngineError: there is no engine to tune on, with how to get one.
        UnknownNameError: no cost model, rule or extractor of that name; the message lists near misses.
        VerificationError: the rebuilt module computes something else, or the model itself on inputs that were padded.
    """
    if accuracy_budget is not None and calibration is None:
        raise InputError("accuracy_budget: pass calibration= as well, the data that accuracy is measured on")
    if padding is not None and buckets is None:
        raise InputError("padding: it is for buckets=, the lengths that inputs are padded to")
    cost_model, selection = find_cost(cost), find_rules(rules)
    limits = Limits(batch, Budget() if budget is None else budget, extractor, time_limit, work_limit, seed)
    EXTRACTORS.known(extractor)
    if tune is not None:
        whole("tune", tune)
    if isinstance(model, nn.Module) and model.training:
        caution(
            "the model is in training mode: it is optimized as it computes in eval mode (dropout off, stored "
            "BatchNorm statistics); the model itself stays in training mode"
        )

    def form(inputs: Any) -> OptimizedModule:
        return _form(model, inputs, cost_model, selection, limits, dynamic_shapes, check, tune)

    if buckets is None:
        made: OptimizedModule | BucketedModule = form(example_inputs)
    elif dynamic_shapes is not None:
        raise InputError("buckets: they fix every size but the batch, leave dynamic_shapes= out")
    else:
        made = bucketed(model, example_inputs, buckets, padding or {}, form)
    return made if calibration is None else made.quantize(calibration, accuracy_budget=accuracy_budget)


def _form(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    cost_model: CostModel,
    selection: Selection,
    limits: Limits,
    dynamic_shapes: Any,
    check: bool,
    tune: int | None,
) -> OptimizedModule:
    stages = Stages()
    target = target_of(cost_model.name)
    maker = None if tune is None else find_engine("auto" if target is None else target.name)
    with stages("capture"):
        args, kwargs = example_arguments(model, example_inputs)
        captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    with stages("lower"):
        lowered = lower(captured)
    searched = search(lowered, selection, cost_model, limits, stages)
    with stages("plain"):
        plain = search(lowered, plain_rules(), cost_model, replace(limits, extractor="greedy"))
    kept = searched
    if plain.solution.cost < searched.solution.cost and selection.reaches(plain_rules()):
        kept = replace(plain, solution=replace(plain.solution, bound=searched.solution.bound))
    placed = {
        "target": target and target.name,
        "grid": target and target.grid_here,
        "samples": samples_of(captured.call.inputs, captured.tensors),
    }
    tuning = None
    if tune is not None and maker is not None:
        from eqsat_deploy.tune import contestants, fastest

        with stages("tune"):
            forms = contestants(kept, plain, tune, lambda found: _module(found, "Form", placed))
            sizes, key = Batch(typical=limits.batch), f"{fingerprint(captured.module)} {check}"
            best, tuning = fastest(forms, maker, sizes, partial(verify, captured) if check else id, key)
            kept = best.found
    with stages("rebuild"):
        optimized, plain_module = _module(kept, type(model).__name__, placed), _module(plain, "Plain", placed)
    verified = None
    if check:
        with stages("verify"):
            verified = verify(captured, optimized)
    report = report_of(type(model).__name__, searched, kept, plain, verified, stages.seconds, tuning)
    record(optimized, report=report, plain=plain_module, fingerprint=fingerprint(optimized))
    return located(optimized, device_of(model))


def _module(found: Search, name: str, placed: Mapping[str, Any]) -> OptimizedModule:
    rebuilt = rebuild(found)
    module = OptimizedModule(rebuilt.root, rebuilt.graph, f"Optimized{name}")
    call = found.lowered.captured.call
    found_in = {"placement": rebuilt.placement, "modules": rebuilt.modules}
    record(module, inputs=rebuilt.inputs, call=call, **found_in, **placed)
    return module.eval()
