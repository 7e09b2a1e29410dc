"""One page about one optimization, for a reader who knows none of the theory. It carries all it needs inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any

from eqsat_deploy.report.comparing import Contribution, Kernel, diff
from eqsat_deploy.report.view import asset, egraph_data, section
from eqsat_deploy.search import Search

if TYPE_CHECKING:
    from eqsat_deploy.engines.base import Engine
    from eqsat_deploy.quantization.sensitivity import Sensitivities
    from eqsat_deploy.report.report import Report

BARS = 40
"""How many bars of a chart are shown before the rest is folded."""


def page(
    report: Report,
    *,
    engine: Engine | None = None,
    accuracy: Mapping[str, float] | None = None,
    contribution: Contribution | None = None,
    sensitivity: Sensitivities | None = None,
) -> str:
    """The page; see `Report.to_html`."""
    found, plain = report.searches.found, report.searches.plain
    built = (engine.report or {}).get("engine") if engine is not None else report.engine
    measured = _measured(engine)
    parts = [("summary", "", _headline(report, built, accuracy))]
    if found is not None:
        parts.append(
            (
                "forms",
                "Before and after, kernel by kernel",
                _forms(report, plain or found, found, built, measured),
            )
        )
    parts.append(("rules", "The rules that mattered", _rules(report, contribution)))
    parts.append(("certificate", "How good is this?", _certificate(report)))
    parts.append(("errors", "Does it still compute the same?", _errors(report, sensitivity)))
    parts.append(("search", "How the search went", _timeline(report)))
    if found is not None:
        parts.append(("inside", "Look inside", _inside(found)))
    parts.append(("made", "Made by", _made(report)))
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in parts if title)
    body = "".join(
        f'<section id="{name}">{f"<h2>{escape(title)}</h2>" if title else ""}{text}</section>'
        for name, title, text in parts
    )
    title = f"{escape(report.model)} for {escape(report.cost_model)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{asset("page.css")}</style></head>
<body><main><h1>{title}</h1><nav aria-label="On this page"><ul>{links}</ul></nav>{body}</main></body></html>"""


# -- parts -------------------------------------------------------------------------------------------------


def _headline(report: Report, built: Mapping[str, Any] | None, accuracy: Mapping[str, float] | None) -> str:
    ratio = f"{report.plain_cost / report.cost:.2f}× as fast" if report.cost else ""
    facts = [(f"Predicted, {report.unit}", f"{report.plain_cost:,.1f} → {report.cost:,.1f}", ratio)]
    latency = (built or {}).get("latency") or {}
    if latency:
        fastest = min(latency.values())
        shown = " → ".join(f"{latency[k] / 1000:,.3f}" for k in ("plain", "chosen") if k in latency)
        ratio = f"{latency['plain'] / fastest:.2f}× as fast, " if "plain" in latency else ""
        facts.append(("Measured, ms", shown, f"{ratio}{built['shipped']} form shipped, {built['name']}"))  # type: ignore[index]
    facts.append(
        ("Kernel launches", f"{report.plain_kernels} → {report.kernels}", f"{report.integer_kernels} in INT8")
    )
    facts += [(f"Accuracy, {name}", f"{value:.2%}", "") for name, value in (accuracy or {}).items()]
    if report.searches.found is not None:
        before, after = (
            _weights(s) for s in (report.searches.plain or report.searches.found, report.searches.found)
        )
        facts.append(
            ("Weights, MB", f"{before[0] / 1e6:,.1f} → {after[1] / 1e6:,.1f}", "in float, and as chosen")
        )
    certificate = "proved" if report.proved else f"within {report.gap:.1%}"
    facts.append(("Cheapest there is?", certificate, "among all forms that the rules reach"))
    boxes = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in facts
    )
    return f"""<p>The same network can be written in many ways that compute the same. Of {report.e_nodes:,}
equal ways to compute its tensors, this is the combination with the lowest predicted time on the target, for batches of
{report.batch}: {report.kernels} kernel launches, where the network as it was written takes {report.plain_kernels}.</p>
<dl class="facts">{boxes}</dl>"""


