"""`optimize`: from a model to the cheapest form of it that the rules can reach."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points, version
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.capture import capture
from eqsat_deploy.conversions import exact_anchor, prefer_converted
from eqsat_deploy.deployment import fingerprint, record
from eqsat_deploy.errors import ExtractionError, RuleError, UnknownNameError
from eqsat_deploy.freeze import ENode, Space, freeze
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.lower import Lowered, lower
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.price import Priced, is_launch, price
from eqsat_deploy.rebuild import rebuild
from eqsat_deploy.report import Report, RuleUse
from eqsat_deploy.rules import EgglogRule, select
from eqsat_deploy.saturate import Budget, saturate
from eqsat_deploy.stages import Stages, no_collection
from eqsat_deploy.verify import Verified, verify
from eqsat_extraction import Solution, extract
from eqsat_extraction.kernel import CostModel

CONVERSIONS = ("linear-to-convolution", "identity-pool", "attention")
BETWEEN = "unary-through-reshape"  # an activation between Flatten and Linear moves before the convolution
PLAIN = ("folding", "kernels", "quantization")
TARGET = ("kernels", "quantization")
UNSTABLE = 0.1  # a verification that lets outputs differ by more shows little


def optimize(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Any = None,
    *,
    cost: str | CostModel = "auto",
    rules: str | Iterable[str | EgglogRule] | None = None,
    extractor: str = "auto",
    time_limit: float | None = 5.0,
    work_limit: int | None = None,
    budget: Budget | None = None,
    batch: int = 1,
    dynamic_shapes: Any = None,
    check: bool = True,
    seed: int = 0,
) -> OptimizedModule:
    """The same function as `model`, in the cheapest form that the rules can reach under the cost model.

    Every rule is put into one e-graph and saturated together with the kernels of the target; the form with the
    least predicted cost is extracted, with a certified gap, rebuilt as an `fx.GraphModule` and verified against the
    original on the example inputs and at a second batch size. `model` is not changed.

    Args:
        model: in eval mode; one in training mode is optimized as in eval mode, with a warning, and left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; inferred when missing.
        cost: name of a cost model, or one; `auto` is that of the engine this machine would build.
        rules: `conversions` for the founding conversions alone, applied wherever they match, whatever they cost;
            else names of families or rules, or rule objects; all rules when missing. The target's kernels and
            quantization are always among them.
        extractor: name of an extractor; `time_limit` (seconds) and `work_limit` bound it.
        budget: limits on saturation.
        batch: the batch size that kernels are priced at.
        dynamic_shapes: as for `torch.export`; the batch is axis 0 of every input when missing.
        check: verify the rebuilt module; without it, a wrong rule goes unnoticed.
        seed: of the extractor's search.

    Raises:
        CaptureError: the model does not export; the message names the line.
        InputError: example inputs are missing or do not fit.
        UnknownNameError: no cost model, rule or extractor of that name; the message lists near misses.
        VerificationError: the rebuilt module computes something else.
    """
    stages = Stages()
    cost_model = find_cost(cost)
    chosen_rules = find_rules(rules)
    known_extractor(extractor)
    if isinstance(model, nn.Module) and model.training and not isinstance(model, ExportedProgram):
        warnings.warn(
            "the model is in training mode: it is optimized as it computes in eval mode (dropout off, stored "
            "BatchNorm statistics); the model itself stays in training mode",
            stacklevel=2,
        )
    with stages("capture"):
        args, kwargs = example_arguments(model, example_inputs)
        captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    with stages("lower"), no_collection():
        lowered = lower(captured)
    with stages("saturate"), no_collection():
        saturation = saturate(lowered, chosen_rules, budget=budget)
    with stages("freeze"), no_collection():
        space = freeze(lowered, saturation)
    with stages("price"), no_collection():
        priced = price(space, cost_model, batch=batch)
        if rules == "conversions":
            priced = prefer_converted(priced, CONVERSIONS)
    with stages("extract"), no_collection():
        solution = _extract(priced, extractor, time_limit, work_limit, seed)
    with stages("plain"), no_collection():
        plain_priced, plain_solution = _plain(lowered, cost_model, batch)
    searched = space
    if plain_solution.cost < solution.cost and _plain_is_among(chosen_rules):
        lowered.warnings.append(
            f"the extractor stopped before it found a form as cheap as the plain one ({solution.cost:.6g} "
            f"{cost_model.unit}), which is kept; time_limit= gives it longer than {time_limit} s"
        )
        priced, solution = plain_priced, replace(plain_solution, bound=solution.bound)
    with stages("rebuild"), no_collection():
        optimized = _module(priced, solution, type(model).__name__)
        plain = _module(plain_priced, plain_solution, "Plain")
    verified = None
    if check:
        with stages("verify"):
            verified = verify(captured, optimized)
    report = _report(model, searched, priced, solution, plain_priced, plain_solution, verified, stages)
    record(optimized, report=report, plain=plain, fingerprint=fingerprint(optimized))
    return optimized


def find_cost(cost: str | CostModel) -> CostModel:
    """See `targets.find_cost`, which is imported when a model is optimized: it imports the engines."""
    from eqsat_deploy.targets import find_cost

    return find_cost(cost)


@cache
def registered_rules() -> tuple[EgglogRule, ...]:
    """Every rule registered under the entry-point group `eqsat_deploy.rules`.

    Raises:
        RuleError: two rules have one name; the message names both sources.
    """
    found: dict[str, tuple[EgglogRule, str]] = {}
    for entry in sorted(
        set(entry_points(group="eqsat_deploy.rules")), key=lambda e: (e.name != "builtin", e.name)
    ):
        for rule in entry.load()():
            if rule.name in found:
                raise RuleError(
                    f"two rules are called {rule.name!r}: from {found[rule.name][1]} and {entry.value}"
                )
            found[rule.name] = (rule, entry.value)
    if not found:
        raise RuleError("no rules are registered: run `pip install -e .` in the checkout, or pass rules=")
    return tuple(rule for rule, _ in found.values())


def find_rules(rules: str | Iterable[str | EgglogRule] | None) -> list[EgglogRule]:
    """The rules to saturate with: those asked for, and the target's kernels and quantization.

    Raises:
        UnknownNameError: a name is neither a rule nor a family.
    """
    known = registered_rules()
    if rules is None or rules == "all":
        return list(known)
    wanted: Sequence[str | EgglogRule]
    wanted = (
        (*CONVERSIONS, BETWEEN)
        if rules == "conversions"
        else [rules]
        if isinstance(rules, str)
        else list(rules)
    )
    return select(known, [*TARGET, *wanted])


def known_extractor(name: str) -> None:
    """Check an extractor's name.

    Raises:
        UnknownNameError: no such extractor is registered.
    """
    from eqsat_extraction import extractors

    if (known := extractors()) and name not in known:
        raise UnknownNameError("extractor", name, known)


def _extract(
    priced: Priced, extractor: str, time_limit: float | None, work_limit: int | None, seed: int
) -> Solution:
    from eqsat_extraction import InfeasibleError

    try:
        return extract(priced.egraph, priced.costs, extractor=extractor, time_limit=time_limit,
                       work_limit=work_limit, seed=seed)  # fmt: skip
    except InfeasibleError as error:
        raise ExtractionError(
            f"no form of this model can be built from the kernels of {priced.model.name!r}: {error}"
        ) from error


def search(
    lowered: Lowered,
    rules: Sequence[EgglogRule],
    cost_model: CostModel,
    *,
    batch: int = 1,
    budget: Budget | None = None,
    extractor: str = "auto",
    time_limit: float | None = 5.0,
    work_limit: int | None = None,
    seed: int = 0,
) -> tuple[Priced, Solution]:
    """Saturate, freeze, price and extract: the stages between lowering and rebuild, for looking inside.

    Raises:
        ExtractionError: no form can be built from the kernels of the target.
    """
    priced = price(freeze(lowered, saturate(lowered, rules, budget=budget)), cost_model, batch=batch)
    return priced, _extract(priced, extractor, time_limit, work_limit, seed)


def _plain(lowered: Lowered, cost_model: CostModel, batch: int) -> tuple[Priced, Solution]:
    """The form that an engine reaches by itself: BatchNorm folded, epilogues fused, INT8 where it pays."""
    return search(lowered, _plain_rules(), cost_model, batch=batch, extractor="greedy")


def _plain_rules() -> list[EgglogRule]:
    return select(registered_rules(), PLAIN)


def _plain_is_among(rules: Iterable[EgglogRule]) -> bool:
    """Whether the plain form is one that these rules reach."""
    return {r.name for r in _plain_rules()} <= {r.name for r in rules}


def _module(priced: Priced, solution: Solution, name: str) -> OptimizedModule:
    rebuilt = rebuild(priced, solution)
    module = OptimizedModule(rebuilt.root, rebuilt.graph, f"Optimized{name}")
    record(module, inputs=rebuilt.inputs, placement=rebuilt.placement)
    return module.eval()


def launches(priced: Priced, solution: Solution) -> list[int]:
    """Chosen choices that are kernel launches, as indices."""
    choices = priced.space.choices
    return [i for i in solution.order(priced.egraph) if is_launch(choices[i][1])]


def _report(
    model: Any, searched: Space, priced: Priced, solution: Solution, plain: Priced, plain_solution: Solution,
    verified: Verified | None, stages: Stages,
) -> Report:  # fmt: skip
    space = priced.space
    used = _used_rules(space, solution)
    kernels = launches(priced, solution)
    notes = list(space.lowered.warnings)
    if verified is not None and verified.vacuous:
        notes.append(
            "all outputs compared were zero, so the verification shows nothing; use trained parameters"
        )
    if verified is not None and verified.tolerance > UNSTABLE:
        notes.append(
            f"the model's own rounding error lets outputs differ by {verified.tolerance:.2g} of their largest "
            "value, so the verification shows little; optimize model.double() to see whether the form is right"
        )
    return Report(
        model=type(model).__name__,
        cost_model=priced.model.name,
        unit=priced.model.unit,
        batch=priced.batch,
        nodes=space.lowered.nodes,
        opaque=[f"{c.node} ({c.target})" for c in space.lowered.calls],
        plain_kernels=len(launches(plain, plain_solution)),
        kernels=len(kernels),
        integer_kernels=sum(space.choices[i][1].integer for i in kernels),
        plain_cost=plain_solution.cost,
        cost=solution.cost,
        bound=solution.bound,
        gap=solution.gap,
        proved=solution.proved,
        extractor=solution.extractor,
        e_nodes=len(searched.nodes),
        e_classes=len(searched.classes),
        stopped=searched.saturation.stopped,
        rules=[RuleUse(r.name, r.family, searched.saturation.matches[r.name], r.name in used)
               for r in searched.saturation.rules],
        errors=verified.errors if verified else {},
        tolerance=verified.tolerance if verified else 0.0,
        notes=notes,
        seconds={k: round(v, 4) for k, v in stages.seconds.items()},
        iterations=searched.saturation.iterations,
        versions={"eqsat-deploy": version("eqsat-deploy"), "torch": torch.__version__,
                  "egglog": version("egglog"), "python": platform.python_version()},
    )  # fmt: skip


def _used_rules(space: Space, solution: Solution) -> set[str]:
    """Names of the rules that the chosen form is owed to.

    A rule that makes a term equal to one of its own variables (a pool that changes nothing) is used where the
    class is in the chosen form; any other where the chosen kernel, or the constant it reads, is not the model's own.
    """
    chosen = [space.choices[i] for i in solution.choice if i >= 0]
    plain = {(node.operator, node.args): number for number, node in space.nodes}
    by_class: dict[int, list[ENode]] = {}
    for number, node in space.nodes:
        by_class.setdefault(number, []).append(node)
    reached: set[int] = set()
    made = _constant_terms(space, chosen)
    fused: set[int] = set()
    for number, node in chosen:
        own = space.classes[number].quantized_of
        final = number if own is None else own
        exact = exact_anchor(space, node)
        anchor = plain.get((exact.operator, exact.args), final)
        reached |= {final, anchor}
        if (anchor, exact) not in space.original:
            made |= _covered(by_class, final, exact.operands)
        if node.steps:
            fused.add(final)
    integer = any(node.integer for _, node in chosen)
    matches = space.saturation.matches
    names = set()
    for index, rule in enumerate(space.saturation.rules):
        where = fused if rule.phase == "kernels" else reached if rule.collapses else made
        used = any(index in space.fired.get(number, ()) for number in where)
        used |= rule.phase == "quantization" and integer and matches[rule.name] > 0
        if used:
            names.add(rule.name)
    return names


def _covered(by_class: dict[int, list[ENode]], final: int, operands: tuple[int, ...]) -> set[int]:
    """Classes between what a kernel reads and what it writes, in whatever form."""
    waiting, found = [final], set()
    while waiting:
        number = waiting.pop()
        if number not in found and number not in operands:
            found.add(number)
            waiting += [o for node in by_class.get(number, ()) for o in node.operands]
    return found


def _constant_terms(space: Space, chosen: list[tuple[int, ENode]]) -> set[int]:
    """Constant classes that the chosen form evaluates, and those their terms are made of."""
    waiting = [c for _, n in chosen for c in n.children if space.classes[c].constant]
    found: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += space.terms[number].operands if number in space.terms else ()
    return found
