"""The one module that speaks to egglog: the program of a language and its rules, rows in, rows out.

Encoding and its measurements: operators are constructors of sort `T`, shapes a function to seven-slot vectors,
constness a relation. Rows are loaded in bulk through tab-separated files, which is two orders of magnitude
faster than one command per node. Limits are checked between iterations because nothing stops egglog inside one.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

from eqsat_deploy.errors import EqsatError, RuleError
from eqsat_deploy.language import BY_CONSTRUCTOR, OPERATORS, Operator
from eqsat_deploy.language.expressions import Call, Comparison, Guard, OneOf, StartsWith, Variable
from eqsat_deploy.language.shapes import BATCH, SLOTS
from eqsat_deploy.lower import Lowered
from eqsat_deploy.rules import facts
from eqsat_deploy.rules.rule import PHASES, EgglogRule
from eqsat_deploy.tables import Frozen, TableRow, tables_of

# -- text --------------------------------------------------------------------------------------------------

HEADS = {"item": "vec-get", "replace": "vec-set", "vec": "vec-of", "==": "="}
"""What egglog calls a function or comparison, where that is not its own name."""


def written(value: Any) -> str:
    """The egglog text of a term, an expression, or a Python value: a number, a string, a tuple of ints.

    Raises:
        TypeError: egglog has no such value.
    """
    match value:
        case Variable():
            return value.name
        case Call(function="gather", args=(vector, indices)):
            return f'(unstable-vec-map (unstable-fn "vec-get" {written(vector)}) {written(indices)})'
        case Call(function="power", args=(base, exponent)):
            return f"(^ (to-f64 {written(base)}) {written(exponent)})"
        case Call():
            return _applied(value.function, *value.args)
        case facts.Pattern():
            return _applied(value.constructor, *value.args)
        case bool():
            return str(int(value))
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case tuple():
            return _applied("vec", *value)
    raise TypeError(f"{value!r} has no egglog literal")


def _applied(head: str, *args: Any) -> str:
    return f"({' '.join([HEADS.get(head, head), *map(written, args)])})"


def fact_text(fact: facts.Fact) -> str:
    """A fact as egglog has it in the body of a rule."""
    match fact:
        case facts.Match(root, form):
            return f"(= {written(root)} {written(form)})"
        case facts.ShapeOf(tensor):
            return f"(= {written(fact.variable)} (shape {written(tensor)}))"
        case facts.Size(value, tensor, slot):
            return f"(= {written(value)} (vec-get {written(facts.ShapeOf(tensor).variable)} {slot}))"
        case facts.Define(variable, value):
            return f"(= {written(variable)} {written(value)})"
        case facts.Row(relation, terms):
            return _applied(relation.name, *terms)
        case Comparison(operator, left, right):
            return _applied(operator, left, right)
        case OneOf(value, names):
            return f"(set-contains (set-of {' '.join(map(written, names))}) {written(value)})"
        case StartsWith(value, prefix):
            return f'(= 1 (count-matches (+ "|" {written(value)}) {written("|" + prefix)}))'
    raise TypeError(f"{fact!r} is no fact")


def _action_text(action: facts.Action, index: int) -> str:
    match action:
        case facts.Union(root, form):
            return f"(union {written(root)} {written(form)})"
        case facts.Fired(root):
            return f"(fired {index} {written(root)})"
        case facts.Set(call, value):
            return f"(set {written(call)} {written(value)})"
        case facts.Row(relation, terms):
            return _applied(relation.name, *terms)


def rule_text(rule: EgglogRule, index: int, ruleset: str | None = None) -> str:
    """A rule as egglog commands, in the ruleset of its phase or another; `index` identifies it in `(fired index e)`."""
    return "\n".join(_clause_text(clause, ruleset or rule.phase, index) for clause in rule.clauses())


def _clause_text(clause: facts.Clause, phase: str, index: int) -> str:
    actions = " ".join(_action_text(action, index) for action in clause.actions)
    if not clause.facts:
        return actions
    body = "\n       ".join(map(fact_text, clause.facts))
    return f'(rule ({body})\n      ({actions}) :ruleset {phase} :name "{clause.name}")'


# -- the program -------------------------------------------------------------------------------------------

COLUMNS = {"i64": "i64", "f64": "f64", "String": "String", "VI": "i64", "T": "i64", "L": "i64"}

LOADED = {"T": "(Node a{})", "L": "(NodeList a{})", "VI": "w{}"}
"""How a row's column becomes an argument, by sort; a vector is looked up by a fact, other columns are arguments."""
NEAR = 64
"""Rows of a model within which siblings are joined."""


def _declared(constructor: facts.Constructor) -> str:
    return f"(constructor {constructor.name} ({' '.join(constructor.sorts)}) {constructor.sort})"


