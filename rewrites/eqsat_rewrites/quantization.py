"""Quantization: INT8 kernels beside float ones, so that precision is chosen by the same extraction as the form.

A second sort holds INT8 codes: `Quant t`. An INT8 kernel with a float result is tied to the exact e-class it
stands in for by a relation, never by a union, so exact e-classes stay exact; one with an INT8 result is merged
with `Quant` of that class. Placement follows TensorRT's explicit-quantization rules: quantize the inputs of
weighted operators; quantize the residual operand so that the sum may leave in INT8; operators that commute with
quantization hand codes on; non-weighted operators take INT8 only if they also return it.
"""

from collections.abc import Callable

from eqsat_deploy.language import OPERATORS, Operator
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.rules import Relational
from eqsat_deploy.rules.facts import (
    BINARY_STEP,
    CONSTANT,
    INTEGER_KERNEL,
    INTEGER_STEP,
    INTEGER_STEPS,
    NO_STEPS,
    QUANT,
    QUANT_RUN,
    QUANTIZED_STEPS,
    RUN,
    RUNTIME,
    UNARY_STEP,
    Action,
    Fact,
    Match,
    Pattern,
    Relation,
    Row,
    Union,
    anchor,
    arguments,
    integer_anchor,
    on_codes,
)  # fmt: skip
from eqsat_extraction.kernel import Kind

UNCHECKED = (
    "ties INT8 to what it stands in for, which is equal to a tolerance alone: the results of a quantized module are "
    "compared with its own"
)
E, T = Variable("T", "e"), Variable("T", "t")
CODES, ANCHOR = Variable("Q", "codes"), Variable("A", "anchor")
STEPS, ON_INT8, EARLIER, EARLIER_ON_INT8 = (Variable("Ep", n) for n in ("ep", "epq", "earlier", "earlierq"))
FUNCTION, SIDE = Variable("String", "f"), Variable("i64", "side")

Part = tuple[tuple[Fact, ...], tuple[Action, ...]]


def _operands(operator: Operator) -> list[Variable]:
    return [a for a in arguments(operator) if a.sort == "T"]


def _quantized(operator: Operator) -> tuple[object, ...]:
    """All arguments, every operand as its codes (a list says itself that they are meant)."""
    return tuple(QUANT(a) if a.sort == "T" else a for a in arguments(operator))


def _on_int8(operator: Operator) -> tuple[Pattern, list[Fact]]:
    """Its integer kernel, and what that asks for: codes of what runs, constants beside them."""
    kernel = integer_anchor(operator)
    codes = [sort == "Q" for sort in kernel.sorts]
    given = arguments(operator)
    operands = [(a, read) for a, read in zip(given, codes, strict=True) if a.sort == "T"]
    return kernel(*(QUANT(a) if read else a for a, read in zip(given, codes, strict=True))), [
        Row(RUNTIME if read else CONSTANT, (a,)) for a, read in operands
    ]


def _weighted(operator: Operator) -> Part:
    """The kernel reads its data as INT8 and its weight, a constant, with per-channel scales."""
    data, weight = _operands(operator)[:2]
    kernel, _ = _on_int8(operator)
    facts = (
        Match(E, RUN(anchor(operator)(*arguments(operator)), STEPS)), Row(RUNTIME, (data,)), Row(CONSTANT, (weight,)),
        Row(QUANTIZED_STEPS, (STEPS, ON_INT8)),
    )  # fmt: skip
    return facts, (Row(INTEGER_KERNEL, (E, kernel, ON_INT8)),)


def _both_ways(operator: Operator) -> Part:
    """The kernel exists with INT8 operands and an INT8 result only; what runs and it joins later is INT8, too."""
    kernel, conditions = _on_int8(operator)
    found: tuple[Fact, ...] = (Match(E, Pattern(operator, arguments(operator))),)
    steps: object = NO_STEPS()
    if operator.epilogue:
        found = (
            Match(E, RUN(anchor(operator)(*arguments(operator)), STEPS)),
            Row(INTEGER_STEPS, (STEPS, ON_INT8)),
        )
        steps = ON_INT8
    facts = (Match(CODES, QUANT(E)), *found, *conditions)
    return facts, (Union(CODES, QUANT_RUN(kernel, steps)),)


