"""The catalogues in the reference, made from the live declarations: `{catalogue} rules` in a page becomes the rules."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from eqsat_deploy.cli.parser import parsers
from eqsat_deploy.language import OPERATORS, SLOTS
from eqsat_deploy.language.expressions import Call, Comparison, OneOf, StartsWith, Variable
from eqsat_deploy.rules import EgglogRule, Rule
from eqsat_deploy.rules.domains import Attribute, Tensor
from eqsat_deploy.rules.facts import Pattern, Row
from eqsat_deploy.scales import scale_rules
from eqsat_deploy.selection import registered_rules
from eqsat_deploy.targets import TARGETS, find_target, target_of
from eqsat_extraction.cost_models import cost_models, find_cost_model
from eqsat_extraction.extractor import EXTRACTORS

ZOO = Path(__file__).parents[1] / "benchmarks" / "results" / "zoo_coverage.json"
MODELS = 6
"""How many models are named at a rule."""


def rules() -> Iterator[str]:
    """Every registered rule, by family: what it says, where it holds, before and after, and where it is used."""
    used, models = defaultdict(list), json.loads(ZOO.read_text())
    for model in models:
        for name in model.get("rules_used") or ():
            used[name].append(model["model"])
    for family, found in groupby(registered_rules(), key=lambda rule: rule.family):
        yield f"## {family}\n"
        for rule in found:
            where = used[rule.name]
            more = f" and {len(where) - MODELS} more" if len(where) > MODELS else ""
            shown = f"{len(where)} of {len(models)}: {', '.join(where[:MODELS])}{more}" if where else "none"
            yield f"### {rule.name}\n\n{rule.doc}\n\n{_statement(rule)}\n"
            moves = ", moves the scales that calibration chooses" if rule in scale_rules() else ""
            yield f":Kind: {rule.kind}, in the phase {rule.phase}{moves}\n:In the chosen form of models: {shown}\n"


def _statement(rule: EgglogRule) -> str:
    """Before and after, as the rule's function writes them, its guards, and what its arguments may be."""
    if not isinstance(rule, Rule):
        count = len(rule.clauses())
        return f"No equation between two terms, but {count} statements, one for every operator concerned.\n"
    arrow = "<=>" if rule.both else "=>"
    lines = [f"{words(left)}\n{arrow} {words(right)}" for left, right in rule.pairs]
    lines += [f"where {words(guard)}" for guard in rule.guards]
    domains = [f"`{name}` {text}" for name, domain in rule.domains.items() if (text := _domain(domain))]
    given = f"\n:Where: {', '.join(domains)}" if domains else ""
    return f"```text\n{chr(10).join(lines)}\n```\n{given}"


def _domain(domain: Any) -> str:
    match domain:
        case Tensor(extents=None):
            return ""
        case Tensor(prefix=prefix, extents=extents, values=values):
            sizes = ["*".join(map(str, extent.factors)) for extent in extents]
            kind = "" if values == "real" else f" {values}"
            shape = f"`({', '.join([prefix] * bool(prefix) + sizes)})`"
            return f"{shape}{kind}" if prefix != "~" else kind.strip()
        case Attribute(sort=sort):
            return {"i64": "integer", "f64": "number", "VI": "integers", "String": "name"}.get(sort, sort)
    return ""


def words(value: Any) -> str:
    """A term, an expression or a guard of a rule, in the notation of Python."""
    match value:
        case Variable(name=name):
            return name
        case Pattern(head=head, args=args):
            return f"{getattr(head, 'name', '')}({', '.join(map(words, args))})"
        case Call(function="vec", args=items) | tuple(items):
            encoded = len(items) == SLOTS and isinstance(items[0], int) and 0 <= items[0] < SLOTS
            return f"({', '.join(map(words, items[SLOTS - items[0] :] if encoded else items))})"
        case Call(function="item", args=(vector, position)):
            return f"{words(vector)}[{words(position)}]"
        case Call(function=function, args=(left, right)) if function in "+-*/%":
            return f"{words(left)} {'//' if function == '/' else function} {words(right)}"
        case Call(function=function, args=args):
            return f"{function}({', '.join(map(words, args))})"
        case Comparison(operator=operator, left=left, right=right):
            return f"{words(left)} {operator} {words(right)}"
        case OneOf(value=given, names=names):
            return f"{words(given)} in {names}"
        case StartsWith(value=given, prefix=prefix):
            return f"{words(given)} starts with {prefix!r}"
        case Row(relation=relation, terms=terms):
            return relation.words.format(*map(words, terms))
    return repr(value)