PRELUDE = f"""
(ruleset load-vectors) (ruleset load) (ruleset analysis) (ruleset kin) (ruleset matching)
{" ".join(f"(ruleset {p})" for p in PHASES)}
(sort VI (Vec i64))
(sort FII (UnstableFn (i64) i64))
(sort Names (Set String))
(sort T) (sort L) (sort A) (sort Ep) (sort Q) (constructor NodeList (i64) L)
{" ".join(_declared(c) for c in facts.CONSTRUCTORS)}
{" ".join(f"(relation {r.name} ({' '.join(r.sorts)}))" for r in facts.RELATIONS)}
(function steps (Ep) i64 :no-merge) (function joins (Ep) i64 :no-merge)
(function vector (i64) VI :no-merge)
(function shape (T) VI :no-merge)
(function dtype (T) String :merge old)
(function row-of (T) i64 :merge (min old new))
(relation over (T T))
(relation fired (i64 T))
(relation row-Nil (i64)) (relation row-Snoc (i64 i64 i64))
(relation row-shape (i64 i64)) (relation row-dtype (i64 String)) (relation row-const (i64)) (relation row-dynamic (i64))
(relation row-nonnegative (i64))
(rule ((row-Nil i)) ((union (NodeList i) (Nil))) :ruleset load)
(rule ((row-Snoc i l x)) ((union (NodeList i) (Snoc (NodeList l) (Node x)))) :ruleset load)
(rule ((row-shape i v) (= s (vector v))) ((set (shape (Node i)) s)) :ruleset load)
(rule ((row-dtype i d)) ((set (dtype (Node i)) d)) :ruleset load)
(rule ((row-const i)) ((const (Node i))) :ruleset load)
(rule ((row-dynamic i)) ((dynamic (Node i))) :ruleset load)
(rule ((row-nonnegative i)) ((nonnegative (Node i))) :ruleset load)
(rule ((= i (row-of d)) (over x d) (over x e) (= j (row-of e)) (< i j) (< (- j i) {NEAR}))
      ((siblings d e)) :ruleset kin)
"""

SCAFFOLDS = frozenset({"over", "steps", "joins", facts.QUANTIZED_STEPS.name, facts.INTEGER_STEPS.name})
"""Tables that only serve to find others; so do those of rows to be loaded and of their vectors."""


def declaration(o: Operator) -> str:
    """Constructors, row loaders and analysis rules of an operator."""
    return "\n".join(_declare(o))


def _declare(o: Operator) -> list[str]:
    name = o.constructor
    sorts = [s for _, s in o.parameters]
    variables = [f"a{i}" for i in range(len(sorts))]
    columns = [COLUMNS[s] for s in sorts]
    body = [f"(= w{i} (vector a{i}))" for i, s in enumerate(sorts) if s == "VI"]
    bound = [LOADED.get(s, "a{}").format(i) for i, s in enumerate(sorts)]
    numbered = "(set (row-of (Node i)) i)" if o.numbered else ""
    lines = [
        f"(constructor {name} ({' '.join(sorts)}) T)",
        f"(relation row-{name} (i64 {' '.join(columns)}))",
        f"(rule ((row-{name} i {' '.join(variables)}) {' '.join(body)})"
        f" ((union (Node i) ({name} {' '.join(bound)})) {numbered}) :ruleset load)",
    ]
    if o.epilogue:
        lines.append(_declared(facts.anchor(o)))
    if o.integer in ("compute", "pointwise", "scale"):
        lines.append(_declared(facts.integer_anchor(o)))
    if o.integer == "commute":
        lines.append(_declared(facts.on_codes(o)))
    term = f"({name} {' '.join(variables)})"
    if o.shape is not None:
        shapes = [Variable("VI", f"s{i}") if s == "T" else Variable(s, f"a{i}") for i, s in enumerate(sorts)]
        body = [f"(= s{i} (shape a{i}))" for i, s in enumerate(sorts) if s == "T"]
        result = written(o.shape(*shapes))
        lines.append(
            f"(rule ((= e {term}) {' '.join(body)} (= r {result})) ((set (shape e) r)) :ruleset analysis)"
        )
    if o.nonnegative is not None:
        condition = o.nonnegative(*(Variable(s, f"a{i}") for i, s in enumerate(sorts) if s != "T"))
        body = [fact_text(condition)] if isinstance(condition, Guard) else []
        body += [f"(nonnegative a{i})" for i, s in enumerate(sorts) if s == "T"]
        lines.append(f"(rule ((= e {term}) {' '.join(body)}) ((nonnegative e)) :ruleset analysis)")
    if o.integer == "compute":
        lines.append(f"(rule ((= e {term})) ((over a{facts.first_operand(o)} e)) :ruleset kin)")
    if o.name in ("unary", "reshape", "permute"):
        lines.append(f"(rule ((= e {term}) (over x a{facts.first_operand(o)})) ((over x e)) :ruleset kin)")
    if o.shape is not None or "T" in sorts:
        operands = [f"a{i}" for i, s in enumerate(sorts) if s == "T"]
        body = [f"(const {a})" for a in operands]
        if o.name == "expand":  # to a shape with the batch: known only when the model runs
            batched = [f"(= 0 (% (vec-get a1 {i}) {BATCH}))" for i in range(1, SLOTS)]
            lines += [f"(rule ((= e {term}) {b}) ((dynamic e)) :ruleset analysis)" for b in batched]
            body += [b.replace("(= 0", "(!= 0") for b in batched]
        lines.append(f"(rule ((= e {term}) {' '.join(body)}) ((const e)) :ruleset analysis)")
        lines += [f"(rule ((= e {term}) (dynamic {a})) ((dynamic e)) :ruleset analysis)" for a in operands]
    return lines