def _forms(
    report: Report, plain: Search, found: Search, built: Mapping[str, Any] | None, measured: Mapping[int, str]
) -> str:
    pairs = diff(plain, found).pairs
    reasons = _reasons(found)
    ran = measured if not built or built.get("shipped") == "chosen" else {}
    rows, position = [], -1
    for before, after in pairs:
        kind = "same" if before and after else "before" if before else "after"
        position += after is not None
        us = ran.get(position, "") if after is not None else ""
        reason = reasons[position] if after is not None else ""
        rows.append(
            f'<tr class="{kind}"><td class="b k">{_kernel(before, gone=after is None)}</td><td class="b n">'
            f"{_cost(before)}</td>"
            f'<td class="a k">{_kernel(after)}</td><td class="a n">{_cost(after)}</td><td class="n">{us}</td>'
            f"<td>{_precision(after)} {escape(reason)}</td></tr>"
        )
    how = (
        "Measured times are of the engine's own layers; one of several kernels is shown at the first." if ran else
        "Times per kernel are measured when a built engine is given: report.to_html(engine=engine).")  # fmt: skip
    head = "".join(
        f'<th scope="col"{" class=n" if n else ""}>{escape(t)}</th>'
        for t, n in (("As it was written", 0), (f"{report.unit}", 1), ("As chosen", 0), (f"{report.unit}", 1),
                     ("measured us", 1), ("Precision, and why", 0))
    )  # fmt: skip
    return f"""<p>Each row is one launch. Rows in grey are the same in both forms; on the left alone, what is no
longer done; on the right alone, what is done instead. <code>*</code> marks a constant computed once from the
parameter of that name.</p>
<div class="scroll tall" tabindex="0" role="region" aria-label="kernels before and after"><table>
<caption>{escape(how)}</caption>
<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def _rules(report: Report, contribution: Contribution | None) -> str:
    from eqsat_deploy.selection import registered_rules

    docs = {rule.name: rule.doc.partition("\n\n")[0].replace("\n", " ") for rule in registered_rules()}
    used = [rule for rule in report.rules if rule.used]
    rows = "".join(
        f"<tr><td><code>{escape(r.name)}</code></td><td>{escape(r.family)}</td><td>{escape(docs.get(r.name, ''))}</td>"
        f'<td class="n">{r.matches:,}</td></tr>'
        for r in used
    )
    others = sum(bool(rule.matches) for rule in report.rules) - len(used)
    text = f"""<p>A rule says that two ways to compute something are equal. These are in the chosen form; {others}
more matched somewhere without being part of it.</p><div class="scroll"><table><thead><tr><th scope="col">Rule</th>
<th scope="col">Family</th>
<th scope="col">What it says</th><th scope="col" class="n">Matches</th></tr></thead><tbody>{rows}
</tbody></table></div>"""
    if contribution is None:
        return text
    bars = []
    for row in contribution.rows:
        span = "" if row.exact else f" (between {row.least:,.2f} and {row.most:,.2f})"
        if isfinite(row.cost):
            bars.append((row.name, row.worth, f"{row.worth:,.2f} {contribution.unit}{span}"))
    return f"""{text}<p>What each {contribution.by} is worth: it was left out, and the cheapest form searched for
again.</p>
{_bars(bars)}"""


def _certificate(report: Report) -> str:
    if report.proved:
        claim = f"""This is proved to be the cheapest of all forms that the rules reach: none costs less than
{report.bound:,.2f} {report.unit}, and this one costs {report.cost:,.2f}."""
    else:
        claim = f"""This form costs {report.cost:,.2f} {report.unit}. No form that the rules reach costs less than
{report.bound:,.2f}: there may be a better one, by {report.gap:.2%} at most."""
    return f"""<p>{claim} The search was over {report.e_nodes:,} e-nodes in {report.e_classes:,} e-classes
({escape(report.extractor)}); the rules stopped because: {escape(report.stopped)}.</p>
<p class="soft">The proof is about predicted times. What is shipped is decided by measuring: build() times this form
and the network's own on the target and keeps the faster.</p>"""


