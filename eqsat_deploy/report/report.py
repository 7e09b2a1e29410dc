"""The report of one optimization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eqsat_deploy.errors import InputError
from eqsat_deploy.report.render import to_html, to_text
from eqsat_deploy.report.tuning import tuning_table

if TYPE_CHECKING:
    from eqsat_deploy.deployment import Scaled
    from eqsat_deploy.engines.base import Engine
    from eqsat_deploy.quantization.sensitivity import Sensitivities
    from eqsat_deploy.report.comparing import Contribution, Diff
    from eqsat_deploy.report.explaining import Explained
    from eqsat_deploy.report.reasons import WhyNot
    from eqsat_deploy.report.view import View
    from eqsat_deploy.search import Search


@dataclass(frozen=True)
class Searches:
    """What a report is of: the search whose form was kept, and that of the plain form. Copies share it; what is pickled
    has none."""

    found: Search | None = None
    plain: Search | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Searches:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Searches, ()


@dataclass(frozen=True)
class RuleUse:
    """How often a rule matched, and whether the chosen form contains what it made."""

    name: str
    family: str
    matches: int
    used: bool


@dataclass(repr=False)
class Report:
    """Before and after, which rules mattered, and how far from the optimum the answer can be.

    `plain` is the form that an engine reaches by itself: the model's own operators with BatchNorm folded and
    epilogues fused. Costs are the cost model's prediction in `unit` for batches of `batch`. `gap` is certified: no
    form in the e-graph is cheaper than `bound`. `tuning` has the forms that were timed, and how, where any were.
    `scales` are what calibration has divided channels by, of a quantized module.
    """

    model: str
    cost_model: str
    unit: str
    batch: int
    nodes: int
    opaque: list[str]
    plain_kernels: int
    kernels: int
    integer_kernels: int
    plain_cost: float
    cost: float
    bound: float
    gap: float
    proved: bool
    extractor: str
    e_nodes: int
    e_classes: int
    stopped: str
    rules: list[RuleUse] = field(default_factory=list)
    errors: dict[int, float] = field(default_factory=dict)
    tolerance: float = 0.0
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    iterations: list[dict[str, int]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    engine: dict[str, Any] | None = None
    tuning: dict[str, Any] | None = None
    scales: list[Scaled] = field(default_factory=list)
    searches: Searches = field(default=Searches(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        own = ("searches", "rules", "scales")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        return values | {"rules": [asdict(rule) for rule in self.rules],
                         "scales": [asdict(scaled) for scaled in self.scales],
                         "errors": {str(k): v for k, v in self.errors.items()}}  # fmt: skip

    def without_search(self) -> Report:
        """The same report without the e-graph that it is of."""
        return replace(self, searches=Searches())

    def explain(self, node: str) -> tuple[Explained, ...]:
        """Why the tensors that `node` stands for are computed as they are: the equalities from the model's own nodes to
        the chosen kernels, each with its rule and the tensors it was applied to.

        Args:
            node: a node of the exported graph, the path of a module, or a pattern of either.

        Raises:
            UnknownNameError: no such node.
            InputError: the report was loaded from a file or unpickled, and has no e-graph.
            EqsatError: saturation was stopped by its time limit and cannot be repeated.
        """
        from eqsat_deploy.report.explaining import explain_node

        return explain_node(self._search, node)

    def why_not(self, rule: str, node: str) -> WhyNot:
        """Which part of a rule's pattern, or which guard, fails at a node; see `research.why_not`."""
        from eqsat_deploy.report.reasons import why_not

        return why_not(self._search, rule, node)

    def diff(self) -> Diff:
        """The kernels of the plain and of the chosen form, side by side.

        Raises:
            InputError: the report was loaded from a file or unpickled, and has no e-graph.
        """
        from eqsat_deploy.report.comparing import diff

        plain = self.searches.plain
        return diff(self._search if plain is None else plain, self._search)

    def contribution(self, by: Literal["family", "rule"] = "family") -> Contribution:
        """What every family of rules, or every rule, is worth on this model: it is left out, and the cheapest form
        extracted again. Takes a search for each that matched.

        Raises:
            InputError: `by` is something else, or the report was loaded and has no e-graph.
        """
        from eqsat_deploy.report.comparing import contribution

        return contribution(self._search, by)

    def view(self, node: str | None = None) -> View:
        """The e-graph, to look into: a notebook shows it, and it can be saved as a page. It starts at `node`, if given.

        Raises:
            InputError: the report was loaded from a file or unpickled, and has no e-graph.
        """
        from eqsat_deploy.report.view import View

        return View(self._search, node)

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        engine: Engine | None = None,
        accuracy: Mapping[str, float] | None = None,
        contribution: Contribution | None = None,
        sensitivity: Sensitivities | None = None,
    ) -> str:
        """One page about this optimization, for a reader who knows none of the theory; it needs no network.

        Args:
            path: where to write it; it is returned in any case.
            engine: what `build` returned: its measured latencies, and those of its layers, which are measured now.
            accuracy: by name, as shares of one: `{"original": 0.761, "INT8": 0.758}`.
            contribution: what `contribution()` returned: bars of what each family or rule is worth.
            sensitivity: what `sensitivity()` of the quantized module returned: the error by layer.
        """
        from eqsat_deploy.report.page import page

        text = page(
            self, engine=engine, accuracy=accuracy, contribution=contribution, sensitivity=sensitivity
        )
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @property
    def _search(self) -> Search:
        if self.searches.found is None:
            raise InputError(
                "this report is of a quantized module, or was loaded or unpickled, and the e-graph it is of was not "
                "kept: ask the report of what optimize() returned, or run optimize() again"
            )
        return self.searches.found

    def used_rules(self) -> list[str]:
        """Names of the rules that the chosen form uses."""
        return [r.name for r in self.rules if r.used]

    def __rich__(self) -> Any:
        """The report as rich renderables."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        summary = Table(title=f"{self.model} for {self.cost_model}", title_justify="left", show_header=True)
        for column, justify in (("", "left"), ("plain", "right"), ("chosen", "right"), ("ratio", "right")):
            summary.add_column(column, justify=justify)  # type: ignore[arg-type]
        ratio = f"{self.plain_cost / self.cost:.3f}x" if self.cost else "-"
        summary.add_row(f"predicted {self.unit}", f"{self.plain_cost:,.1f}", f"{self.cost:,.1f}", ratio)
        summary.add_row("kernels", str(self.plain_kernels), str(self.kernels), "")
        summary.add_row("of them INT8", "", str(self.integer_kernels), "")
        certificate = "proved optimal" if self.proved else f"at most {self.gap:.2%} above the optimum"
        lines = [
            f"{certificate} among {self.e_nodes:,} e-nodes in {self.e_classes:,} e-classes ({self.extractor})",
            f"saturation stopped: {self.stopped}",
            f"{self.nodes} ATen nodes, {len(self.opaque)} opaque"
            + (f": {', '.join(self.opaque[:5])}" if self.opaque else ""),
        ]
        if self.errors:
            checked = ", ".join(f"{v:.1e} at batch {k}" for k, v in self.errors.items())
            lines.append(
                f"verified against the original: relative error {checked} (allowed {self.tolerance:.1e})"
            )
        rules = Table(title="rules that matched", title_justify="left")
        for column, justify in (
            ("rule", "left"),
            ("family", "left"),
            ("matches", "right"),
            ("in chosen form", "left"),
        ):
            rules.add_column(column, justify=justify)  # type: ignore[arg-type]
        for rule in self.rules:
            if rule.matches:
                rules.add_row(rule.name, rule.family, str(rule.matches), "yes" if rule.used else "")
        times = "  ".join(f"{k} {v:.2f} s" for k, v in self.seconds.items())
        notes = [Text(f"note: {n}") for n in self.notes]
        realized = [Text(_engine_line(self.engine))] if self.engine else []
        tuned = [tuning_table(self.tuning, self.unit)] if self.tuning else []
        scales = [_scales_table(self.scales)] if self.scales else []
        return Group(summary, *map(Text, lines), *realized, *tuned, rules, *scales, *notes, Text(times))

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


def _scales_table(scales: list[Scaled]) -> Any:
    from rich.table import Table

    table = Table(title="channels divided before they are rounded", title_justify="left")
    for column in ("tensor", "by down to", "in", "by the rules"):
        table.add_column(column)
    for scaled in scales:
        where = ", ".join(scaled.writers) or "the engine"
        table.add_row(scaled.tensor, f"{scaled.least:.3g}", where, ", ".join(scaled.rules))
    return table


def _engine_line(engine: dict[str, Any]) -> str:
    shipped, latency = engine["shipped"], engine["latency"]
    line = f"engine {engine['name']}: {shipped} form shipped"
    if shipped in latency:
        line += f", {latency[shipped] / 1000:.3f} ms"
    if engine["realized_int8"] is not None:
        line += f"; INT8 realized in {engine['realized_int8']} of {engine['expected_int8']} kernels"
    if engine.get("not_seen"):
        line += f" ({engine['not_seen']} became part of others)"
    return line
