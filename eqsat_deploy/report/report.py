"""The report of one optimization."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from eqsat_deploy.report.render import to_html, to_text


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
    form in the e-graph is cheaper than `bound`.
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

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"errors": {str(k): v for k, v in self.errors.items()}}

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
        return Group(summary, *map(Text, lines), *realized, rules, *notes, Text(times))

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


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
