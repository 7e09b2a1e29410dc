"""What a report says of a search, of the form that was kept, and of its verification."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from eqsat_deploy.provenance import used_rules
from eqsat_deploy.report.report import Report, RuleUse, Searches
from eqsat_deploy.search import Search
from eqsat_deploy.verify import Verified


def report_of(
    name: str,
    searched: Search,
    kept: Search,
    plain: Search,
    verified: Verified | None,
    seconds: Mapping[str, float],
    tuning: dict[str, Any] | None = None,
) -> Report:
    """The report on the form of `kept`, which is `searched`, or `plain` where the extractor found nothing as cheap, or
    the fastest of `tuning`."""
    solution = kept.solution
    used = used_rules(kept)
    launches = [kept.space.choices[i][1] for i in kept.launches]
    saturation = searched.saturation
    notes = [
        *searched.lowered.warnings,
        *(_on_search(searched, kept) if tuning is None else _on_tuning(tuning)),
        *(verified.notes if verified is not None else ()),
    ]
    return Report(
        model=name,
        cost_model=kept.priced.model.name,
        unit=kept.priced.model.unit,
        batch=kept.priced.batch,
        nodes=searched.lowered.nodes,
        opaque=[f"{c.node} ({c.target})" for c in searched.lowered.calls],
        plain_kernels=len(plain.launches),
        kernels=len(launches),
        integer_kernels=sum(node.integer for node in launches),
        plain_cost=plain.solution.cost,
        cost=solution.cost,
        bound=solution.bound,
        gap=solution.gap,
        proved=solution.proved,
        extractor=solution.extractor,
        e_nodes=len(searched.space.nodes),
        e_classes=len(searched.space.classes),
        stopped=saturation.stopped,
        rules=[RuleUse(r.name, r.family, saturation.matches[r.name], r.name in used) for r in saturation.rules],
        errors=verified.errors if verified else {},
        tolerance=verified.tolerance if verified else 0.0,
        notes=notes,
        seconds={k: round(v, 4) for k, v in seconds.items()},
        iterations=saturation.iterations,
        versions={"eqsat-deploy": version("eqsat-deploy"), "torch": torch.__version__,
                  "egglog": version("egglog"), "python": platform.python_version()},
        tuning=tuning,
        searches=Searches(kept, plain),
    )  # fmt: skip


def _on_tuning(tuning: Mapping[str, Any]) -> list[str]:
    return [f"tune: {row['form']} is out: {row['failed']}" for row in tuning["forms"] if "failed" in row]


def _on_search(searched: Search, kept: Search) -> list[str]:
    if kept is searched:
        return []
    return [
        f"the extractor stopped before it found a form as cheap as the plain one ({searched.solution.cost:.6g} "
        f"{searched.priced.model.unit}), which is kept; time_limit= gives it longer"
    ]
