"""Quantization: INT8 kernels beside float ones, so that precision is chosen by the same extraction as the form.

A second sort holds INT8 codes: `Quant t`. An INT8 kernel with a float result is tied to the exact e-class it
stands in for by a relation, never by a union, so exact e-classes stay exact; one with an INT8 result is merged
with `Quant` of that class. Placement follows TensorRT's explicit-quantization rules: quantize the inputs of
weighted operators; quantize the residual operand so that the sum may leave in INT8; operators that commute with
quantization hand codes on; non-weighted operators take INT8 only if they also return it.
"""

from collections.abc import Callable

from eqsat_deploy.language import OPERATORS, Operator
from eqsat_deploy.rules import TextRule


def _weighted(operator: Operator) -> str:
    """The kernel reads its data as INT8 and its weight, a constant, with per-channel scales."""
    variables = [f"a{i}" for i in range(len(operator.parameters))]
    data, weight = [v for v, (_, s) in zip(variables, operator.parameters, strict=True) if s == "T"][:2]
    quantized = [f"(Quant {v})" if v == data else v for v in variables]
    name = operator.constructor
    return f"""
(rule ((= e (Run (A{name} {" ".join(variables)}) p)) (dynamic {data}) (const {weight}) (quantized-steps p q))
      ((integer-kernel e (I{name} {" ".join(quantized)}) q)) :ruleset quantization)"""


def _both_ways(operator: Operator) -> str:
    """The kernel exists with INT8 operands and an INT8 result only."""
    variables = [f"a{i}" for i in range(len(operator.parameters))]
    pairs = list(zip(variables, operator.parameters, strict=True))
    quantized = " ".join(f"(Quant {v})" if s == "T" else v for v, (_, s) in pairs)
    dynamic = " ".join(f"(dynamic {v})" for v, (_, s) in pairs if s == "T")
    name, arguments = operator.constructor, " ".join(variables)
    matched, steps = f"(= e ({name} {arguments}))", "(EpNone)"
    if operator.epilogue:
        matched, steps = f"(= e (Run (A{name} {arguments}) p)) (quantized-steps p q)", "q"
    return f"""
(rule ((= codes (Quant e)) {matched} {dynamic})
      ((union codes (QRun (I{name} {quantized}) {steps}))) :ruleset quantization)"""


def _commuting(operator: Operator) -> str:
    """Codes pass through: Q(f(x)) = f(Q(x))."""
    variables = [f"a{i}" for i in range(len(operator.parameters))]
    pairs = list(zip(variables, operator.parameters, strict=True))
    quantized = [f"(Quant {v})" if s == "T" else v for v, (_, s) in pairs]
    name = operator.constructor
    return f"""
(rule ((= q (Quant e)) (= e ({name} {" ".join(variables)})) (dynamic e))
      ((union q (Q{name} {" ".join(quantized)}))) :ruleset quantization)"""


def _all(integer: str, build: Callable[[Operator], str]) -> str:
    return "".join(build(o) for o in OPERATORS.values() if o.integer == integer)


epilogues = TextRule(
    "integer-epilogues", "quantization", "approximate", "quantization",
    "An epilogue with every tensor it joins read as INT8; the float form stays as well.",
    """
(relation quantized-steps (Ep Ep))
(quantized-steps (EpNone) (EpNone))
(rule ((= p (EpUnary f b)) (quantized-steps b c)) ((quantized-steps p (EpUnary f c))) :ruleset quantization)
(rule ((= p (EpBinary f i t b)) (quantized-steps b c)) ((quantized-steps p (EpBinary f i t c))) :ruleset quantization)
(rule ((= p (EpBinary f i t b)) (quantized-steps b c) (dynamic t))
      ((quantized-steps p (EpQuant f i (Quant t) c))) :ruleset quantization)""",
)  # fmt: skip

weighted = TextRule(
    "integer-weighted", "quantization", "approximate", "quantization",
    "Convolutions and Linears with constant weights on INT8 inputs, result in float.",
    _all("compute", _weighted),
)  # fmt: skip

requantized = TextRule(
    "integer-requantized", "quantization", "approximate", "quantization",
    "An INT8 kernel may write INT8 where the result is only read as INT8.",
    """
(rule ((integer-kernel e a p) (= q (Quant e))) ((union q (QRun a p))) :ruleset quantization)""",
)  # fmt: skip


def _written(operator: Operator) -> str:
    variables = " ".join(f"a{i}" for i in range(len(operator.parameters)))
    return f"""
(rule ((= q (Quant e)) (= e (Run a p)) (= a (A{operator.constructor} {variables})))
      ((union q (QRun a p))) :ruleset quantization)"""


written = TextRule(
    "float-requantized", "quantization", "approximate", "quantization",
    "A pointwise or normalization kernel that computes in float may write INT8 codes itself.",
    "".join(_written(o) for o in OPERATORS.values() if o.requantizes),
)  # fmt: skip

pointwise = TextRule(
    "integer-pointwise", "quantization", "approximate", "quantization",
    "Pools, means and sums on INT8 that return INT8.",
    _all("pointwise", _both_ways),
)  # fmt: skip

commuting = TextRule(
    "integer-commuting", "quantization", "approximate", "quantization",
    "Quantization commutes with data movement and max-pooling.",
    _all("commute", _commuting),
)  # fmt: skip
