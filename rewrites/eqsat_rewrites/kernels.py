"""Kernels: an anchor operator and the pointwise steps that the same launch applies before it writes.

Every engine here fuses a convolution or matrix product with bias, residual add and activation (TensorRT's fusion
catalog: Conv + ElementWise + Activation; oneDNN's post-ops), and chains of pointwise operators with each other.
Which of these forms a target really has is a question of price: its cost model answers infinity.
"""

from eqsat_deploy.language import OPERATORS, binary, concat, concat_all, unary
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.rules import Relational, shape
from eqsat_deploy.rules.facts import (
    BINARY_STEP,
    NIL,
    NO_STEPS,
    RUN,
    RUNTIME,
    SNOC,
    UNARY_STEP,
    Action,
    Fact,
    Fired,
    Match,
    Pattern,
    Row,
    Set,
    Union,
    anchor,
    arguments,
    joins,
    steps,
)  # fmt: skip

MAX_STEPS = 8
MAX_JOINS = 2
UNCHECKED = "says which launches there are, and nothing of tensors: check_egraph compares every kernel with its e-class"
E, K, T, A, B = (Variable("T", name) for name in ("e", "k", "t", "a", "b"))
ANCHOR, STEPS = Variable("A", "anchor"), Variable("Ep", "ep")
FUNCTION, REST, SLOT = Variable("String", "f"), Variable("L", "rest"), Variable("i64", "slot")
TAKEN, JOINED, TAKES, JOINS, SIZES = (
    Variable(sort, name)
    for sort, name in (
        ("i64", "taken"),
        ("i64", "joined"),
        ("i64", "takes"),
        ("i64", "joining"),
        ("VI", "sizes"),
    )
)


def _anchors() -> tuple[tuple[tuple[Fact, ...], tuple[Action, ...]], ...]:
    parts = [
        ((Match(E, Pattern(o, arguments(o))), Row(RUNTIME, (E,))),
         (Union(E, RUN(anchor(o)(*arguments(o)), NO_STEPS())),))
        for o in OPERATORS.values() if o.epilogue
    ]  # fmt: skip
    return ((), (Set(steps(NO_STEPS()), 0), Set(joins(NO_STEPS()), 0))), *parts


def _step(
    after: Pattern, step: Pattern, joined: int, *conditions: Fact
) -> tuple[tuple[Fact, ...], tuple[Action, ...]]:
    """Kernel `K` also takes `step`, which its only reader, the operator `after` it, is."""
    facts = (
        Match(E, after), Match(K, RUN(ANCHOR, STEPS)), E != K, *conditions, steps(STEPS) == TAKEN, TAKEN < MAX_STEPS,
        TAKES == TAKEN + 1, joins(STEPS) == JOINED, JOINED + joined == JOINS, JOINS <= MAX_JOINS,
    )  # fmt: skip
    return facts, (Set(steps(step), TAKES), Set(joins(step), JOINS), Union(E, RUN(ANCHOR, step)), Fired(E))


def _join(side: int) -> tuple[tuple[Fact, ...], tuple[Action, ...]]:
    operands = (T, K) if side else (K, T)
    step = BINARY_STEP(FUNCTION, side, T, STEPS)
    return _step(
        Pattern(binary, (FUNCTION, *operands)), step, 1, K != T, shape(K) == SIZES, shape(E) == SIZES
    )


anchors = Relational(
    "kernel-anchors", "kernels", "exact", "kernels",
    "Operators whose kernels may apply further steps, without any.", UNCHECKED, _anchors(),
)  # fmt: skip

unary_epilogue = Relational(
    "kernel-unary-epilogue", "kernels", "exact", "kernels",
    "A kernel applies the pointwise function that follows it.", UNCHECKED,
    (_step(Pattern(unary, (FUNCTION, K)), UNARY_STEP(FUNCTION, STEPS), 0),),
)  # fmt: skip

binary_epilogue = Relational(
    "kernel-binary-epilogue", "kernels", "exact", "kernels",
    "A kernel adds (multiplies, ...) another tensor to its result: a residual, a bias, a gate.", UNCHECKED,
    (_join(0), _join(1)),
)  # fmt: skip

concat_chain = Relational(
    "kernel-concat", "kernels", "exact", "kernels",
    "Nested concatenations along one axis are one launch.", UNCHECKED,
    (
        ((Match(E, Pattern(concat, (SLOT, A, B))), Row(RUNTIME, (E,))),
         (Union(E, Pattern(concat_all, (SLOT, SNOC(SNOC(NIL(), A), B)))),)),
        ((Match(E, Pattern(concat, (SLOT, A, B))), Match(A, Pattern(concat_all, (SLOT, REST)))),
         (Union(E, Pattern(concat_all, (SLOT, SNOC(REST, B)))),)),
    ),
)  # fmt: skip
