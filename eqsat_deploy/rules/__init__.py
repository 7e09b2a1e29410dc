"""The rule language: rules as functions over operators, compiled to typed facts and actions."""

from eqsat_deploy.language.expressions import one_of, starts_with
from eqsat_deploy.rules.bundles import (
    average_pool,
    commutative,
    fixed,
    function,
    max_pool,
    optional,
    several,
    transposed_window,
    window,
)  # fmt: skip
from eqsat_deploy.rules.domains import (
    Attribute,
    Tensor,
    Variants,
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
    rules,
    rules_of,
    runtime,
    select,
    siblings,
)  # fmt: skip

__all__ = [
    "KINDS", "PHASES", "Attribute", "EgglogRule", "Equation", "Relational", "Rule", "Tensor", "Term", "Variants",
    "average_pool", "boolean", "commutative", "constant", "dtype", "fixed", "function", "index", "integer", "integers",
    "max_pool", "name", "nonnegative", "number", "one_of", "optional", "positive", "rule", "rules", "rules_of",
    "runtime", "select", "several", "shape", "siblings", "starts_with", "tensor", "transposed_window", "window",
]  # fmt: skip