def operators() -> Iterator[str]:
    """Every declared operator, by the module that declares it."""
    for module, found in groupby(OPERATORS.values(), key=lambda operator: operator.body.__module__):
        yield f"## {module.rpartition('.')[2]}\n"
        yield "| operator | what it computes | to a target | INT8 |\n|---|---|---|---|"
        for operator in found:
            parameters = ", ".join(name for name, _ in operator.parameters)
            kind = operator.kind if operator.launched else f"{operator.kind}, only as part of another"
            yield f"| `{operator.name}({parameters})` | {_row(operator.doc)} | {kind} | {operator.integer} |"
        yield ""


def targets() -> Iterator[str]:
    """Every registered target."""
    yield "| target | engine | cost models | INT8 codes of activations | by Triton |\n|---|---|---|---|---|"
    for target in sorted(map(find_target, TARGETS.entries()), key=lambda target: target.rank):
        grid = target.grid
        codes = [
            "signed" + " or unsigned" * grid.unsigned,
            "with zero points" if grid.asymmetric else "symmetric",
            "a scale for every channel" if grid.channels else "one scale",
        ]
        models = ", ".join(f"`{name}`" for name in target.cost_models)
        triton = f"`{target.triton.backend}`" if target.triton else "no"
        yield f"| `{target.name}` | {_row(target.engine.__doc__)} | {models} | {', '.join(codes)} | {triton} |"


def costs() -> Iterator[str]:
    """Every registered cost model."""
    yield "| cost model | what it prices | unit | float | INT8 | for |\n|---|---|---|---|---|---|"
    for name, entry in cost_models().items():
        model, target = find_cost_model(name), target_of(name)
        integer = "yes" if model.int8 else "no"
        made = f"`{target.name}`" if target else "any"
        yield (
            f"| `{name}` | {_row(entry.load().__doc__)} | {model.unit} | {model.float_dtype} | {integer} | {made} |"
        )


def extractors() -> Iterator[str]:
    """Every registered extractor."""
    yield "| extractor | what its answers are optimal for |\n|---|---|"
    for name in EXTRACTORS.entries():
        yield f"| `{name}` | {EXTRACTORS.find(name).optimal} |"


def commands() -> Iterator[str]:
    """The help of every subcommand, as the command line prints it."""
    os.environ["COLUMNS"] = "100"
    parser, made = parsers()
    yield f"## eqsat-deploy\n\n```text\n{parser.format_help()}```\n"
    for name, command in made.items():
        yield f"## {name}\n\n```text\n{command.format_help().partition('exit codes:')[0].rstrip()}\n```\n"


def _row(text: str | None) -> str:
    """The first paragraph of a docstring, in one cell of a table."""
    return " ".join((text or "").partition("\n\n")[0].split()).replace("|", "\\|")


CATALOGUES: dict[str, Callable[[], Iterator[str]]] = {
    "rules": rules,
    "operators": operators,
    "targets": targets,
    "cost-models": costs,
    "extractors": extractors,
    "commands": commands,
}


class Catalogue(SphinxDirective):
    """`{catalogue} NAME`: one of `CATALOGUES`, as the Markdown that it is."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes of the page."""
        text = "\n".join(CATALOGUES[self.arguments[0]]())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("catalogue", Catalogue)
    return {"parallel_read_safe": True}
