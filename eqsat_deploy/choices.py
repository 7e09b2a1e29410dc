"""The choices of extraction as columns: launches far outnumber the anchors and the epilogues that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from eqsat_deploy.kernels import ENode, Step, operands_of

Member = tuple[int, ENode]
"""An e-class, and an e-node of it."""
Steps = tuple[Step, ...]
Column = np.ndarray[Any, np.dtype[np.int64]]
Table = np.ndarray[Any, np.dtype[np.int64]]
"""A place in each row: e-class, anchor, epilogue."""


@dataclass(frozen=True, eq=False)
class Choices(Sequence[Member]):
    """An e-class and an e-node for each: the i-th is of class `owner[i]` and applies `epilogues[tail[i]]` to what
    `anchors[head[i]]` computes. E-nodes are made as they are asked for."""

    owner: Column
    head: Column
    tail: Column
    anchors: tuple[ENode, ...]
    epilogues: tuple[Steps, ...]

    @classmethod
    def of(cls, members: Iterable[Member]) -> Choices:
        """Of these members, in their order."""
        anchors: dict[ENode, int] = {}
        epilogues: dict[Steps, int] = {}
        places = [
            (
                number,
                anchors.setdefault(node.then(()), len(anchors)),
                epilogues.setdefault(node.steps, len(epilogues)),
            )
            for number, node in members
        ]
        owner, head, tail = table(places).T
        return cls(owner, head, tail, tuple(anchors), tuple(epilogues))

    @classmethod
    def ordered(cls, places: Table, anchors: Sequence[ENode], epilogues: Sequence[Steps]) -> Choices:
        """Those at `places` (e-class, anchor, epilogue) that do not read their own result: each once, in order of
        these."""
        owner, head, tail = places.T
        key = np.unique((owner * len(anchors) + head) * len(epilogues) + tail)
        rest, tail = np.divmod(key, len(epilogues))
        owner, head = np.divmod(rest, len(anchors))
        found = cls(owner, head, tail, tuple(anchors), tuple(epilogues))
        offsets, children = found.children
        reader = np.repeat(np.arange(len(found)), np.diff(offsets))
        stays = np.ones(len(found), dtype=bool)
        stays[reader[children == owner[reader]]] = False
        return cls(owner[stays], head[stays], tail[stays], found.anchors, found.epilogues)

    def __len__(self) -> int:
        return len(self.owner)

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice) -> list[Member]: ...

    def __getitem__(self, index: int | slice) -> Member | list[Member]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        anchor, steps = self.anchors[self.head[index]], self.epilogues[self.tail[index]]
        return int(self.owner[index]), anchor.then(steps)

    def __iter__(self) -> Iterator[Member]:
        for number, head, tail in zip(
            self.owner.tolist(), self.head.tolist(), self.tail.tolist(), strict=True
        ):
            yield number, self.anchors[head].then(self.epilogues[tail])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choices) and list(self) == list(other)

    @cached_property
    def children(self) -> tuple[Column, Column]:
        """The e-classes that every choice reads: offsets (n + 1,) and e-classes, the anchor's before the epilogue's."""
        read = _picked([node.operands for node in self.anchors], self.head)
        more = _picked([operands_of(steps) for steps in self.epilogues], self.tail)
        counts, children = zip(read, more, strict=True)
        reader = np.concatenate([np.repeat(np.arange(len(self)), count) for count in counts])
        offsets = np.concatenate(([0], np.cumsum(sum(counts))))
        return offsets, np.concatenate(children)[np.argsort(reader, kind="stable")]


def table(places: Iterable[tuple[int, int, int]]) -> Table:
    """Places as rows."""
    return np.fromiter(places, dtype=np.dtype((np.int64, 3)))


def _picked(rows: Sequence[Sequence[int]], of: Column) -> tuple[Column, Column]:
    """Those rows after another: the length of each (n,), and their numbers."""
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    numbers = np.array([number for row in rows for number in row], dtype=np.int64)
    counts = sizes[of]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return counts, numbers[np.repeat((np.cumsum(sizes) - sizes)[of], counts) + within]
