"""Rewrite rules: a Python function over operators is the rewrite, its shape test and its soundness test.

    @rule("real", x="n c 1 1", w="o c")
    def flat_linear_is_conv1x1(x, w, b, n, c, o):
        \"\"\"A Linear on a flattened 1x1 map is a 1x1 convolution.\"\"\"
        return linear(reshape(x, dims(n, c)), w, b), reshape(conv2d(x, reshape(w, dims(o, c, 1, 1)), b, ...), ...)

Each argument is a tensor with a shape pattern, an attribute with sample values, or a dimension named in a shape
pattern. Compiled, the first result becomes the pattern and the second what it is merged with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, product
from random import Random
from typing import Any, Protocol, runtime_checkable

from eqsat_deploy.errors import InputError, RuleError, UnknownNameError
from eqsat_deploy.language.expressions import Call, Guard, Variable
from eqsat_deploy.language.operator import Operator, interpreted_by
from eqsat_deploy.rules.compile import clause
from eqsat_deploy.rules.domains import (
    DIMENSIONS,
    Attribute,
    Bundle,
    Domain,
    Tensor,
    Variants,
    flattened,
    tensor,
)
from eqsat_deploy.rules.facts import (
    CONSTANT,
    NONNEGATIVE,
    RUNTIME,
    SIBLINGS,
    Action,
    Clause,
    Fact,
    Pattern,
    Row,
    is_term,
    root,
)

Term = Any
"""What a rule's arguments are and its operators return: patterns and expressions, tensors and numbers."""
Equation = Any
"""What a rule returns: two equal terms, or several pairs of them, and optionally a list of guards."""

KINDS = ("exact", "real", "approximate")
PHASES = ("demand", "rewrites", "merging", "kernels", "quantization")


@runtime_checkable
class EgglogRule(Protocol):
    """Anything that saturation can load: a name, where it belongs, and what it says to the e-graph."""

    @property
    def name(self) -> str:
        """What it is selected and reported by."""
        ...

    @property
    def family(self) -> str:
        """What it is selected with."""
        ...

    @property
    def kind(self) -> str:
        """`exact`, `real` or `approximate`."""
        ...

    @property
    def phase(self) -> str:
        """The ruleset it runs in."""
        ...

    @property
    def doc(self) -> str:
        """What it says, in a sentence."""
        ...

    @property
    def collapses(self) -> bool:
        """Whether it makes a term equal to one of its own variables."""
        ...

    @property
    def heads(self) -> frozenset[Operator]:
        """The operators at the top of its left sides."""
        ...

    def clauses(self) -> tuple[Clause, ...]:
        """Its facts and actions, once for every direction or part it has."""
        ...


@dataclass(frozen=True)
class Relational:
    """A rule of facts and actions, for what is no equation between tensors: kernels, codes, implications.

    `unchecked` says why no check is derived from it, and what sees it instead.
    """

    name: str
    family: str
    kind: str
    phase: str
    doc: str
    unchecked: str
    parts: tuple[tuple[tuple[Fact, ...], tuple[Action, ...]], ...]

    @property
    def collapses(self) -> bool:
        """Such rules say nothing about their variables alone."""
        return False

    @property
    def heads(self) -> frozenset[Operator]:
        """The operators at the top of what its parts find."""
        return frozenset().union(*(part.heads for part in self.clauses()))

    def clauses(self) -> tuple[Clause, ...]:
        """Its parts, numbered."""
        return tuple(Clause(f"{self.name}#{i}", *part) for i, part in enumerate(self.parts))


class _BuildPattern:
    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Pattern:
        return Pattern(operator, args)


def dtype(x: Any) -> Any:
    """The dtype of one of the model's own tensors, by torch's name. A term that a rule made has none: no match."""
    if is_term(x):
        return Call("String", "dtype", (x,))
    return str(x.meta.dtype if hasattr(x, "meta") else x.dtype).removeprefix("torch.")


def constant(x: Any) -> Any:
    """Guard: `x` does not depend on the model's inputs."""
    return Row(CONSTANT, (x,)) if is_term(x) else True


def runtime(x: Any) -> Any:
    """Guard: `x` depends on the model's inputs. For rules that would only restate a constant."""
    return Row(RUNTIME, (x,)) if is_term(x) else True


def nonnegative(x: Any) -> Any:
    """Guard: no element of `x` is negative, whatever the inputs. A fact about these very parameters."""
    return Row(NONNEGATIVE, (x,)) if is_term(x) else True


