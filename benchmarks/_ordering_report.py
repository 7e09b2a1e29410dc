"""Tables and figures of the study of rewrite ordering, from its JSON alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import cos, pi, sin
from pathlib import Path
from statistics import geometric_mean, mean, stdev
from typing import Any

import numpy as np

from benchmarks._reference_models import PUBLISHED
from eqsat_deploy.report.plotting import new_drawing

MATTERS = 1e-3
"""Relative differences of predicted cost from here on count."""
STAGES = ("fusion-first", "fusion-last", "quantization-first", "quantization-last")
Row = dict[str, Any]


def report(data: dict[str, Any], folder: Path) -> str:
    """Markdown of everything; figures are drawn into `folder`."""
    rows = _by_part(data)
    draw = {"ordering_costs.svg": (_costs, "orders"), "ordering_pairs.svg": (_graph, "orders"),
            "ordering_budget.svg": (_budget, "reference"), "ordering_latency.svg": (_scatter, "latency")}  # fmt: skip
    for name, (function, part) in draw.items():
        if rows[part]:
            function(rows[part]).savefig(folder / name, metadata={"Date": None})
    return tables(data)


def tables(data: dict[str, Any]) -> str:
    """All tables as Markdown."""
    rows = _by_part(data)
    failed = [f"- `{r['model']}` ({r['part']}): {r['error']}" for r in data["rows"] if "error" in r]
    orders = [*_answers(rows["orders"]), "", *_models(rows["orders"]), "", *_pairs_table(rows["orders"])]
    others = [*_reference(rows["reference"], rows["plain"]), "", *_latency(rows["latency"])]
    return "\n".join([*orders, "", *others, *(["", "Failed:", "", *failed] if failed else [])])


def _by_part(data: dict[str, Any]) -> dict[str, list[Row]]:
    done = [r for r in data["rows"] if "error" not in r]
    return {
        part: [r for r in done if r["part"] == part] for part in ("orders", "reference", "plain", "latency")
    }


# -- how often, and by how much ----------------------------------------------------------------------------


def _answers(rows: list[Row]) -> list[str]:
    lines = [
        "| question | models asked | where it matters | geometric mean there | most |",
        "|---|---|---|---|---|",
    ]
    lines += [
        _answer(n, {r["model"]: r["staged"][n] / r["joint"] for r in rows if n in r["staged"]})
        for n in STAGES
    ]
    for name, text in (("alone", "where they pay"), ("forced", "wherever they match")):
        costs = {
            r["model"]: [f[name] for f in r["founding"].values() if f[name]]
            for r in rows
            if len(r["founding"]) > 1
        }
        spread = {m: max(c) / min(c) for m, c in costs.items() if c}
        lines.append(_answer(f"order of the founding conversions, {text}", spread))
    then = {
        r["model"]: max(f["then all"] for f in r["founding"].values()) / r["joint"]
        for r in rows
        if r["founding"]
    }
    lines.append(_answer("founding conversions first, then all families together", then))
    some = [r for r in rows if len(r["orders"]) > 1]
    spread = {r["model"]: max(r["orders"].values()) / min(r["orders"].values()) for r in some}
    lines.append(_answer("order of all families, dearest over cheapest", spread))
    best = {r["model"]: min(r["orders"].values()) / r["joint"] for r in some}
    lines.append(_answer("order of all families, cheapest over joint saturation", best))
    return lines


def _answer(question: str, ratios: dict[str, float]) -> str:
    above = {m: v for m, v in ratios.items() if v > 1 + MATTERS}
    if not above:
        return f"| {question} | {len(ratios)} | 0 | | |"
    most = max(above, key=lambda m: above[m])
    average = geometric_mean(above.values())
    return (f"| {question} | {len(ratios)} | {len(above)} | {average - 1:+.1%} | {above[most] - 1:+.1%} "
            f"(`{most}`) |")  # fmt: skip


def _models(rows: list[Row]) -> list[str]:
    lines = ["| model | families | e-nodes | untouched | joint | " + " | ".join(STAGES) + " | orders, best to worst |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        staged = [_above(r["staged"][n], r["joint"]) if n in r["staged"] else "" for n in STAGES]
        costs = sorted(r["orders"].values())
        orders = (
            f"{_above(costs[0], r['joint'])} to {_above(costs[-1], r['joint'])} ({len(costs)})"
            if costs
            else ""
        )
        joint = f"{r['joint']:.1f}" + (
            "" if r["bound"] >= r["joint"] * (1 - 1e-9) else f" (bound {r['bound']:.1f})"
        )
        head = f"| `{r['model']}` | {len(r['families'])} | {r['e_nodes']:,} | {_above(r['untouched'], r['joint'])}"
        lines.append(f"{head} | {joint} | {' | '.join(staged)} | {orders} |")
    cut = [f"`{r['model']}` ({', '.join(r['cut'])})" for r in rows if r["cut"]]
    return [*lines, *(["", f"Time ended before all was asked of: {', '.join(cut)}."] if cut else [])]


def _above(cost: float, least: float) -> str:
    return f"{cost / least - 1:+.1%}"


# -- pairs -------------------------------------------------------------------------------------------------


def interactions(rows: Iterable[Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """(`enables` or `blocks`, first, second): by model, how much more, or less, the second family saves after the first
    than alone, as a share of the untouched cost. Less counts as blocking only where the other order ends cheaper: two
    families that do the same work overlap, and block nothing."""
    found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for r in rows:
        for name, costs in r["pairs"].items():
            one, other = name.split(" + ")
            for first, second, after, before in (
                (one, other, "then", "reversed"),
                (other, one, "reversed", "then"),
            ):
                saved = (costs["first"] + costs["second"] - costs[after] - r["untouched"]) / r["untouched"]
                if saved > MATTERS:
                    found["enables", first, second][r["model"]] = saved
                elif saved < -MATTERS and costs[after] > costs[before] * (1 + MATTERS):
                    found["blocks", first, second][r["model"]] = -saved
    return found


def _pairs_table(rows: list[Row]) -> list[str]:
    lines = [f"Pairs were asked of {sum(bool(r['pairs']) for r in rows)} models.", "",
             "| first | does what to | second | models | mean share of the untouched cost |",
             "|---|---|---|---|---|"]  # fmt: skip
    found = interactions(rows)
    for (kind, first, second), shares in sorted(
        found.items(), key=lambda i: (-len(i[1]), -mean(i[1].values()), i[0])
    ):
        lines.append(f"| {first} | {kind} | {second} | {len(shares)} | {mean(shares.values()):.1%} |")
    return lines


def _graph(rows: list[Row]) -> Any:
    found = interactions(rows)
    names = sorted({n for _, a, b in found for n in (a, b)})
    places = {n: (cos(2 * pi * i / len(names)), sin(2 * pi * i / len(names))) for i, n in enumerate(names)}
    figure = new_drawing(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    for (kind, first, second), shares in sorted(found.items()):
        arrow = {"arrowstyle": "-|>", "color": "tab:green" if kind == "enables" else "tab:red", "shrinkA": 32,
                 "shrinkB": 32, "lw": 0.8 + 0.4 * len(shares), "connectionstyle": "arc3,rad=0.12",
                 "mutation_scale": 14}  # fmt: skip
        axes.annotate("", xy=places[second], xytext=places[first], arrowprops=arrow)
        (x0, y0), (x1, y1) = places[first], places[second]
        x, y = 0.6 * x0 + 0.4 * x1, 0.6 * y0 + 0.4 * y1
        axes.text(x + 0.06 * (y1 - y0), y - 0.06 * (x1 - x0), str(len(shares)), color=arrow["color"], fontsize=9,
                  ha="center", va="center", bbox={"fc": "white", "ec": "none", "pad": 0.6})  # fmt: skip
    for name, (x, y) in places.items():
        axes.text(
            x,
            y,
            name.replace("-", "\n", 1),
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "fc": "white"},
        )
    axes.set_title("green: saves more after it (enables); red: saves less, and the other order is cheaper (blocks)\n"
                   "numbers: models", fontsize=10)  # fmt: skip
    axes.set_xlim(-1.35, 1.35)
    axes.set_ylim(-1.2, 1.2)
    axes.set_axis_off()
    return figure


def _costs(rows: list[Row]) -> Any:
    figure = new_drawing(figsize=(8, 0.32 * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    for place, r in enumerate(rows):
        costs = [100 * (c / r["joint"] - 1) for c in r["orders"].values()]
        if costs:
            axes.plot([min(costs), max(costs)], [place, place], color="0.75", lw=6, solid_capstyle="butt",
                      label="orders of families" if place == 0 else None)  # fmt: skip
    for number, name in enumerate(STAGES):
        known = [
            (100 * (r["staged"][name] / r["joint"] - 1), i) for i, r in enumerate(rows) if name in r["staged"]
        ]
        axes.plot(*zip(*known, strict=True), "osD^"[number], color=f"C{number}", ms=5, label=name)
    axes.set_yticks(range(len(rows)), [r["model"] for r in rows])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.1)
    axes.set_xlabel("predicted cost above joint saturation (%)")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- the reference experiment ------------------------------------------------------------------------------


def _runs(row: Row, strategy: str) -> list[Row]:
    return [run for run in row["runs"] if run["strategy"] == strategy]


def _reference(rows: list[Row], plain: list[Row]) -> list[str]:
    alone = {r["model"]: r["plain"] for r in plain}
    lines = ["| model | joint: predicted speedup (at most) | over what an engine does itself | s | MCTS, five seeds "
             "| e-graphs | s | published: MCTS and ILP | MCTS and greedy | TENSAT |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        (joint,) = _runs(r, "joint")
        played = _runs(r, "mcts")
        speedups = [_faster(r["untouched"], run["cost"]) for run in played]
        ours = (
            f"{_faster(r['untouched'], joint['cost']):.2f} % ({_faster(r['untouched'], joint['bound']):.2f})"
        )
        over = f"{_faster(alone[r['model']], joint['cost']):.2f} %" if r["model"] in alone else ""
        published = [f"{v:.2f} % / {s:g} s" for v, s in PUBLISHED[r["model"]].values()]
        lines.append(f"| {r['model']} | {ours} | {over} | {joint['seconds']:.1f} "
                     f"| {mean(speedups):.2f} ± {stdev(speedups):.2f} % | {mean(x['evaluations'] for x in played):.0f} "
                     f"| {mean(x['seconds'] for x in played):.1f} | {' | '.join(published)} |")  # fmt: skip
    return lines


def _faster(before: float, after: float) -> float:
    return 100 * (before / after - 1)


def _budget(rows: list[Row]) -> Any:
    figure = new_drawing(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, r in enumerate(rows):
        joint = _runs(r, "joint")[0]["cost"]
        most = max(run["evaluations"] for run in _runs(r, "mcts"))
        budget = np.arange(1, most + 1)
        curves = [
            [min(p["cost"] for p in run["curve"] if p["evaluations"] <= b) for b in budget]
            for run in _runs(r, "mcts")
        ]
        axes.step(
            budget, 100 * (np.mean(curves, 0) / joint - 1), where="post", color=f"C{number}", label=r["model"]
        )
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set_xlabel("e-graphs that MCTS has saturated and priced")
    axes.set_ylabel("best so far above joint saturation (%)\nmean of five seeds")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- latency -----------------------------------------------------------------------------------------------


def _latency(rows: list[Row]) -> list[str]:
    lines = ["| model | forms | Spearman | predicted: dearest over cheapest | measured: slowest over fastest | "
             "noise: the cheapest form twice |", "|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        *forms, again = r["forms"]
        predicted, measured = ([f[name] for f in forms] for name in ("predicted", "median"))
        lines.append(f"| `{r['model']}` | {len(forms)} | {spearman(predicted, measured):.2f} | "
                     f"{max(predicted) / min(predicted):.2f} | {max(measured) / min(measured):.2f} | "
                     f"{again['median'] / forms[0]['median']:.2f} |")  # fmt: skip
    return lines


def spearman(one: list[float], other: list[float]) -> float:
    """Rank correlation; equal values share their mean rank."""
    ranks = [
        [sum(w < v for w in values) + sum(w == v for w in values) / 2 for v in values]
        for values in (one, other)
    ]
    return float(np.corrcoef(*ranks)[0, 1]) if len(one) > 1 else float("nan")


def _scatter(rows: list[Row]) -> Any:
    figure = new_drawing(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, r in enumerate(rows):
        *forms, again = r["forms"]
        least, fastest = forms[0]["predicted"], forms[0]["median"]
        x = [f["predicted"] / least for f in (*forms, again)]
        y = [f["median"] / fastest for f in (*forms, again)]
        axes.plot(x, y, "o", color=f"C{number}", label=r["model"])
    limit = max(axes.get_xlim()[1], 1.05)
    axes.plot([1, limit], [1, limit], color="0.7", lw=0.8)
    axes.set_xlabel("predicted, over the cheapest form")
    axes.set_ylabel("measured, over the cheapest form")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
