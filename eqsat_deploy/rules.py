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
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, runtime_checkable

from eqsat_deploy.errors import RuleError
from eqsat_deploy.language.expressions import Expr, Guard, literal
from eqsat_deploy.language.expressions import one_of as one_of
from eqsat_deploy.language.operator import Operator, interpreted_by
from eqsat_deploy.language.shapes import SLOTS, encode

Term = Any
"""What a rule's arguments are and its operators return: patterns and expressions, tensors and numbers."""
Equation = Any
"""What a rule returns: two equal terms, or several pairs of them, and optionally a list of guards."""

KINDS = ("exact", "real", "approximate")
PHASES = ("demand", "rewrites", "merging", "kernels", "quantization")


@runtime_checkable
class EgglogRule(Protocol):
    """Anything that saturation can load: a name, where it belongs, and egglog text."""

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
    def heads(self) -> frozenset[Operator]:
        """Operators that its left sides are applications of."""
        ...

    @property
    def collapses(self) -> bool:
        """Whether it makes a term equal to one of its own variables."""
        ...

    def text(self, index: int) -> str:
        """Egglog commands, in ruleset `phase`; `index` identifies the rule in `(fired index e-class)`."""
        ...


@dataclass(frozen=True)
class TextRule:
    """A rule written as egglog text, for what spans a whole class of operators (kernels, quantization)."""

    name: str
    family: str
    kind: str
    phase: str
    doc: str
    source: str

    @property
    def heads(self) -> frozenset[Operator]:
        """Not known of text."""
        return frozenset()

    @property
    def collapses(self) -> bool:
        """Text rules build terms."""
        return False

    def text(self, index: int) -> str:
        """The source, its rules named after this one."""
        counter = itertools.count()
        return re.sub(
            r":ruleset\b", lambda _: f':name "{self.name}#{next(counter)}" :ruleset', self.source
        ).replace("$RULE", str(index))


@dataclass(frozen=True)
class Attribute:
    """A rule's argument that is no tensor: its egglog sort and the values that derived tests draw from.

    `samples` may be a function of the dimensions drawn so far.
    """

    sort: str
    samples: Sequence[Any] | Callable[[dict[str, Any]], Sequence[Any]]

    def draw(self, dimensions: dict[str, Any], random: Random) -> Any:
        """One of the sample values."""
        values = self.samples(dimensions) if callable(self.samples) else self.samples
        return random.choice(list(values))


def integer(*samples: Any) -> Attribute:
    """An `i64` attribute."""
    return Attribute("i64", samples[0] if len(samples) == 1 and callable(samples[0]) else samples)


def integers(*samples: Any) -> Attribute:
    """A vector attribute."""
    return Attribute("VI", samples[0] if len(samples) == 1 and callable(samples[0]) else samples)


def number(*samples: Any) -> Attribute:
    """An `f64` attribute."""
    return Attribute("f64", samples[0] if len(samples) == 1 and callable(samples[0]) else samples)


def name(*samples: str) -> Attribute:
    """A string attribute, such as the function of a `unary`."""
    return Attribute("String", samples)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A term of a rule: a variable, or an operator applied to terms and expressions."""

    head: Operator | str
    args: tuple[Any, ...] = ()


class _BuildPattern:
    def apply(self, operator: Operator, args: tuple[Any, ...]) -> Pattern:
        return Pattern(operator, args)


def shape(x: Any) -> Any:
    """The encoded shape of a tensor, or of a term of a pattern."""
    if isinstance(x, Pattern):
        return Expr(f"(shape {_plain(x)})", "VI")
    return encode(tuple(x.shape))


def dtype(x: Any) -> Any:
    """The dtype of one of the model's own tensors, by torch's name. A term that a rule made has none: no match."""
    if isinstance(x, Pattern):
        return Expr(f"(dtype {_plain(x)})", "String")
    return str(x.meta.dtype if hasattr(x, "meta") else x.dtype).removeprefix("torch.")


def constant(x: Any) -> Any:
    """Guard: `x` does not depend on the model's inputs."""
    return Guard(f"(const {_plain(x)})") if isinstance(x, Pattern) else True


