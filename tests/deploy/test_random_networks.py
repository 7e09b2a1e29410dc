"""`optimize` returns an equal module for whatever network is drawn, under whatever prices."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

import eqsat_deploy as eqd
from eqsat_deploy.errors import CaptureError
from eqsat_deploy.soundness import check_egraph
from tests.support.networks import RandomPrices, networks

EXAMPLES = int(os.environ.get("RANDOM_NETWORKS", "25"))
"""How many are drawn. A long search: RANDOM_NETWORKS=2000 HYPOTHESIS_PROFILE=search."""
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=QUIET)
@given(networks(), st.integers(0, 999))
def test_an_equal_module_comes_back(network, seed):
    with exportable():
        optimized = eqd.optimize(network, network.inputs(), cost=RandomPrices(seed), extractor="greedy")
    assert optimized.report.stopped == "saturated"


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=QUIET)
@given(networks())
def test_every_e_class_agrees_with_itself(network):
    with exportable():
        found = check_egraph(network, network.inputs())
    assert not found.disagreements, "\n".join(map(str, found.disagreements))


@contextmanager
def exportable():
    """Inside, no notes; a network that torch itself refuses is no example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CaptureError as error:
            if "torch.export cannot export" not in str(error):
                raise
            reject()
