"""Drawing: e-classes as dashed boxes of forms, each form wired to the e-classes it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from eqsat_deploy.provenance import inside_of, why_unchosen
from eqsat_deploy.report.plotting import new_drawing
from eqsat_deploy.search import Search
from eqsat_deploy.words import class_name, shape_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eqsat_deploy.report.figure import Drawing

# Inches, for a monospaced font of nine points.
LETTER, LINE = 0.08, 0.2  # a letter is 0.075 wide, and at 100 dpi rounded up to whole pixels
MARGIN, COLUMN_GAP, ROW_GAP, LANE = 0.1, 1.0, 0.3, 0.12
CHOSEN, CHOSEN_FILL, OTHER, INTEGER_FILL = "#17703f", "#d6efdf", "#8a8f98", "#dfe7f7"


@dataclass
class _Box:
    """An e-class to draw: its title, its forms as (choice, text, chosen, integer), why none is chosen, and where it
    stands. Without a title, a gap that leaves room for lines."""

    number: int
    title: str
    forms: list[tuple[int, str, bool, bool]]
    hidden: int
    why: str = ""
    x: float = 0.0
    top: float = 0.0
    column: tuple[float, float] = (0.0, 0.0)
    width: float = field(init=False)
    height: float = field(init=False)

    def __post_init__(self) -> None:
        texts = [self.title, *(text for _, text, _, _ in self.forms), self.more, self.why]
        if not self.title:
            self.width, self.height = MARGIN, LINE / 2
            return
        self.width = LETTER * max(map(len, texts)) + 4 * MARGIN
        self.height = LINE * (1 + bool(self.why) + 1.35 * len(self.forms) + bool(self.hidden)) + 2 * MARGIN

    @property
    def more(self) -> str:
        return f"+ {self.hidden} more form{'s' * (self.hidden > 1)}" if self.hidden else ""

    def row(self, position: int) -> float:
        """The height of the middle of a form, or of a gap."""
        if not self.title:
            return self.top - self.height / 2
        return self.top - MARGIN - LINE * (1 + bool(self.why) + 1.35 * position + 0.75)


def draw(
    found: Search,
    numbers: Sequence[int],
    *,
    depth: int = 3,
    max_forms: int = 6,
    max_classes: int = 14,
) -> Drawing:
    """The e-classes `numbers` and those they are computed from; data flows from left to right.

    Constants are not drawn. Whatever else is left out is said at the bottom of the figure.

    Raises:
        EqsatError: matplotlib is not installed.
    """
    boxes, reads, cut = _collect(found, numbers, depth, max_forms, max_classes)
    width, height, gaps = _place(boxes, reads)
    unit = found.priced.model.unit
    hidden = sum(box.hidden for box in boxes.values())
    footer = [f"dashed: an e-class, every form in it computes the same tensor; green: the chosen form; blue: INT8; "
              f"number: the kernel's own cost ({unit})"]  # fmt: skip
    if hidden or cut:
        footer.append(f"TRUNCATED: {hidden} forms and {cut} e-classes that the forms read are not drawn "
                      "(depth, max_forms, max_classes)")  # fmt: skip
    width = max(width, LETTER * 0.9 * max(map(len, footer)))
    height += LINE * (len(footer) + 1)
    figure = new_drawing(figsize=(width + 2 * MARGIN, height + 2 * MARGIN), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-MARGIN, width + MARGIN)
    axes.set_ylim(-height - MARGIN, MARGIN)
    axes.axis("off")
    above = 0.0
    for box in boxes.values():
        _draw_box(axes, box)
        for position, (index, _, chosen, _) in enumerate(box.forms):
            for source in reads[index]:
                way = sorted(
                    (gap for (n, _), gap in gaps.items() if n == source and gap.x < box.x), key=lambda g: g.x
                )
                if boxes[source].column[0] < box.column[0]:
                    _draw_edge(axes, boxes[source], way, box, position, chosen)
                else:
                    above += LANE
                    _draw_back(axes, boxes[source], box, position, chosen, above)
    if above:
        figure.set_size_inches(width + COLUMN_GAP + 2 * MARGIN, height + above + 2 * MARGIN)
        axes.set_xlim(-MARGIN - COLUMN_GAP / 2, width + MARGIN + COLUMN_GAP / 2)
        axes.set_ylim(-height - MARGIN, above + MARGIN)
    for line, text in enumerate(reversed(footer)):
        axes.text(0, -height + LINE * line + MARGIN, text, fontsize=8, family="monospace",
                  weight="bold" if text.startswith("TRUNCATED") else "normal", color="#444444")  # fmt: skip
    return figure


def _collect(
    found: Search, numbers: Sequence[int], depth: int, max_forms: int, max_classes: int
) -> tuple[dict[int, _Box], dict[int, list[int]], int]:
    """Boxes by e-class, nearest first; which drawn e-classes each form reads; and how many are left out."""
    space, priced = found.space, found.priced
    chosen, inside = set(found.solution.nodes().tolist()), inside_of(found)
    boxes: dict[int, _Box] = {}
    read: dict[int, list[int]] = {}
    level = list(dict.fromkeys(numbers))
    left: dict[int, None] = {}
    for _ in range(depth + 1):
        following: dict[int, None] = {}
        for number in level:
            if number in boxes:
                continue
            if len(boxes) == max_classes:
                left[number] = None
                continue
            members = [int(i) for i in priced.egraph.nodes_of(number) if isfinite(priced.costs[i])]
            members.sort(key=lambda i: (i not in chosen, priced.costs[i], i))
            forms = []
            for index in members[:max_forms]:
                node = space.choices[index][1]
                operands = ", ".join(class_name(found, c) for c in node.children)
                text = f"{node}({operands})  {priced.costs[index]:.2f}"
                forms.append((index, text, index in chosen, node.integer))
                read[index] = [c for c in dict.fromkeys(node.children) if not space.classes[c].constant]
                following |= dict.fromkeys(read[index])
            title = f"{class_name(found, number)} {shape_words(space.classes[number].shape)}"
            why = why_unchosen(found, number, inside)
            boxes[number] = _Box(
                number, title, forms, len(members) - len(forms), why and f"none chosen: {why}"
            )
        level = list(following)
    left |= dict.fromkeys(n for n in level if n not in boxes)
    drawn = {index: [c for c in sources if c in boxes] for index, sources in read.items()}
    return boxes, drawn, len(left)


def _place(
    boxes: dict[int, _Box], reads: dict[int, list[int]]
) -> tuple[float, float, dict[tuple[int, int], _Box]]:
    """Put the boxes into columns, data flowing from left to right; the extent of all.

    An e-class read further than one column on gets a gap in every column between, by (e-class, column), so
    that no line runs over a box. Columns are ordered from the right, each box beside its readers.
    """
    ranks = _ranks(boxes, reads)
    columns: list[list[_Box]] = [[] for _ in range(1 + max(ranks.values()))]
    for number, rank in ranks.items():
        columns[rank].append(boxes[number])
    gaps: dict[tuple[int, int], _Box] = {}
    readers: dict[int, list[tuple[_Box, int]]] = {}
    for target in boxes.values():
        for position, (index, *_) in enumerate(target.forms):
            for source in reads[index]:
                near = ranks[target.number] + 1
                for rank in range(near, ranks[source]):
                    if (source, rank) not in gaps:
                        gaps[source, rank] = _Box(source, "", [], 0)
                        columns[rank].append(gaps[source, rank])
                last = gaps.get((source, near), boxes[source])
                readers.setdefault(id(last), []).append((target, position))
    for (source, rank), gap in gaps.items():
        readers.setdefault(id(gaps.get((source, rank + 1), boxes[source])), []).append((gap, 0))

    def beside(box: _Box) -> float:
        heights = [reader.row(position) for reader, position in readers.get(id(box), ())]
        return -sum(heights) / len(heights) if heights else 0.0

    def length(column: list[_Box]) -> float:
        return sum(box.height + ROW_GAP for box in column) - ROW_GAP

    tall = max(map(length, columns))
    for column in columns:
        column.sort(key=beside)
        top = -(tall - length(column)) / 2
        for box in column:
            box.top = top
            top -= box.height + ROW_GAP
    x = 0.0
    for column in reversed(columns):
        widest = max(box.width for box in column)
        for box in column:
            box.x = x + (widest - box.width) / 2
            box.column = (x, x + widest)
        x += widest + COLUMN_GAP
    return x - COLUMN_GAP, tall, gaps


def _ranks(boxes: dict[int, _Box], reads: dict[int, list[int]]) -> dict[int, int]:
    """Longest distances from the first boxes, readers nearer; an edge that closes a cycle does not count."""
    edges = {n: list(dict.fromkeys(c for i, *_ in box.forms for c in reads[i])) for n, box in boxes.items()}
    state: dict[int, str] = {}
    order: list[int] = []
    forward: dict[int, list[int]] = {n: [] for n in boxes}

    def visit(number: int) -> None:
        state[number] = "open"
        for source in edges[number]:
            if state.get(source) != "open":
                forward[number].append(source)
            if source not in state:
                visit(source)
        state[number] = "done"
        order.append(number)

    for number in boxes:
        if number not in state:
            visit(number)
    ranks = dict.fromkeys(boxes, 0)
    for number in reversed(order):
        for source in forward[number]:
            ranks[source] = max(ranks[source], ranks[number] + 1)
    return ranks


def _draw_box(axes: Axes, box: _Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    style: dict[str, Any] = {"fontsize": 9, "family": "monospace", "va": "center"}
    rounded = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((box.x, box.top - box.height), box.width, box.height, boxstyle=rounded, fill=True,
                                  facecolor="#fafafa", linestyle="--", edgecolor="#555555", zorder=2))  # fmt: skip
    axes.text(box.x + MARGIN, box.top - MARGIN - LINE * 0.4, box.title, weight="bold", zorder=4, **style)
    if box.why:
        axes.text(box.x + MARGIN, box.top - MARGIN - LINE * 1.4, box.why, style="italic", color="#666666", zorder=4,
                  **style)  # fmt: skip
    for position, (_, text, chosen, integer) in enumerate(box.forms):
        middle = box.row(position)
        axes.add_patch(FancyBboxPatch(
            (box.x + MARGIN, middle - LINE * 0.58), box.width - 2 * MARGIN, LINE * 1.16, boxstyle=rounded, zorder=3,
            facecolor=CHOSEN_FILL if chosen else INTEGER_FILL if integer else "white",
            edgecolor=CHOSEN if chosen else OTHER, linewidth=1.6 if chosen else 0.8,
        ))  # fmt: skip
        axes.text(box.x + 2 * MARGIN, middle, text, color="black" if chosen else "#333333", zorder=4, **style)
    if box.hidden:
        axes.text(box.x + 2 * MARGIN, box.row(len(box.forms)) + LINE * 0.2, box.more, style="italic",
                  color="#666666", zorder=4, **style)  # fmt: skip


def _draw_edge(axes: Axes, source: _Box, way: list[_Box], target: _Box, position: int, chosen: bool) -> None:
    """Level within a column, curved between columns."""
    from matplotlib.path import Path

    path, codes = [(source.x + source.width, source.row(0))], [Path.MOVETO]
    left = (source.column[1], source.row(0))
    for stop in (*way, target):
        right = (stop.column[0], stop.row(position if stop is target else 0))
        bend = 0.5 * COLUMN_GAP
        path += [left, (left[0] + bend, left[1]), (right[0] - bend, right[1]), right]
        codes += [Path.LINETO, *[Path.CURVE4] * 3]
        left = (stop.column[1], right[1])
    path.append((target.x + MARGIN, right[1]))
    codes.append(Path.LINETO)
    _draw_arrow(axes, Path(path, codes), chosen)


def _draw_back(axes: Axes, source: _Box, target: _Box, position: int, chosen: bool, above: float) -> None:
    """Of an edge that closes a cycle: out into the gap, above everything, and down in the gap before `target`. The
    lane at height `above` is its own, and it crosses no box."""
    from matplotlib.path import Path

    shift = COLUMN_GAP * (0.12 + 0.3 * ((above / LANE * 0.37) % 1))
    out, into = source.column[1] + shift, target.column[0] - COLUMN_GAP * 0.1 - shift
    left, right = source.row(0), target.row(position)
    path = [(source.x + source.width, left), (out, left), (out, above), (into, above), (into, right)]
    _draw_arrow(axes, Path([*path, (target.x + MARGIN, right)]), chosen)


def _draw_arrow(axes: Axes, path: Any, chosen: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(FancyArrowPatch(
        path=path, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0,
        zorder=5 if chosen else 1, color=CHOSEN if chosen else OTHER, linewidth=1.8 if chosen else 0.7,
    ))  # fmt: skip