def runtime(x: Any) -> Any:
    """Guard: `x` depends on the model's inputs. For rules that would only restate a constant."""
    return Guard(f"(dynamic {_plain(x)})") if isinstance(x, Pattern) else True


def nonnegative(x: Any) -> Any:
    """Guard: no element of `x` is negative, whatever the inputs. A fact about these very parameters."""
    return Guard(f"(nonnegative {_plain(x)})") if isinstance(x, Pattern) else True


def starts_with(value: Any, prefix: str) -> Any:
    """Guard: a string attribute starts so: `leaky_relu(`, whatever its constant."""
    if isinstance(value, Expr):
        return Guard(f'(= 1 (count-matches (+ "|" {value.text}) {literal("|" + prefix)}))')
    return value.startswith(prefix)


def siblings(*results: Any) -> list[Any]:
    """Guards: the left sides of a rule's pairs, `results`, are different tensors of the model, in the order of its rows
    and near each other, each computed from one input by a weighted operator and what follows it alone.

    For rules that join several results: every pair is met once, what a rule made is not joined again, and a tensor
    that very many operators read (an encoder's output in every decoder layer) makes no quadratic number of pairs.
    """
    if not all(isinstance(term, Pattern) for term in results):
        return []
    return [Guard(f"(siblings e{i} e{i + 1})") for i in range(len(results) - 1)]


def _plain(term: Any) -> str:
    if not isinstance(term, Pattern):
        return literal(term)
    if isinstance(term.head, str):
        return term.head
    return f"({' '.join([term.head.constructor, *map(_plain, term.args)])})"


_TOKEN = re.compile(r"[a-z_][a-z_0-9]*")
_MULTIPLE = re.compile(r"(\d+)\*([a-z_][a-z_0-9]*)")


def _parse(spec: str) -> tuple[str, list[str]]:
    """A shape pattern as its prefix (`...` any axes, `1...` any axes of size one, `~` a sample) and dimensions."""
    tokens = spec.split()
    return (tokens[0], tokens[1:]) if tokens and tokens[0] in ("...", "1...", "~") else ("", tokens)


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule written as a function; see the module's docstring."""

    function: Callable[..., Any]
    kind: str
    phase: str
    both: bool
    domains: dict[str, str | Attribute | tuple[int, ...]]
    family: str
    name: str
    doc: str = field(repr=False)

    @property
    def tensors(self) -> dict[str, str]:
        """Shape patterns by tensor argument."""
        return {k: v for k, v in self.domains.items() if isinstance(v, str)}

    @property
    def attributes(self) -> dict[str, Attribute]:
        """Attribute arguments."""
        return {k: v for k, v in self.domains.items() if isinstance(v, Attribute)}

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of dimensions in the shape patterns, in order of appearance."""
        found = dict.fromkeys(t for spec in self.tensors.values() for t in _TOKEN.findall(spec))
        return tuple(t for t in found if t not in self.attributes)

    def __call__(self, **values: Any) -> tuple[list[tuple[Any, Any]], list[Any]]:
        """The rule's pairs of equal terms and its guards, for the given arguments."""
        wanted = inspect.signature(self.function).parameters
        result = self.function(**{k: v for k, v in values.items() if k in wanted})
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
    def heads(self) -> frozenset[Operator]:
        """Operators that its left sides are applications of."""
        pairs, _, _ = self._patterns()
        return frozenset(left.head for left, _ in pairs if isinstance(left.head, Operator))

    @property
    def collapses(self) -> bool:
        """Whether it makes a term equal to one of its own variables."""
        pairs, _, _ = self._patterns()
        return any(isinstance(right.head, str) for _, right in pairs)

    def _patterns(self) -> tuple[list[tuple[Any, Any]], list[Any], dict[str, Any]]:
        variables: dict[str, Any] = {k: Pattern(k) for k in self.tensors}
        variables |= {k: Expr(k, a.sort) for k, a in self.attributes.items()}
        variables |= {k: Expr(k) for k in self.dimensions}
        with interpreted_by(_BuildPattern()):
            return *self(**variables), variables

    def text(self, index: int) -> str:
        """The rule as egglog commands, once per direction."""
        pairs, guards, variables = self._patterns()
        forward = _Compiler(self, variables).compile(pairs, guards, self.name, index)
        if not self.both:
            return forward
        swapped = [(right, left) for left, right in pairs]
        return (
            forward
            + "\n"
            + _Compiler(self, variables).compile(swapped, guards, f"{self.name}#reverse", index)
        )

    def draw(self, random: Random, batch: int) -> dict[str, Any]:
        """One sample of the domain: encoded attributes, dimensions, and torch shapes for the tensors.

        The dimension named `n` is the batch. Dimensions are drawn from their declared values, else from 1 to 4.
        """
        dimensions = {d: random.choice(self.domains.get(d, (1, 2, 3, 4))) for d in self.dimensions}  # type: ignore[arg-type]
        dimensions |= {"n": batch} if "n" in dimensions else {}
        values: dict[str, Any] = {k: a.draw(dimensions, random) for k, a in self.attributes.items()}
        leading = tuple(random.choice((1, 2, 3)) for _ in range(random.choice((1, 2))))
        scope = dimensions | values
        for tensor, spec in self.tensors.items():
            prefix, tokens = _parse(spec)
            ahead = {"": (), "~": (), "...": leading, "1...": random.choice(((), (1,)))}[prefix]
            values[tensor] = (*ahead, *(eval(t, {}, scope) for t in tokens))
        return dimensions | values