def _errors(report: Report, sensitivity: Sensitivities | None) -> str:
    if report.errors:
        rows = "".join(f'<tr><td>{k}</td><td class="n">{v:.2e}</td></tr>' for k, v in report.errors.items())
        text = f"""<p>The chosen form, before any rounding to INT8, was run beside the original on the example inputs:
the outputs may differ by {report.tolerance:.0e} of their largest value.</p><table style="max-width: 24rem"><thead><tr>
<th scope="col">Batch</th><th scope="col" class="n">Largest relative difference</th></tr></thead><tbody>{rows}
</tbody></table>"""
    else:
        text = "<p>The chosen form was not compared with the original (check=False).</p>"
    if sensitivity is None:
        return text + (
            '<p class="soft">The error that every INT8 layer causes is shown when it is given: '
            "report.to_html(sensitivity=quantized.sensitivity(batches)).</p>"
        )
    bars = [
        (k.kernel, 10 ** (-k.sqnr / 20) if isfinite(k.sqnr) else 0.0, f"{k.sqnr:.1f} dB")
        for k in sensitivity.kernels
    ]
    return f"""{text}<p>Error by layer: what each INT8 kernel alone does to the network's outputs, as noise relative to
the signal (longer is worse; 20 dB is a tenth, 40 dB a hundredth). All together: {sensitivity.sqnr:.1f} dB.</p>
{_bars(bars)}"""


def _timeline(report: Report) -> str:
    totals = [sum(iteration.values()) for iteration in report.iterations]
    if not totals:
        return "<p>No rule was run.</p>"
    width, height, step = 720, 140, 720 / len(totals)
    most = max(totals) or 1
    bars = "".join(
        f'<rect x="{i * step + 1:.1f}" y="{height - 20 - 100 * t / most:.1f}" width="{max(1.0, step - 2):.1f}" '
        f'height="{100 * t / most:.1f}"><title>iteration {i + 1}: {t:,} matches</title></rect>'
        for i, t in enumerate(totals)
    )
    top = [
        (
            i + 1,
            t,
            ", ".join(f"{name} {count:,}" for name, count in sorted(it.items(), key=lambda x: -x[1])[:4]),
        )
        for i, (t, it) in enumerate(zip(totals, report.iterations, strict=True))
    ]
    rows = "".join(
        f'<tr><td>{i}</td><td class="n">{t:,}</td><td class="k">{escape(names)}</td></tr>'
        for i, t, names in top
    )
    seconds = ", ".join(f"{escape(k)} {v:.2f} s" for k, v in report.seconds.items())
    return f"""<p>All rules run together, round after round, and every equality they find is kept, until there is none
left to find.</p>
<figure class="flow scroll"><svg viewBox="0 0 {width} {height}" width="100%" role="img" style="max-width: {width}px"
aria-label="matches of rules in each of {len(totals)} iterations, {most:,} at most"><g>{bars}</g>
<text x="0" y="{height - 4}">iteration 1</text><text x="{width}" y="{height - 4}" text-anchor="end">{len(totals)}</text>
<text x="0" y="12">{most:,} matches</text></svg><figcaption>Matches of rules in every iteration.</figcaption></figure>
<details><summary>Every iteration</summary><div class="scroll"><table><thead><tr><th scope="col">Iteration</th>
<th scope="col" class="n">Matches</th><th scope="col">Most of them</th></tr></thead><tbody>{rows}</tbody></table></div>
</details>
<p class="soft">{seconds}</p>"""


def _inside(found: Search) -> str:
    return f"""<p>Each dashed box is one tensor of the network; the rows in it are the ways to compute it that the
rules found, with their prices. Data flows from left to right. Green is what was chosen.</p>
{section(egraph_data(found))}"""


def _made(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in report.versions.items())
    return f"{f'<ul>{notes}</ul>' if notes else ''}<p class='soft'>{versions}</p>"


# -- pieces ------------------------------------------------------------------------------------------------


