"""The study of rewrite ordering: what its tables say follows from its JSON, and its page says nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks._ordering_report import interactions, spearman, tables

ROOT = Path(__file__).parents[1]
PAIR = {"untouched": 100.0, "model": "m"}


def pair(first, second, then, backwards):
    costs = {"first": first, "second": second, "then": then, "reversed": backwards}
    return [{**PAIR, "pairs": {"a + b": costs}}]


@pytest.mark.parametrize(("costs", "expected"), [
    ((90, 80, 70, 70), {}),  # each saves what it saves alone
    ((90, 100, 80, 80), {("enables", "a", "b"): 0.1, ("enables", "b", "a"): 0.1}),
    ((90, 100, 90, 80), {("enables", "b", "a"): 0.1}),
    ((90, 80, 80, 80), {}),  # both do the same work
    ((90, 80, 90, 80), {("blocks", "a", "b"): 0.2}),
])  # fmt: skip
def test_what_families_do_to_each_other(costs, expected):
    found = {key: shares["m"] for key, shares in interactions(pair(*costs)).items()}
    assert found == {key: pytest.approx(share) for key, share in expected.items()}


def test_rank_correlation():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1)


def test_the_page_has_the_tables_of_the_json():
    data = json.loads((ROOT / "benchmarks/results/ordering_study.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/explanation/rewrite-ordering.md").read_text(encoding="utf-8")
    missing = [line for line in tables(data).splitlines() if line not in page]
    assert not missing
    for figure in ("costs", "pairs", "budget", "latency"):
        assert f"ordering_{figure}.svg" in page
        assert (ROOT / f"benchmarks/results/ordering_{figure}.svg").exists()
