"""Derivation: which rule made which e-node, and the equalities that lead from one term to another.

egglog keeps no proofs. But in the saturated e-graph every place where a rule holds can be asked for, so the run is done
once more in small: from the model's own terms on, with every place taken as soon as its left side is there. Terms stay
apart until a place joins them, and every join remembers why, so the equalities between two terms can be read off,
each of them proved by those before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from eqsat_deploy.choices import Member
from eqsat_deploy.egraph import EGraph
from eqsat_deploy.errors import EqsatError
from eqsat_deploy.freeze import decoded, recognized
from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import Operator
from eqsat_deploy.language.expressions import Variable
from eqsat_deploy.rules.facts import Clause, Match, Pattern, Union
from eqsat_deploy.saturate import saturated
from eqsat_deploy.scheduling import Iteration
from eqsat_deploy.search import Search


@dataclass(frozen=True)
class Applied:
    """A pattern's operator: the variable of its result, and its arguments, each a variable or a value."""

    result: str
    operator: Operator
    args: tuple[Any, ...]

    def operands(self) -> Iterator[str]:
        """The variables that it reads."""
        return (
            a.name for a, (_, sort) in zip(self.args, self.operator.parameters, strict=True) if sort == "T"
        )

    def under(self, binding: Mapping[str, Any]) -> ENode:
        """The e-node that it is where variables have these values."""
        return ENode(
            self.operator, tuple(binding[a.name] if isinstance(a, Variable) else a for a in self.args)
        )


@dataclass(frozen=True)
class Flat:
    """A clause with a variable for every operator: what it finds, readers first; what it makes, operands first; and
    the pairs that it makes equal."""

    left: tuple[Applied, ...]
    right: tuple[Applied, ...]
    unions: tuple[tuple[str, str], ...]