ENGINE = "egglog.bindings"
_loading = threading.Lock()


def _egglog() -> Any:
    """The engine, loaded where it is first needed, and without its package: that imports a formatter of source text and
    more, which takes five times as long. Whoever imports the package has the same engine."""
    with _loading:
        if ENGINE not in sys.modules:
            package = find_spec("egglog")
            spec = package and PathFinder.find_spec(ENGINE, package.submodule_search_locations)
            if spec is None or spec.loader is None:
                return import_module(ENGINE)  # with its own words for what is missing
            engine = module_from_spec(spec)
            spec.loader.exec_module(engine)
            sys.modules[ENGINE] = engine
    return sys.modules[ENGINE]


@lru_cache(maxsize=2048)
def _parsed(program: str) -> list[Any]:
    """Commands do not know which e-graph they are for, and the same rules are loaded again and again."""
    return _egglog().EGraph().parse_program(program)  # type: ignore[no-any-return]


KEPT = 8


class _Kept(threading.local):
    """E-graphs to use again, of each thread its own: egglog's may not leave the thread that made them."""

    def __init__(self) -> None:
        self.egraphs: dict[tuple[int | bool, ...], EGraph] = {}


_kept = _Kept()


@contextmanager
def loaded(rules: Sequence[EgglogRule], *, apart: bool = False) -> Iterator[EGraph]:
    """An e-graph with `rules` and no rows. It is emptied and kept: loading rules takes ten times as long as that. With
    `apart`, every rule is a ruleset of its own, as `EGraph.together` needs."""
    key = (apart, *map(id, rules))  # of objects that the kept e-graph holds on to
    kept = _kept.egraphs
    egraph = kept.pop(key, None) or EGraph(rules, apart=apart)
    egraph.push()
    yield egraph
    egraph.pop(egraph.depth)
    kept[key] = egraph
    while len(kept) > KEPT:
        del kept[next(iter(kept))]


