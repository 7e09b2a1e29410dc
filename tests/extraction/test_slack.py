from __future__ import annotations

import numpy as np
import pytest

from eqsat_extraction import EGraph, InfeasibleError, extract
from eqsat_extraction.slack import slack

# Root 0 is made of 1 and 2 together, or of 3 alone; 2 can be made in two ways.
NODES = [(0, [1, 2]), (0, [3]), (1, []), (2, []), (2, []), (3, [])]
COSTS = [1.0, 1.0, 2.0, 3.0, 7.0, 11.0]


def test_slack_is_what_using_an_e_node_costs_beyond_the_bound() -> None:
    bound, more = slack(EGraph.build(NODES, [0], 4), COSTS)
    assert bound == pytest.approx(6.0)  # 1 + 2 + 3, the optimum
    assert more == pytest.approx([0.0, 6.0, 0.0, 0.0, 4.0, 6.0])


def test_what_no_solution_can_use_is_infinite() -> None:
    egraph = EGraph.build([*NODES, (1, [1]), (3, [])], [0], 4)
    _, more = slack(egraph, [*COSTS, 1.0, np.inf])
    assert np.isinf(more[-1])
    with pytest.raises(InfeasibleError):
        slack(egraph, [np.inf] * 8)


def test_no_solution_with_an_e_node_is_cheaper() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        nodes = [
            (c, rng.integers(c + 1, 9, size=2 if c < 8 else 0).tolist()) for c in range(9) for _ in range(3)
        ]
        egraph, costs = EGraph.build(nodes, [0], 9), rng.integers(1, 9, size=27).astype(float)
        bound, more = slack(egraph, costs)
        best = extract(egraph, costs, extractor="ilp")
        assert bound <= best.cost + 1e-9
        for node in best.nodes():
            assert bound + more[node] <= best.cost + 1e-9
