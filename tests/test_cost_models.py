"""What `benchmarks.cost_models` makes of times."""

from __future__ import annotations

import pytest

from benchmarks.cost_models import MEASURES, figures, plot, summary


def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"form": str(i), "predicted": p, "us": us, "cpu_us": us / 2} for i, (p, us) in enumerate(pairs)]


def model(name: str, forms: list[dict[str, float]], fitted: bool = False) -> dict:
    found = {key: figures(forms, measure) for key, measure in MEASURES.items()}
    return {"model": name, "status": "ok", "fitted": fitted, "forms": forms, "load": [1.0, 3.0], **found}


def test_orders_and_regrets() -> None:
    def found(rank: float | None, regret: float | None, apart: int, ordered: int) -> dict[str, float | None]:
        return {"rank_correlation": rank, "top_1_regret": regret, "told_apart": apart, "in_order": ordered}

    assert figures(rows((1, 10), (2, 20), (3, 30)), "us") == found(1.0, 0.0, 3, 3)
    assert figures(rows((1, 30), (2, 20), (3, 10)), "us") == found(-1.0, 2.0, 3, 0)
    same = rows((1, 100), (2, 101), (3, 90))  # the first two take the same time
    assert figures(same, "us") == found(-0.333, 0.1111, 2, 0)
    assert figures(rows((1, 10)), "us") == found(None, None, 0, 0)
    assert figures(rows((1, 10), (1, 20)), "us")["rank_correlation"] is None  # nothing is predicted


def test_errors_are_over_the_forms_that_nothing_was_fitted_to(tmp_path) -> None:
    new = model("timm:new", rows((5, 10), (30, 20)))
    found = summary(
        [new, model("timm:old", rows((1, 1)), fitted=True), {"model": "timm:none", "status": "failed"}]
    )
    assert (found["pairs"], found["models"], found["load"]) == (2, 1, [1.0, 3.0])
    assert found["by time"]["mean_error"] == pytest.approx(0.5)
    assert found["by CPU time"]["median_ratio"] == pytest.approx((1.0 + 3.0) / 2)
    assert found["by time"]["rank_correlation"] == 1.0
    assert (found["by time"]["told_apart"], found["by time"]["in_order"]) == (1, 1)
    assert summary([]) == {"pairs": 0}
    plot([new], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