def _scaled(operator: Operator) -> list[Part]:
    """As `_both_ways`, of what pools and concatenations hand on: a product takes its scales and shifts itself."""
    facts, actions = _both_ways(operator)
    data = _operands(operator)[0]
    givers = [o for o in OPERATORS.values() if o.kind in (Kind.POOL, Kind.CONCAT) and o.shape is not None]
    of = [tuple(Variable(sort, f"b{i}") for i, (_, sort) in enumerate(o.parameters)) for o in givers]
    return [((*facts, Match(data, Pattern(o, given))), actions) for o, given in zip(givers, of, strict=True)]


def _commuting(operator: Operator) -> Part:
    """Codes pass through: Q(f(x)) = f(Q(x))."""
    facts = (Match(CODES, QUANT(E)), Match(E, Pattern(operator, arguments(operator))), Row(RUNTIME, (E,)))
    return facts, (Union(CODES, on_codes(operator)(*_quantized(operator))),)


def _written(operator: Operator) -> Part:
    """The kernel's result leaves as codes."""
    kernel = Match(ANCHOR, anchor(operator)(*arguments(operator)))
    facts = (Match(CODES, QUANT(E)), Match(E, RUN(ANCHOR, STEPS)), kernel)
    return facts, (Union(CODES, QUANT_RUN(ANCHOR, STEPS)),)


def _rule(name: str, doc: str, *parts: Part) -> Relational:
    return Relational(name, "quantization", "approximate", "quantization", doc, UNCHECKED, parts)


def _each(integer: str, part: Callable[[Operator], Part]) -> tuple[Part, ...]:
    return tuple(part(o) for o in OPERATORS.values() if o.integer == integer)


def _steps(relation: Relation, form: Pattern, on_int8: Pattern, *conditions: Fact) -> Part:
    facts = (Match(STEPS, form), Row(relation, (EARLIER, EARLIER_ON_INT8)), *conditions)
    return facts, (Row(relation, (STEPS, on_int8)),)


_BINARY = (FUNCTION, SIDE, T)

epilogues = _rule(
    "integer-epilogues", "An epilogue with every tensor it joins read as INT8; beside weights, also as it is.",
    *(((), (Row(relation, (NO_STEPS(), NO_STEPS())),)) for relation in (QUANTIZED_STEPS, INTEGER_STEPS)),
    *(_steps(relation, UNARY_STEP(FUNCTION, EARLIER), UNARY_STEP(FUNCTION, EARLIER_ON_INT8))
      for relation in (QUANTIZED_STEPS, INTEGER_STEPS)),
    *(_steps(relation, BINARY_STEP(*_BINARY, EARLIER), INTEGER_STEP(FUNCTION, SIDE, QUANT(T), EARLIER_ON_INT8),
             Row(RUNTIME, (T,))) for relation in (QUANTIZED_STEPS, INTEGER_STEPS)),
    _steps(QUANTIZED_STEPS, BINARY_STEP(*_BINARY, EARLIER), BINARY_STEP(*_BINARY, EARLIER_ON_INT8)),
    _steps(INTEGER_STEPS, BINARY_STEP(*_BINARY, EARLIER), BINARY_STEP(*_BINARY, EARLIER_ON_INT8),
           Row(CONSTANT, (T,))),
)  # fmt: skip

weighted = _rule(
    "integer-weighted", "Convolutions and Linears with constant weights on INT8 inputs, result in float.",
    *_each("compute", _weighted),
)  # fmt: skip

requantized = _rule(
    "integer-requantized", "An INT8 kernel may write INT8 where the result is only read as INT8.",
    ((Row(INTEGER_KERNEL, (E, ANCHOR, STEPS)), Match(CODES, QUANT(E))), (Union(CODES, QUANT_RUN(ANCHOR, STEPS)),)),
)  # fmt: skip

written = _rule(
    "float-requantized",
    "A pointwise or normalization kernel that computes in float may write INT8 codes itself.",
    *(_written(o) for o in OPERATORS.values() if o.requantizes),
)

pointwise = _rule(
    "integer-pointwise",
    "Pools, means, sums, and scales and shifts of pools and concatenations, on INT8 that return INT8.",
    *_each("pointwise", _both_ways),
    *(part for o in OPERATORS.values() if o.integer == "scale" for part in _scaled(o)),
)

commuting = _rule(
    "integer-commuting",
    "Quantization commutes with data movement and max-pooling.",
    *_each("commute", _commuting),
)