def _stage(fact: str) -> int:
    """Tables, then sizes, then what is computed from them: egglog 13.2 panics on some other orders."""
    if re.match(r"\((= e\d+ |= s_\w+ \(shape|const|dynamic|nonnegative)", fact):
        return 0
    return 1 if re.match(r"\(= \S+ \(vec-get s_", fact) else 2


class _Compiler:
    """Writes one direction of a rule as one egglog rule."""

    def __init__(self, rule: Rule, variables: dict[str, Any]) -> None:
        self.rule, self.variables = rule, variables
        self.plain = {t for spec in rule.tensors.values() for t in _parse(spec)[1] if _TOKEN.fullmatch(t)}
        self.facts: list[str] = []
        self.bound: dict[str, str] = {}

    def compile(self, pairs: list[tuple[Any, Any]], guards: list[Any], name: str, index: int) -> str:
        heads = []
        for position, (left, _) in enumerate(pairs):
            self.facts.append(f"(= e{position} {self._match(left)})")
        for tensor, spec in self.rule.tensors.items():
            self._shape_facts(tensor, spec)
        self.facts += [g.text for g in guards if isinstance(g, Guard)]
        for position, (_, right) in enumerate(pairs):
            heads.append(f"(union e{position} {self._build(right)}) (fired {index} e{position})")
        self._check_bound(name)
        facts = "\n       ".join(sorted(dict.fromkeys(self.facts), key=_stage))
        return f'(rule ({facts})\n      ({" ".join(heads)}) :ruleset {self.rule.phase} :name "{name}")'

    def _match(self, term: Any) -> str:
        if not isinstance(term, Pattern):
            return self._bind(term)
        if isinstance(term.head, str):
            return term.head
        return f"({' '.join([term.head.constructor, *map(self._match, term.args)])})"

    _build = _match

    def _bind(self, value: Any) -> str:
        """An attribute inside a term: literal, variable, or computed in the body, where failing means no match."""
        if not isinstance(value, Expr):
            text = literal(value)
            if not text.startswith("("):
                return text
        elif value.text in self.variables:
            return value.text
        else:
            text = value.text
        if text not in self.bound:
            self.bound[text] = f"v{len(self.bound)}"
            self.facts.append(f"(= {self.bound[text]} {text})")
        return self.bound[text]

    def _shape_facts(self, tensor: str, spec: str) -> None:
        if not spec.strip():
            return
        prefix, tokens = _parse(spec)
        if prefix == "~":
            return
        self.facts.append(f"(= s_{tensor} (shape {tensor}))")
        if not prefix:
            self.facts.append(f"(= {len(tokens)} (vec-get s_{tensor} 0))")
        if prefix == "1...":
            self.facts += [f"(= 1 (vec-get s_{tensor} {i}))" for i in range(1, SLOTS - len(tokens))]
        for position, token in enumerate(reversed(tokens)):
            size = f"(vec-get s_{tensor} {SLOTS - 1 - position})"
            multiple = _MULTIPLE.fullmatch(token)
            if multiple and multiple[2] not in self.plain:
                self.facts += [
                    f"(= {multiple[2]} (/ {size} {multiple[1]}))",
                    f"(= 0 (% {size} {multiple[1]}))",
                ]
            else:
                dimension = literal(eval(token, {}, self.variables))
                if dimension.startswith("("):  # egglog 13.2 panics where two computed values are equated
                    dimension, computed = f"{tensor}_{position}", dimension
                    self.facts.append(f"(= {dimension} {computed})")
                self.facts.append(f"(= {dimension} {size})")

    def _check_bound(self, name: str) -> None:
        text = " ".join(self.facts)
        for variable in self.variables:
            if variable in inspect.signature(self.rule.function).parameters and not re.search(
                rf"(?<![\w-]){re.escape(variable)}(?![\w-])", text
            ):
                raise RuleError(f"rule {name!r}: argument {variable!r} does not occur in its pattern")