def _kernel(kernel: Kernel | None, gone: bool = False) -> str:
    if kernel is None:
        return ""
    mark = ' class="gone"' if gone else ""
    where = f' <span class="soft">in {escape(kernel.module)}</span>' if kernel.module else ""
    reads = escape(", ".join(kernel.reads))
    return f"<code{mark}>{escape(kernel.tensor)} = {escape(kernel.kernel)}({reads})</code>{where}"


def _cost(kernel: Kernel | None) -> str:
    return "" if kernel is None else f"{kernel.cost:,.2f}"


def _precision(kernel: Kernel | None) -> str:
    return "" if kernel is None else f'<span class="tag {kernel.precision}">{kernel.precision}</span>'


def _reasons(found: Search) -> list[str]:
    """Why every launch of the chosen form has its precision."""
    space, costs, unit = found.space, found.priced.costs, found.priced.model.unit
    by_class: dict[int, list[int]] = {}
    for index, (number, _) in enumerate(space.choices):
        by_class.setdefault(space.exact(number), []).append(index)
    reasons = []
    for index in found.launches:
        number, node = space.choices[index]
        own = space.exact(number)
        alike = (node.operator, [step.function for step in node.steps])
        others = [
            i for i in by_class[own] if isfinite(costs[i])
            and alike == (space.choices[i][1].operator, [step.function for step in space.choices[i][1].steps])
        ]  # fmt: skip
        if own != number and not node.integer and node.operands == (own,):
            reasons.append("writes the INT8 codes that other kernels read")
        elif node.integer:
            exact = [costs[i] for i in others if not space.choices[i][1].integer]
            reasons.append(
                f"in float the same kernel takes {min(exact):,.2f} {unit}"
                if exact
                else "there is no float kernel of it"
            )
        elif not found.priced.model.int8:
            reasons.append("this target is priced in float alone")
        else:
            integer = [costs[i] for i in others if space.choices[i][1].integer]
            reasons.append(
                f"in INT8 the same kernel takes {min(integer):,.2f} {unit}, and with its conversions the whole no less"
                if integer else "the target has no INT8 kernel of it"
            )  # fmt: skip
    return reasons


def _weights(found: Search) -> tuple[int, int]:
    """Bytes of the constants that the launches read: as they are, and with the weights of INT8 kernels in INT8."""
    whole: dict[int, int] = {}
    small: dict[int, int] = {}
    for index in found.launches:
        node = found.space.choices[index][1]
        for position, child in enumerate(node.children):
            known = found.space.classes[child]
            if not known.constant or known.shape is None or known.dtype is None:
                continue
            count = 1
            for size in known.shape:
                count *= size
            whole[child] = count * known.dtype.itemsize
            rounded = node.integer and position == 1 and len(known.shape) > 1
            small[child] = max(small.get(child, 0), count * (1 if rounded else known.dtype.itemsize))
    return sum(whole.values()), sum(small.values())


def _measured(engine: Engine | None) -> dict[int, str]:
    """Microseconds by position among the kernels of the shipped form, at the first of those that one layer does."""
    if engine is None:
        return {}
    kernels = ((engine.report or {}).get("engine") or {}).get("kernels") or []
    position = {kernel["nodes"][0]: index for index, kernel in enumerate(kernels)}
    found: dict[int, str] = {}
    for row in engine.profile().rows:
        places = sorted(position[name] for name in row.kernels if name in position)
        if places and row.layers:
            more = f" (with {len(places) - 1} more)" if len(places) > 1 else ""
            found[places[0]] = f"{row.microseconds:,.1f}{more}"
    return found


def _bars(rows: Iterable[tuple[str, float, str]]) -> str:
    rows = list(rows)
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    drawn = [
        f'<div class="bar"><span><code>{escape(name)}</code></span><span>'
        f'<i style="width: {65 * value / most:.2f}%"></i> '
        f"{escape(words)}</span></div>"
        for name, value, words in rows
    ]
    rest = (
        f"<details><summary>{len(drawn) - BARS} more</summary>{''.join(drawn[BARS:])}</details>"
        if len(drawn) > BARS
        else ""
    )
    return f'<div role="group" aria-label="bar chart">{"".join(drawn[:BARS])}{rest}</div>'
