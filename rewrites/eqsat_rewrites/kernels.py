"""Kernels: an anchor operator and the pointwise steps that the same launch applies before it writes.

Every engine here fuses a convolution or matrix product with bias, residual add and activation (TensorRT's fusion
catalog: Conv + ElementWise + Activation; oneDNN's post-ops), and chains of pointwise operators with each other.
Which of these forms a target really has is a question of price: its cost model answers infinity.
"""

from eqsat_deploy.language import OPERATORS, Operator
from eqsat_deploy.rules import TextRule

MAX_STEPS = 8
MAX_JOINS = 2


def _anchor(operator: Operator) -> str:
    variables = " ".join(f"a{i}" for i in range(len(operator.parameters)))
    name = operator.constructor
    return (
        f"(rule ((= e ({name} {variables})) (dynamic e))"
        f" ((union e (Run (A{name} {variables}) (EpNone)))) :ruleset kernels)"
    )


anchors = TextRule(
    "kernel-anchors", "kernels", "exact", "kernels",
    "Operators whose kernels may apply further steps, without any.",
    "(EpNone) (set (steps (EpNone)) 0) (set (joins (EpNone)) 0)\n"
    + "\n".join(_anchor(o) for o in OPERATORS.values() if o.epilogue),
)  # fmt: skip

unary_epilogue = TextRule(
    "kernel-unary-epilogue", "kernels", "exact", "kernels",
    "A kernel applies the pointwise function that follows it.",
    f"""
(rule ((= e (Unary f k)) (= k (Run a ep)) (!= e k) (= n (steps ep)) (< n {MAX_STEPS}) (= m (+ n 1)) (= j (joins ep)))
      ((let g (EpUnary f ep)) (set (steps g) m) (set (joins g) j) (union e (Run a g)) (fired $RULE e))
      :ruleset kernels)""",
)  # fmt: skip


def _join(pattern: str, side: int) -> str:
    return f"""
(rule ((= e (Binary f {pattern})) (= k (Run a ep)) (!= e k) (!= k t) (= s (shape k)) (= s (shape e))
       (= n (steps ep)) (< n {MAX_STEPS}) (= m (+ n 1)) (= j (joins ep)) (< j {MAX_JOINS}) (= i (+ j 1)))
      ((let g (EpBinary f {side} t ep)) (set (steps g) m) (set (joins g) i) (union e (Run a g)) (fired $RULE e))
      :ruleset kernels)"""


binary_epilogue = TextRule(
    "kernel-binary-epilogue", "kernels", "exact", "kernels",
    "A kernel adds (multiplies, ...) another tensor to its result: a residual, a bias, a gate.",
    _join("k t", 0) + _join("t k", 1),
)  # fmt: skip

concat_chain = TextRule(
    "kernel-concat", "kernels", "exact", "kernels",
    "Nested concatenations along one axis are one launch.",
    """
(rule ((= e (Concat d a b)) (dynamic e)) ((union e (ConcatAll d (Snoc (Snoc (Nil) a) b)))) :ruleset kernels)
(rule ((= e (Concat d a b)) (= a (ConcatAll d l))) ((union e (ConcatAll d (Snoc l b)))) :ruleset kernels)""",
)  # fmt: skip