@cache
def flat(clause: Clause) -> Flat:
    """A clause that equates terms, with a variable for every operator."""
    count = 0

    def apart(result: str, form: Pattern) -> list[Applied]:
        nonlocal count
        args, below = [], []
        for argument in form.args:
            if isinstance(argument, Pattern):
                count += 1
                inner = Variable("T", f"inner-{count}")
                below += apart(inner.name, argument)
                argument = inner
            args.append(argument)
        assert isinstance(form.head, Operator)
        return [Applied(result, form.head, tuple(args)), *below]

    left = [one for f in clause.facts if isinstance(f, Match) for one in apart(f.root.name, f.form)]
    right: list[Applied] = []
    unions = []
    for position, action in enumerate(a for a in clause.actions if isinstance(a, Union)):
        if isinstance(action.form, Variable):
            unions.append((action.root.name, action.form.name))
        else:
            right += reversed(apart(f"made-{position}", action.form))
            unions.append((action.root.name, f"made-{position}"))
    return Flat(tuple(left), tuple(right), tuple(unions))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a rule holds: its index, its clause, and the values of all variables; tensors are e-classes."""

    rule: int
    clause: Clause
    binding: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Join:
    """Two terms found equal: at a place, by the pair of its rule of this position, or (without one) because they apply
    one operator to what is equal. `because` are pairs of terms whose equality was needed."""

    place: Place | None
    pair: int
    ends: tuple[int, int]
    because: tuple[tuple[int, int], ...]
    time: int


class Derivation:
    """A search, saturated once more so that it remembers. Terms are numbers; `term_of` has those of the model's rows.

    `made` says which rule first made an e-node, by index; the model's own have none. `born` is the iteration of
    saturation, counted from 1, after which an e-node was there first; 0 for the model's own.

    Raises:
        EqsatError: saturation took another way than before, since its time limit stopped it.
    """

    def __init__(self, found: Search) -> None:
        self.found = found
        self.owner = found.space.owner
        self.born: dict[Member, int] = dict.fromkeys(found.space.original, 0)
        self.made: dict[Member, int] = {}
        self.phases: list[str] = []
        places = self._places()
        self.same: list[int] = []  # union-find over terms
        self.class_of: list[int] = []
        self.known: dict[ENode, int] = {}  # an e-node over representatives, and its term
        self.exact: dict[ENode, int] = {}  # an e-node over terms as they are written, and its term
        self.written: list[ENode] = []  # what every term is
        self.entries: dict[Member, list[int]] = {}
        self.readers: dict[int, list[int]] = {}  # of a representative, terms that read it
        self.group: dict[int, list[int]] = {}  # of a representative, terms equal to it
        self.joins: dict[int, list[Join]] = {}
        self.time = 0
        self.waiting: dict[Member, list[Place]] = {}
        self.woken: OrderedDict[Place, None] = OrderedDict()
        for place in places:
            for one in flat(place.clause).left:
                self.waiting.setdefault((place.binding[one.result], one.under(place.binding)), []).append(
                    place
                )
        self.taken: set[tuple[int, tuple[int, ...]]] = set()
        self.term_of: dict[int, int] = {}
        for row, fact in enumerate(found.lowered.rows):
            operands, attributes = fact.operator.split(fact.args)
            args = fact.operator.join(tuple(self.term_of[o] for o in operands), attributes)
            self.term_of[row] = self._term(ENode(fact.operator, args), found.space.row_class[row])
        while self.woken:
            self._take(self.woken.popitem(last=False)[0])

    # -- what saturation did -------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        found, space = self.found, self.found.space

        def observe(egraph: EGraph, done: Iteration) -> None:
            if done.dropped:
                return
            self.phases.append(done.phase)
            for member in recognized(egraph.frozen(), space):
                self.born.setdefault(member, len(self.phases))

        with saturated(found.lowered, found.saturation.rules, found.saturation.budget, observe=observe) as (
            egraph,
            *_,
        ):
            tables = egraph.matches()
            nodes, rows = decoded(found.lowered, egraph.frozen(), tables)
        if nodes != space.nodes:
            raise EqsatError(
                "saturation cannot be repeated: it was stopped by time; give budget= more seconds"
            )
        places = []
        for name, (index, clause) in tables.items():
            for values in rows[name]:
                binding = dict(zip((v.name for v in clause.bound), values, strict=True))
                if all(
                    self._complete(one, binding)
                    for one in (*reversed(flat(clause).left), *flat(clause).right)
                ):
                    places.append(Place(index, clause, binding))
        return places

    def _complete(self, one: Applied, binding: dict[str, Any]) -> bool:
        """Whether the e-node is there; its e-class is bound."""
        number = self.owner.get(one.under(binding))
        return number is not None and binding.setdefault(one.result, number) == number

    # -- terms ---------------------------------------------------------------------------------------------

    def find(self, term: int) -> int:
        """The representative of all terms found equal to `term`."""
        while self.same[term] != term:
            self.same[term] = self.same[self.same[term]]
            term = self.same[term]
        return term

    def _over(self, node: ENode, renamed: Any) -> ENode:
        operands = tuple(map(renamed, node.operands))
        return ENode(node.operator, node.operator.join(operands, node.attributes))

    def _term(self, node: ENode, number: int) -> int:
        """The term of an e-node over terms. Where it is known over other terms, equal to these, the two are joined."""
        if node in self.exact:
            return self.exact[node]
        term = self.exact[node] = len(self.same)
        self.same.append(term)
        self.class_of.append(number)
        self.written.append(node)
        self.group[term] = [term]
        like = self.known.setdefault(self._over(node, self.find), term)
        if like != term:
            self._join(like, term, None, 0, self._operands(like, term))
            return term
        for operand in set(map(self.find, node.operands)):
            self.readers.setdefault(operand, []).append(term)
        member = self._member(term)
        self.entries.setdefault(member, []).append(term)
        self.woken.update(dict.fromkeys(self.waiting.get(member, ())))
        return term

    def _operands(self, a: int, b: int) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.written[a].operands, self.written[b].operands, strict=True))

    def _join(
        self, a: int, b: int, place: Place | None, pair: int, because: tuple[tuple[int, int], ...]
    ) -> None:
        pending = deque([(a, b, place, pair, because)])
        while pending:
            a, b, place, pair, because = pending.popleft()
            into, gone = sorted((self.find(a), self.find(b)))
            if into == gone:
                continue
            self.time += 1
            join = Join(place, pair, (a, b), because, self.time)
            for end in (a, b):
                self.joins.setdefault(end, []).append(join)
            self.same[gone] = into
            moved = self.readers.pop(gone, [])
            for reader in moved:
                like = self._over(self.written[reader], self.find)
                other = self.known.setdefault(like, reader)
                if other != reader:  # the same again: nothing more is to be found from it
                    repeated = self.entries[self._member(reader)]
                    if reader in repeated:
                        repeated.remove(reader)
                if self.find(other) != self.find(reader):
                    pending.append((other, reader, None, 0, self._operands(other, reader)))
            self.readers.setdefault(into, []).extend(moved)
            joined = self.group.pop(gone)
            self.group[into] += joined
            for member in {self._member(term) for term in (*moved, *joined)}:
                self.woken.update(dict.fromkeys(self.waiting.get(member, ())))

    def _member(self, term: int) -> Member:
        return self.class_of[term], self._over(self.written[term], self.class_of.__getitem__)

    def _take(self, place: Place) -> None:
        """Act on one way in which the left side of a place is there and was not acted on yet; the next waits until
        all other places have had their turn, since what these join may make it the same."""
        form = flat(place.clause)
        for slots, because in self._ways(place, form.left, {}, ()):
            key = id(place), tuple(self.find(slots[name]) for name in sorted(slots))
            if key in self.taken:
                continue
            self.taken.add(key)
            self.woken[place] = None
            for one in form.right:
                node = one.under(place.binding)
                inner = ENode(
                    one.operator, one.operator.join(tuple(slots[o] for o in one.operands()), node.attributes)
                )
                number = place.binding[one.result]
                slots[one.result] = self._term(inner, number)
                if (number, node) not in self.found.space.original:
                    self.made.setdefault((number, node), place.rule)
            for pair, (root, made) in enumerate(form.unions):
                self._join(slots[root], slots[made], place, pair, because)
            return

    def _ways(
        self,
        place: Place,
        left: tuple[Applied, ...],
        slots: dict[str, int],
        because: tuple[tuple[int, int], ...],
    ) -> Iterator[tuple[dict[str, int], tuple[tuple[int, int], ...]]]:
        if not left:
            yield dict(slots), because
            return
        one, *rest = left
        for term in self.entries.get((place.binding[one.result], one.under(place.binding)), ()):
            bound = dict(slots)
            pairs = list(
                zip((one.result, *one.operands()), (term, *self.written[term].operands), strict=True)
            )
            if all(self.find(bound.setdefault(name, t)) == self.find(t) for name, t in pairs):
                needed = tuple((bound[name], t) for name, t in pairs if bound[name] != t)
                yield from self._ways(place, tuple(rest), bound, (*because, *needed))

    # -- reasons -------------------------------------------------------------------------------------------

    def reasons(self, pairs: Iterable[tuple[int, int]]) -> list[Join]:
        """The joins at places that prove these pairs of terms equal, each following from those before.

        Raises:
            EqsatError: two of them are not equal.
        """
        waiting, found = list(pairs), {}
        while waiting:
            for join in self._path(*waiting.pop()):
                if join.time not in found:
                    found[join.time] = join
                    waiting += join.because
        return [found[time] for time in sorted(found) if found[time].place is not None]

    def _path(self, start: int, end: int) -> list[Join]:
        """The joins between two terms: there is one way, since what is equal is not joined again."""
        before: dict[int, tuple[int, Join]] = {}
        queue, seen = deque([start]), {start}
        while queue and end not in seen:
            term = queue.popleft()
            for join in self.joins.get(term, ()):
                other = join.ends[1] if join.ends[0] == term else join.ends[0]
                if other not in seen:
                    seen.add(other)
                    before[other] = (term, join)
                    queue.append(other)
        if end not in seen:
            raise EqsatError(f"terms {start} and {end} are not known to be equal")
        path = []
        while end != start:
            end, join = before[end]
            path.append(join)
        return path
