"""What the chosen form is owed to: the rules that made what it consists of, and which kernel computes what."""

from __future__ import annotations

from collections.abc import Iterator

from eqsat_deploy.choices import Member
from eqsat_deploy.freeze import Space
from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import binary, concat, concat_all, unary
from eqsat_deploy.search import Search, exact_anchor
from eqsat_deploy.words import class_name


def used_rules(found: Search) -> set[str]:
    """Names of the rules that the chosen form is owed to.

    A rule that makes a term equal to one of its own variables (a pool that changes nothing) is used where the
    class is in the chosen form; any other where the chosen kernel, or the constant it reads, is not the model's own.
    """
    space, saturation = found.space, found.saturation
    chosen = [space.choices[i] for i in found.solution.choice if i >= 0]
    by_class: dict[int, list[ENode]] = {}
    for number, node in space.nodes:
        by_class.setdefault(number, []).append(node)
    made = _constant_terms(found, [c for _, node in chosen for c in node.children])
    reached: set[int] = set()
    fused: set[int] = set()
    for number, node in chosen:
        final = space.exact(number)
        exact = exact_anchor(space, node)
        anchor = space.owner.get(exact, final)
        reached |= {final, anchor}
        if (anchor, exact) not in space.original:
            made |= _covered(by_class, final, exact.operands)
        if node.steps:
            fused.add(final)
    integer = any(node.integer for _, node in chosen)
    names = set()
    on_fused, on_reached, on_made = (
        {index for number in where for index in space.fired.get(number, ())}
        for where in (fused, reached, made)
    )
    for index, rule in enumerate(saturation.rules):
        used = index in (on_fused if rule.phase == "kernels" else on_reached if rule.collapses else on_made)
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


def computed(space: Space, choice: Member) -> list[Member]:
    """The e-nodes of the language that a choice computes, one on the result of another, its anchor first."""
    number, node = choice
    if node.is_leaf:
        return []
    final = space.exact(number)
    if final != number and not node.integer and node.operands == (final,):  # a conversion
        return []
    return [(space.owner.get(one, final), one) for one in _applications(space, node)]


def _applications(space: Space, node: ENode) -> Iterator[ENode]:
    exact = exact_anchor(space, node)
    if exact.operator is concat_all:
        first, *rest = exact.operands
        joined = [first]
        for operand in rest:
            one = ENode(concat, concat.join((joined[-1], operand), exact.attributes))
            yield one
            joined.append(space.owner.get(one, -1))
        value = joined[-1]
    else:
        yield exact
        value = space.owner.get(exact, -1)
    for step in node.steps:
        if step.operand is None:
            one = ENode(unary, (step.function, value))
        else:
            pair = (value, space.exact(step.operand))
            one = ENode(binary, (step.function, *(pair if step.side == 0 else pair[::-1])))
        yield one
        value = space.owner.get(one, -1)


def inside_of(found: Search) -> dict[int, int]:
    """The kernel, as a choice, that computes an e-class on the way to its result, where a chosen one does."""
    launches = [(index, computed(found.space, found.space.choices[index])) for index in found.launches]
    return {number: index for index, members in reversed(launches) for number, _ in members[:-1]}


def why_unchosen(found: Search, number: int, inside: dict[int, int] | None = None) -> str:
    """Why no form of an e-class is chosen, in words; empty where one is. `inside` is `inside_of(found)`."""
    space, choice = found.space, found.solution.choice
    if choice[number] >= 0:
        return ""
    for codes, known in enumerate(space.classes):
        if known.quantized_of == number and choice[codes] >= 0:
            return "only its INT8 codes are written"
    kernel = (inside_of(found) if inside is None else inside).get(number)
    if kernel is not None:
        owner, node = space.choices[kernel]
        return f"computed inside {node}, which writes {class_name(found, owner)}"
    if space.classes[number].constant:
        return "a constant that no chosen kernel reads"
    return "not needed: the chosen form does without this tensor"