def siblings(*results: Any) -> list[Any]:
    """Guards: the left sides of a rule's pairs, `results`, are different tensors of the model, in the order of its rows
    and near each other, each computed from one input by a weighted operator and what follows it alone.

    For rules that join several results: every pair is met once, what a rule made is not joined again, and a tensor
    that very many operators read (an encoder's output in every decoder layer) makes no quadratic number of pairs.
    """
    if not all(map(is_term, results)):
        return []
    roots = [root(i) for i in range(len(results))]
    return [Row(SIBLINGS, pair) for pair in pairwise(roots)]


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule written as a function; see the module's docstring."""

    function: Callable[..., Any]
    kind: str
    phase: str
    both: bool
    domains: Mapping[str, Domain]
    family: str
    name: str
    doc: str = field(repr=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the pattern by name."""
        return {k: v for k, v in flattened(self.domains) if isinstance(v, Tensor)}

    @cached_property
    def attributes(self) -> dict[str, Attribute]:
        """Attributes of the pattern by name."""
        return {k: v for k, v in flattened(self.domains) if isinstance(v, Attribute)}

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """Names of dimensions in the shape patterns, in order of appearance."""
        found = dict.fromkeys(name for domain in self.tensors.values() for name in domain.names)
        return tuple(name for name in found if name not in self.attributes)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """What its function asks for."""
        return tuple(inspect.signature(self.function).parameters)

    def __call__(self, **values: Any) -> tuple[list[tuple[Any, Any]], list[Any]]:
        """The rule's pairs of equal terms and its guards, for the given tensors, attributes and dimensions."""
        for argument, domain in self.domains.items():
            if isinstance(domain, Bundle):
                values[argument] = domain.make(*(values[part] for part in (*domain.parts, *domain.sizes)))
        result = self.function(**{k: v for k, v in values.items() if k in self.parameters})
        *pairs, last = result if isinstance(result, tuple) else (result,)
        guards = last if isinstance(last, list) else []
        if not isinstance(last, list):
            pairs.append(last)
        if pairs and isinstance(pairs[0], tuple):
            return list(pairs), guards
        if len(pairs) != 2:
            raise RuleError(f"rule {self.name!r} must return two equal terms, or pairs of them, and guards")
        return [(pairs[0], pairs[1])], guards

    @property
    def collapses(self) -> bool:
        """Whether it makes a term equal to one of its own variables."""
        return any(isinstance(right, Variable) for _, right in self._compiled[0])

    @property
    def heads(self) -> frozenset[Operator]:
        """The operators at the top of its left sides, of both directions where it has two."""
        return frozenset().union(*(part.heads for part in self.clauses()))

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """Its pairs of equal terms, as patterns."""
        return self._compiled[0]

    @property
    def guards(self) -> list[Guard]:
        """Its conditions, besides the shapes of its tensors."""
        return self._compiled[1]

    @cached_property
    def _variables(self) -> dict[str, Variable]:
        known = {k: Variable("T", k) for k in self.tensors}
        known |= {k: Variable(a.sort, k) for k, a in self.attributes.items()}
        return known | {k: Variable("i64", k) for k in self.dimensions}

    @cached_property
    def _compiled(self) -> tuple[list[tuple[Any, Any]], list[Guard]]:
        with interpreted_by(_BuildPattern()):
            try:
                pairs, guards = self(**self._variables)
            except RuleError as error:
                raise RuleError(f"rule {self.name!r}: {error}") from error
        if any(g is False for g in guards):
            raise RuleError(f"rule {self.name!r}: a guard never holds, as it is written")
        return pairs, [g for g in guards if isinstance(g, Guard)]

    def clauses(self) -> tuple[Clause, ...]:
        """What it says to the e-graph, once per direction.

        Raises:
            RuleError: it branches on a guard, does not return two sides, or has an argument that no left side binds.
        """
        pairs, guards = self._compiled
        bundled = {p for d in self.domains.values() if isinstance(d, Bundle) for p in d.parts}
        known = {k: v for k, v in self._variables.items() if k in self.parameters or k in bundled}
        forward = clause(self.name, pairs, guards, self.tensors, known)
        if not self.both:
            return (forward,)
        swapped = [(right, left) for left, right in pairs]
        return forward, clause(f"{self.name}#reverse", swapped, guards, self.tensors, known)

    def draw(self, random: Random, batch: int) -> dict[str, Any]:
        """One sample of the domain: encoded attributes, dimensions, and torch shapes for the tensors.

        The dimension named `n` is the batch. Dimensions are drawn from their declared values, else from 1 to 4.
        """
        dimensions = {d: random.choice(self.domains.get(d, DIMENSIONS)) for d in self.dimensions}  # type: ignore[arg-type]
        dimensions |= {"n": batch} if "n" in dimensions else {}
        values: dict[str, Any] = {k: a.draw(dimensions, random) for k, a in self.attributes.items()}
        leading = tuple(random.choice((1, 2, 3)) for _ in range(random.choice((1, 2))))
        scope = dimensions | values
        return scope | {k: t.draw(scope, leading, random) for k, t in self.tensors.items()}


def rule(
    kind: str,
    *,
    phase: str = "rewrites",
    both: bool = False,
    family: str | None = None,
    **domains: str | Domain,
) -> Callable[[Callable[..., Any]], Rule]:
    """Declare the decorated function as a rule.

    `kind` is `exact` (data movement), `real` (true over the reals) or `approximate`. A keyword per argument
    gives a tensor's shape pattern (`"n c h w"`; `"... k"` with any axes in front; `"1... c"` with axes of size
    one in front; `"~ a b"` for any shape, drawn like this in checks; `positive("c")`, `boolean("s k")` or `index("k")`
    where its elements are no real numbers), an attribute's samples, or a tuple of values for a dimension. Tensor
    arguments not named may have any shape. Every dimension named in a pattern may be asked for as an argument. The
    function returns `left, right` or several such pairs, and optionally a list of guards at the end. With `both`, the
    right side is also rewritten to the left.

    Raises:
        RuleError: the declaration and the function's signature disagree.
    """

    return lambda function: _declared(function, kind, phase, both, domains, family)


def rules(
    kind: str, *, phase: str = "rewrites", both: bool = False, **domains: str | Domain | Variants
) -> Callable[[Callable[..., Any]], tuple[Rule, ...]]:
    """Declare the decorated function as a rule for every choice of its `Variants`; otherwise as `rule` does.

    A choice's key is part of the rule's name: before the function's where it ends with a dash, else behind it.
    """
    several = {k: v.choices for k, v in domains.items() if isinstance(v, Variants)}
    single = {k: v for k, v in domains.items() if not isinstance(v, Variants)}

    def declare(function: Callable[..., Any]) -> tuple[Rule, ...]:
        made = []
        for keys in product(*several.values()):
            chosen = {k: several[k][key] for k, key in zip(several, keys, strict=True)}
            made.append(_declared(function, kind, phase, both, single | chosen, keys=keys))
        return tuple(made)

    return declare


def _declared(
    function: Callable[..., Any], kind: str, phase: str, both: bool, domains: Mapping[str, str | Domain],
    family: str | None = None, keys: tuple[str, ...] = (),
) -> Rule:  # fmt: skip
    label = f"{function.__module__}.{function.__name__}"
    parameters = inspect.signature(function).parameters
    given = {k: tensor(v) if isinstance(v, str) else v for k, v in domains.items()}
    named = {n for _, domain in flattened(given) if isinstance(domain, Tensor) for n in domain.names}
    known = named | {n for n, _ in flattened(given)}
    full: dict[str, Domain] = {p: given.get(p, Tensor()) for p in parameters if p in given or p not in known}
    full |= {k: v for k, v in given.items() if isinstance(v, tuple)}
    names = [n for n, _ in flattened(given)]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise RuleError(f"rule {label}: two arguments have a variable {twice[0]!r}: rename a part of one")
    unknown = [k for k in given if k not in parameters and k not in named]
    if unknown:
        raise RuleError(f"rule {label}: {unknown[0]!r} is neither an argument nor a dimension")
    if kind not in KINDS or phase not in PHASES:
        raise RuleError(f"rule {label}: kind must be one of {KINDS} and phase one of {PHASES}")
    name = function.__name__.strip("_").replace("_", "-")
    for key in keys:
        name = key + name if key.endswith("-") else name + key
    family = family or function.__module__.rpartition(".")[2].replace("_", "-")
    return Rule(function, kind, phase, both, full, family, name, inspect.getdoc(function) or "")


def rules_of(namespace: dict[str, Any]) -> Iterator[EgglogRule]:
    """The rules among a module's globals, in order of definition."""
    for found in namespace.values():
        each = found if isinstance(found, tuple) else (found,)
        yield from (v for v in each if isinstance(v, Rule | Relational))


def select(rules: Iterable[EgglogRule], wanted: Iterable[str | EgglogRule]) -> list[EgglogRule]:
    """The rules named by family, by name, or given as objects, in the order of `rules`, objects last.

    Raises:
        UnknownNameError: a name is neither a family nor a rule; the message lists near misses.
        InputError: something is neither a name nor a rule.
    """
    rules, wanted = list(rules), list(wanted)
    for given in wanted:
        if not isinstance(given, str | EgglogRule):
            raise InputError(f"rules: {given!r} is neither a name nor a rule")
    known = {r.name for r in rules} | {r.family for r in rules}
    names = {w for w in wanted if isinstance(w, str)}
    for missing in sorted(names - known):
        raise UnknownNameError("rule or family", missing, known)
    objects = [w for w in wanted if not isinstance(w, str)]
    return [r for r in rules if (r.name in names or r.family in names) and r not in objects] + objects
