"""What e-classes and shapes are called, for people."""

from __future__ import annotations

from collections import Counter

from eqsat_deploy.language import BATCH, parameter, scalar
from eqsat_deploy.search import Search


def class_name(found: Search, number: int) -> str:
    """What to call an e-class: an input or node of the exported graph, a number, a parameter, `weight*` for a constant
    that is computed from `weight`, else `e<number>`; `int8(...)` around it for its INT8 codes. Of several constants
    computed from one parameter, those of the chosen form come first, the others are `weight*2` and so on."""
    known = found.space.classes[number]
    if known.quantized_of is not None:
        return f"int8({class_name(found, known.quantized_of)})"
    term = found.space.terms.get(number) if known.constant else None
    if term is None:
        return known.origin[0] if known.origin is not None else f"e{number}"
    if term.operator is scalar:
        return f"{term.attributes[0]:g}"
    return (found.named_constants or _name_constants(found))[number]


def _name_constants(found: Search) -> dict[int, str]:
    """Names of all constants, each of its own."""
    space = found.space
    read = {c for i in found.solution.nodes().tolist() for c in space.choices[i][1].children}
    counts: Counter[str] = Counter()
    for number in sorted(space.terms, key=lambda c: (c not in read, c)):
        name = _leading_parameter(found, number) or "constant"
        if space.terms[number].operator is not parameter:
            name = f"{name}*" if name != "constant" else name
            counts[name] += 1
            name += str(counts[name]) if counts[name] > 1 else ""
        found.named_constants[number] = name
    return found.named_constants


def _leading_parameter(found: Search, number: int) -> str | None:
    """The name of the first parameter in the term of a constant class, depth first."""
    term = found.space.terms[number]
    if term.operator is parameter:
        name: str = found.lowered.parameters[term.attributes[0]][0]
        return name
    return next((n for n in (_leading_parameter(found, o) for o in term.operands) if n is not None), None)


def shape_words(shape: tuple[int, ...] | None) -> str:
    """A shape for people: `[n, 512, 7, 7]`, the batch as `n`."""
    if shape is None:
        return "[?]"
    return "[" + ", ".join(_size(d) for d in shape) + "]"


def _size(dimension: int) -> str:
    if not dimension or dimension % BATCH:
        return str(dimension)
    return "n" if dimension == BATCH else f"{dimension // BATCH}n"
