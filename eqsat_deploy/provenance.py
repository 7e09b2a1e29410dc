"""What the chosen form is owed to: the rules that made what it consists of."""

from __future__ import annotations

from eqsat_deploy.kernels import ENode
from eqsat_deploy.search import Search, exact_anchor


def used_rules(found: Search) -> set[str]:
    """Names of the rules that the chosen form is owed to.

    A rule that makes a term equal to one of its own variables (a pool that changes nothing) is used where the
    class is in the chosen form; any other where the chosen kernel, or the constant it reads, is not the model's own.
    """
    space, saturation = found.space, found.saturation
    chosen = [space.choices[i] for i in found.solution.choice if i >= 0]
    owner = {node: number for number, node in space.nodes}
    by_class: dict[int, list[ENode]] = {}
    for number, node in space.nodes:
        by_class.setdefault(number, []).append(node)
    made = _constant_terms(found, [c for _, node in chosen for c in node.children])
    reached: set[int] = set()
    fused: set[int] = set()
    for number, node in chosen:
        own = space.classes[number].quantized_of
        final = number if own is None else own
        exact = exact_anchor(space, node)
        anchor = owner.get(exact, final)
        reached |= {final, anchor}
        if (anchor, exact) not in space.original:
            made |= _covered(by_class, final, exact.operands)
        if node.steps:
            fused.add(final)
    integer = any(node.integer for _, node in chosen)
    names = set()
    for index, rule in enumerate(saturation.rules):
        where = fused if rule.phase == "kernels" else reached if rule.collapses else made
        used = any(index in space.fired.get(number, ()) for number in where)
        used |= rule.phase == "quantization" and integer and saturation.matches[rule.name] > 0
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


def _constant_terms(found: Search, read: list[int]) -> set[int]:
    """Constant classes among those read, and those their terms are made of."""
    space = found.space
    waiting = [c for c in read if space.classes[c].constant]
    terms: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in terms:
            terms.add(number)
            waiting += space.terms[number].operands if number in space.terms else ()
    return terms