class EGraph:
    """An egglog e-graph over the language, with rules loaded."""

    def __init__(self, rules: Sequence[EgglogRule], *, apart: bool = False) -> None:
        self.rules = tuple(rules)
        self.depth = 0
        self.combined = 0
        self._egglog = _egglog().EGraph()
        self._run(PRELUDE)
        # One by one: every node that is parsed holds a copy of the whole text.
        for operator in OPERATORS.values():
            self._run(declaration(operator))
        for index, rule in enumerate(self.rules):
            try:
                own = f"rule-{index}" if apart else None
                self._run((f"(ruleset {own})\n" if own else "") + rule_text(rule, index, own))
            except RuleError:
                raise
            except Exception as error:
                raise RuleError(f"rule {rule.name!r} (family {rule.family}): {error}") from error

    def _run(self, program: str) -> Any:
        return self._egglog.run_program(*_parsed(program))

    def push(self) -> None:
        """Remember the e-graph as it is; `depth` counts how often."""
        self._run("(push)")
        self.depth += 1

    def pop(self, times: int = 1) -> None:
        """Back to what was remembered last, or `times` before."""
        self._run(f"(pop {times})")
        self.depth -= times

    def together(self, indices: Iterable[int]) -> str:
        """The name of a ruleset of these rules, of an e-graph whose rules are loaded apart."""
        self.combined += 1
        name = f"together-{self.combined}"
        text = f"(unstable-combined-ruleset {name} {' '.join(f'rule-{index}' for index in indices)})"
        self._egglog.run_program(*self._egglog.parse_program(text))
        return name

    def load(self, lowered: Lowered, *, shapes: bool = True) -> None:
        """Put the rows in, with torch's shape of every one: a wrong shape rule, or a union that changes a shape, fails
        at once. Without `shapes`, analysis finds them."""
        tables, vectors = tables_of(lowered, shapes)
        program = []
        for length in sorted({len(v) for v in vectors}):
            columns = [f"x{i}" for i in range(length)]
            tables[f"vector{length}"] = [(i, *v) for v, i in vectors.items() if len(v) == length]
            program.append(
                f"(relation vector{length} ({' '.join(['i64'] * (length + 1))}))"
                f"(rule ((vector{length} i {' '.join(columns)}))"
                f" ((set (vector i) (vec-of {' '.join(columns)}))) :ruleset load-vectors)"
            )
        self._run("\n".join(program))
        with tempfile.TemporaryDirectory(prefix="eqsat-") as folder:
            for name, rows in tables.items():
                path = Path(folder) / f"{name}.tsv"
                path.write_text("".join("\t".join(map(str, r)) + "\n" for r in rows))
                self._egglog.run_program(*self._egglog.parse_program(f"(input {name} {written(str(path))})"))
        self._run("(run load-vectors 1) (run load 1)")

    def step(self, schedule: str) -> tuple[bool, dict[str, int], dict[str, float]]:
        """Run a schedule once: whether it changed anything, and matches and seconds per rule.

        Raises:
            RuleError: a union joined tensors of different shapes.
        """
        try:
            output: Any = self._run(f"(run-schedule {schedule})")[0]
        except _egglog().EggSmolError as error:
            if "shape" in str(error):
                raise RuleError(
                    "a rule joined two tensors of different shapes; run research.find_unsound_rule on this model "
                    "with these rules to see which"
                ) from error
            raise EqsatError(f"egglog failed: {error}") from error
        report = output.report
        seconds = {
            name: taken.total_seconds() for name, taken in report.search_and_apply_time_per_rule.items()
        }
        return report.updated, dict(report.num_matches_per_rule), seconds

    def size(self) -> int:
        """Number of e-nodes of sort T."""
        (output,) = self._run("(print-size)")
        return sum(size for name, size in output.sizes if name in BY_CONSTRUCTOR)

    def holds(self, given: Iterable[facts.Fact]) -> bool:
        """Whether the facts hold together for some values of their variables.

        Raises:
            RuleError: a fact is malformed, or has a variable that none of them binds.
        """
        text = f"(check {' '.join(map(fact_text, given))})"
        try:
            self._egglog.run_program(*self._egglog.parse_program(text))
        except _egglog().EggSmolError as error:
            if "Check failed" in str(error):
                return False
            raise RuleError(str(error)) from error
        return True

    def matches(self) -> dict[str, tuple[int, facts.Clause]]:
        """Find every place where a rule that equates terms holds now: the name of a table of the values of a clause's
        `bound` variables, the rule's index, and the clause. Nothing else changes."""
        tables = {}
        for index, rule in enumerate(self.rules):
            for part, clause in enumerate(rule.clauses()):
                if not clause.equates:
                    continue
                name = f"match-{index}-{part}"
                tables[name] = (index, clause)
                sorts, values = (
                    " ".join(text) for text in zip(*((v.sort, v.name) for v in clause.bound), strict=True)
                )
                body = " ".join(fact_text(fact) for fact in clause.facts if not _distinguishes(fact))
                self._run(
                    f"(relation {name} ({sorts})) (rule ({body}) (({name} {values})) :ruleset matching)"
                )
        self._run("(run-schedule (run matching))")
        return tables

    def frozen(self) -> Frozen:
        """What the e-graph has found, decoded."""
        egglog = self._egglog
        vectors: dict[Any, tuple[int, ...]] = {}

        def vector(value: Any) -> tuple[int, ...]:
            if value not in vectors:
                vectors[value] = tuple(map(egglog.value_to_i64, egglog.value_to_vec(value)))
            return vectors[value]

        decode = {
            "i64": egglog.value_to_i64,
            "f64": egglog.value_to_f64,
            "String": egglog.value_to_string,
            "VI": vector,
        }

        def rows(table: Any) -> list[TableRow]:
            decoders = [decode.get(s) for s in table.input_sorts]
            output = decode.get(table.output_sort)
            if not any(decoders) and not output:
                return [(tuple(row.inputs), row.output) for row in table.rows]
            return [
                (
                    tuple(d(v) if d else v for d, v in zip(decoders, row.inputs, strict=True)),
                    output(row.output) if output else row.output,
                )
                for row in table.rows
            ]

        tables = egglog.freeze().functions.items()
        found = ((n, t) for n, t in tables if n not in SCAFFOLDS and not n.startswith(("row-", "vector")))
        return Frozen({n: (tuple(t.input_sorts), t.output_sort, rows(t)) for n, t in found})


def _distinguishes(fact: facts.Fact) -> bool:
    """Whether it asks that two e-classes differ, which no longer holds where the rule has joined them."""
    return isinstance(fact, Comparison) and fact.operator == "!=" and getattr(fact.left, "sort", "") == "T"
