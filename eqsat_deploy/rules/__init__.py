"""The rule language: rules as functions over operators, compiled to typed facts and actions."""

from eqsat_deploy.language.expressions import one_of, starts_with
from eqsat_deploy.rules.domains import (
    Attribute,
    Tensor,
    boolean,
    index,
    integer,
    integers,
    name,
    number,
    positive,
    tensor,
)  # fmt: skip
from eqsat_deploy.rules.facts import shape
from eqsat_deploy.rules.rule import (
    KINDS,
    PHASES,
    EgglogRule,
    Equation,
    Relational,
    Rule,
    Term,
    constant,
    dtype,
    nonnegative,
    rule,
    rules_of,
    runtime,
    select,
    siblings,
)  # fmt: skip

__all__ = [
    "KINDS", "PHASES", "Attribute", "EgglogRule", "Equation", "Relational", "Rule", "Tensor", "Term", "boolean",
    "constant", "dtype", "index", "integer", "integers", "name", "nonnegative", "number", "one_of", "positive", "rule",
    "rules_of", "runtime", "select", "shape", "siblings", "starts_with", "tensor",
]  # fmt: skip