def rule(
    kind: str,
    *,
    phase: str = "rewrites",
    both: bool = False,
    family: str | None = None,
    **domains: str | Attribute | tuple[int, ...],
) -> Callable[[Callable[..., Any]], Rule]:
    """Declare the decorated function as a rule.

    `kind` is `exact` (data movement), `real` (true over the reals) or `approximate`. A keyword per argument
    gives a tensor's shape pattern (`"n c h w"`; `"... k"` with any axes in front; `"1... c"` with axes of size
    one in front; `"~ a b"` for any shape, drawn like this in tests), an attribute's samples, or a tuple of
    values for a dimension. Tensor arguments not named may have any shape. Every dimension named in a pattern
    may be asked for as an argument. The function returns `left, right` or several such pairs, and optionally a
    list of guards at the end. With `both`, the right side is also rewritten to the left.

    Raises:
        RuleError: the declaration and the function's signature disagree.
    """

    def declare(function: Callable[..., Any]) -> Rule:
        signature = inspect.signature(function)
        specs = {k: v for k, v in domains.items() if isinstance(v, str)}
        named = {t for spec in specs.values() for t in _TOKEN.findall(spec)}
        full: dict[str, Any] = {
            p: domains.get(p, "") for p in signature.parameters if p not in named or p in domains
        }
        full |= {k: v for k, v in domains.items() if isinstance(v, tuple)}
        unknown = [k for k in domains if k not in signature.parameters and k not in named]
        label = f"{function.__module__}.{function.__name__}"
        if unknown:
            raise RuleError(f"rule {label}: {unknown[0]!r} is neither an argument nor a dimension")
        if kind not in KINDS or phase not in PHASES:
            raise RuleError(f"rule {label}: kind must be one of {KINDS} and phase one of {PHASES}")
        return Rule(
            function, kind, phase, both, full, family or function.__module__.rpartition(".")[2].replace("_", "-"),
            function.__name__.strip("_").replace("_", "-"), inspect.getdoc(function) or "",
        )  # fmt: skip

    return declare


def rules_of(namespace: dict[str, Any]) -> Iterator[EgglogRule]:
    """The rules among a module's globals, in order of definition."""
    return (v for k, v in namespace.items() if isinstance(v, Rule | TextRule) and not k.startswith("__"))


def select(rules: Iterable[EgglogRule], wanted: Iterable[str | EgglogRule]) -> list[EgglogRule]:
    """The rules named by family, by name, or given as objects, in the order of `rules`, objects last.

    Raises:
        UnknownNameError: a name is neither a family nor a rule; the message lists near misses.
    """
    from eqsat_deploy.errors import UnknownNameError

    rules, wanted = list(rules), list(wanted)
    known = {r.name for r in rules} | {r.family for r in rules}
    names = {w for w in wanted if isinstance(w, str)}
    for missing in sorted(names - known):
        raise UnknownNameError("rule or family", missing, known)
    given = [w for w in wanted if not isinstance(w, str)]
    return [r for r in rules if (r.name in names or r.family in names) and r not in given] + given
