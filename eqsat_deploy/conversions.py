"""Looking at conversions: the model's own operators are ruled out wherever a rule found another form."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from math import inf

from eqsat_deploy.freeze import CONCAT, ENode, Space
from eqsat_deploy.price import Priced


def exact_anchor(space: Space, node: ENode) -> ENode:
    """The plain e-node whose value a kernel's anchor stands for: INT8 operands read as the tensors they encode."""
    if node.operator is None or node.kind in (CONCAT, "opaque"):
        return node
    codes = [space.classes[o].quantized_of for o in node.operands]
    operands = tuple(o if code is None else code for o, code in zip(node.operands, codes, strict=True))
    return ENode(node.operator, node.kind, node.operator.join(operands, node.attributes))


def prefer_converted(priced: Priced, families: Collection[str]) -> Priced:
    """`priced` without the e-nodes that rules of `families` found other forms for."""
    space = priced.space
    indices = {i for i, rule in enumerate(space.saturation.rules) if rule.family in families}
    converted = {number for number, fired in space.fired.items() if indices & set(fired)}
    replaced = {node for number, node in space.original if number in converted and _was_matched(node)}
    costs = priced.costs.copy()
    for index, (_, node) in enumerate(space.choices):
        if exact_anchor(space, node) in replaced:
            costs[index] = inf
    return replace(priced, costs=costs)


def _was_matched(node: ENode) -> bool:
    """Whether a conversion replaces this operator; what merely shares a class with it (a convolution before an
    identity pool) stays."""
    return node.kind in ("linear", "self_attention", "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d")
